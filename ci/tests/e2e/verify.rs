//! `ci verify`: confirms that an image was built from a commit, and otherwise names the differences.

use std::io::{Read, Write};

use common::digest;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::harness::{Ci, Outcome, Project};
use crate::image::decompress;
use crate::registry::{Registry, unused_address};
use crate::sources::short_sha;

/// A project with a remote, whose first commit is published.
struct PublishedProject {
    project: Project,
    registry: Registry,
    _remote: tempfile::TempDir,
    sha: String,
    tag: String,
}

impl PublishedProject {
    fn new(name: &str) -> Self {
        Self::of(Project::new(name))
    }

    fn of(project: Project) -> Self {
        let remote = tempfile::tempdir().unwrap();
        let bare = remote.path().to_str().unwrap();
        project.git(&["init", "--quiet", "--bare", bare]);
        project.git(&["remote", "add", "origin", bare]);
        project.git(&["push", "--quiet", "origin", "main"]);
        let published = Self {
            sha: project.git(&["rev-parse", "HEAD"]),
            tag: short_sha(&project),
            project,
            registry: Registry::open(),
            _remote: remote,
        };
        let address = published.registry.address();
        let publish = published.project.ci(&["publish", "--registry", &address]);
        publish.run().exits(0);
        published
    }

    /// The image's name, with `version` as its tag or digest.
    fn name(&self, version: &str) -> String {
        format!(
            "{}/{}{version}",
            self.registry.address(),
            self.project.repository()
        )
    }

    fn verify(&self, version: &str) -> Outcome {
        self.verify_command(&self.name(version)).run()
    }

    fn verify_command(&self, image: &str) -> Ci {
        self.project.ci(&["verify", image])
    }

    fn read_manifest(&self) -> Value {
        let manifest = self.registry.manifest(self.project.repository(), &self.tag);
        serde_json::from_slice(&manifest).unwrap()
    }

    fn read_blob(&self, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap();
        self.registry.blob(self.project.repository(), digest)
    }

    fn put_blob(&self, mut descriptor: Value, content: &[u8]) -> Value {
        let digest = digest::sha256(content);
        self.registry
            .put_blob(self.project.repository(), &digest, content);
        descriptor["digest"] = digest.into();
        descriptor["size"] = content.len().into();
        descriptor
    }

    /// Publishes the image with a changed configuration under `tag`.
    fn publish_with_config(&self, tag: &str, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.read_manifest();
        let mut config = serde_json::from_slice(&self.read_blob(&manifest["config"])).unwrap();
        change(&mut config);
        let descriptor = manifest["config"].clone();
        manifest["config"] = self.put_blob(descriptor, config.to_string().as_bytes());
        self.put(tag, &manifest);
    }

    /// Publishes the image with a changed layer under `tag`, with consistent digests.
    fn publish_with_layer(&self, tag: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let mut manifest = self.read_manifest();
        let tar = change(decompress(&self.read_blob(&manifest["layers"][0])));
        let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&tar).unwrap();
        let descriptor = manifest["layers"][0].clone();
        manifest["layers"][0] = self.put_blob(descriptor, &packed.finish().unwrap());
        let mut config: Value =
            serde_json::from_slice(&self.read_blob(&manifest["config"])).unwrap();
        config["rootfs"]["diff_ids"][0] = digest::sha256(&tar).into();
        let descriptor = manifest["config"].clone();
        manifest["config"] = self.put_blob(descriptor, config.to_string().as_bytes());
        self.put(tag, &manifest);
    }

    fn put(&self, tag: &str, manifest: &Value) {
        let bytes = manifest.to_string().into_bytes();
        self.registry
            .put_manifest(self.project.repository(), tag, bytes);
    }
}

/// Applies `change` to each entry of the tar, and appends `more`.
fn rewrite_tar(
    tar: &[u8],
    change: impl Fn(&mut tar::Header, &mut Vec<u8>),
    more: Option<(&str, &[u8])>,
) -> Vec<u8> {
    let mut new = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (mut header, mut content) = (entry.header().clone(), Vec::new());
        entry.read_to_end(&mut content).unwrap();
        change(&mut header, &mut content);
        header.set_cksum();
        new.append(&header, &content[..]).unwrap();
    }
    if let Some((path, content)) = more {
        let mut header = common::file_tree::header(content.len() as u64, 0o644);
        new.append_data(&mut header, path, content).unwrap();
    }
    new.into_inner().unwrap()
}

#[test]
fn verifies_a_published_image_from_any_checkout() {
    let published = PublishedProject::new("verify-proof");
    let digest = published
        .registry
        .digest(published.project.repository(), &published.tag);
    let proof = format!(
        "{} is reproduced from commit {}, bit for bit\n",
        published.name(&format!("@{digest}")),
        published.sha
    );
    assert_eq!(
        published
            .verify(&format!(":{}", published.tag))
            .exits(0)
            .stdout,
        proof
    );

    // A newer commit, a dirty working tree, and a hook that must not run.
    published.project.edit(
        "api/src/main.rs",
        "fn main() {",
        "fn main() {\n    // Newer.",
    );
    published.project.commit("newer");
    published.project.write("api/src/main.rs", "not even Rust");
    published.project.write(
        ".git/hooks/post-checkout",
        "#!/bin/sh\ntouch \"$HOOK_RAN\"\n",
    );
    let hook = published.project.path().join(".git/hooks/post-checkout");
    let runs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(hook, runs).unwrap();
    let ran = published.project.path().join("ran");
    let old = published
        .verify_command(&published.name(&format!("@{digest}")))
        .env("HOOK_RAN", ran.to_str().unwrap());
    assert_eq!(old.run().exits(0).stdout, proof);
    assert!(!ran.exists());
    let found = published
        .verify_command(&published.name(&format!(":{}", published.tag)))
        .env("LAB_CI_FORMAT", "json")
        .run()
        .exits(0);
    let found: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(found["reproduced"], true);
    assert_eq!(found["rebuilt"], digest.as_str());
    assert_eq!(found["revision"], published.sha.as_str());
    assert_eq!(found["differences"], json!([]));
    // The temporary worktree was removed.
    assert_eq!(
        published.project.git(&["worktree", "list"]).lines().count(),
        1
    );
}

#[test]
fn names_the_differences_of_a_tampered_image() {
    let published = PublishedProject::new("verify-tampered");
    published.publish_with_layer("byte", |tar| {
        let change = |_: &mut tar::Header, content: &mut Vec<u8>| content[4711] ^= 1;
        rewrite_tar(&tar, change, None)
    });
    published.publish_with_layer("mode", |tar| {
        rewrite_tar(&tar, |header, _| header.set_mode(0o4755), None)
    });
    published.publish_with_layer("file", |tar| {
        rewrite_tar(
            &tar,
            |_, _| {},
            Some(("etc/passwd", b"root::0:0::/:/bin/sh")),
        )
    });
    published.publish_with_layer("owner", |tar| {
        rewrite_tar(&tar, |header, _| header.set_uid(1000), None)
    });
    published.publish_with_config("label", |config| {
        config["config"]["Labels"]["org.opencontainers.image.title"] = "another".into();
    });
    published.publish_with_config("entrypoint", |config| {
        config["config"]["Entrypoint"][0] = "/bin/sh".into();
    });
    let mut manifest = published.read_manifest();
    manifest["annotations"] = json!({ "somebody": "was here" });
    published.put("manifest", &manifest);
    // The same content, but compressed again.
    published.publish_with_layer("packed", |tar| tar);

    for (tag, places) in [
        (
            "byte",
            &["layer 1 /api: content, first difference at offset 4711"][..],
        ),
        (
            "mode",
            &["layer 1 /api: mode", "published: 4755", "rebuilt:   0755"],
        ),
        ("file", &["layer 1 /etc/passwd", "rebuilt:   (nothing)"]),
        ("owner", &["layer 1 /api: owner", "published: 1000:0"]),
        (
            "label",
            &[
                "config config.Labels.org.opencontainers.image.title",
                "\"another\"",
            ],
        ),
        ("entrypoint", &["config config.Entrypoint.0", "\"/bin/sh\""]),
        ("manifest", &["manifest annotations.somebody"]),
        ("packed", &["compressed differently"]),
    ] {
        let mut found = published.verify(&format!(":{tag}")).exits(1).says(&format!(
            "differs from the image that commit {} builds",
            published.sha
        ));
        for place in places {
            found = found.says(place);
        }
        assert_eq!(found.stdout, "");
    }
    let json = published
        .verify_command(&published.name(":mode"))
        .env("LAB_CI_FORMAT", "json");
    let found: Value = serde_json::from_str(&json.run().exits(1).stdout).unwrap();
    assert_eq!(found["reproduced"], false);
    let mode = json!({ "place": "layer 1 /api: mode", "published": "4755", "rebuilt": "0755" });
    assert!(
        found["differences"].as_array().unwrap().contains(&mode),
        "{found:#}"
    );

    // A blob that is damaged in the registry and does not match its digest.
    published.registry.damage(
        published.read_manifest()["layers"][0]["digest"]
            .as_str()
            .unwrap(),
    );
    published
        .verify(&format!(":{}", published.tag))
        .exits(1)
        .says("digest mismatch");
}

#[test]
fn reports_another_toolchain() {
    let published = PublishedProject::new("verify-toolchain");
    published.publish_with_config("older", |config| {
        let labels = &mut config["config"]["Labels"];
        labels["io.github.upwind1647.infrastructure-lab.compiler"] = "rustc 1.90.0".into();
    });
    published
        .verify(":older")
        .exits(1)
        .says("built with another toolchain:\n")
        .says("published: rustc 1.90.0");
}

#[test]
fn rejects_a_commit_that_no_remote_branch_contains() {
    let published = PublishedProject::new("verify-foreign");
    let engine = ["--engine", "unix:///nonexistent/engine.sock"];
    let refused = |image: &str, code: i32, words: &str| {
        let run = published
            .project
            .ci(&[&["verify", image], &engine[..]].concat())
            .run();
        run.exits(code).says(words);
        assert_eq!(
            published.project.git(&["worktree", "list"]).lines().count(),
            1
        );
    };
    let revision = |tag: &str, value: Value| {
        published.publish_with_config(tag, |config| {
            let labels = &mut config["config"]["Labels"];
            labels["org.opencontainers.image.revision"] = value;
        });
    };
    // A commit that exists only in the local repository.
    let own = published.project.commit("not pushed");
    revision("unpushed", own.as_str().into());
    revision("unknown", "0123456789abcdef0123456789abcdef01234567".into());
    revision("option", "--upload-pack=touch /tmp/pwned; #".into());
    revision("short", published.sha[..12].into());
    published.publish_with_config("foreign", |config| config["config"]["Labels"] = json!({}));
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [] });
    published.registry.put_index(
        published.project.repository(),
        "index",
        index.to_string().into_bytes(),
    );

    refused(
        &published.name(":unpushed"),
        1,
        "is not on any branch of origin",
    );
    refused(
        &published.name(":unknown"),
        1,
        "is not on any branch of origin",
    );
    refused(&published.name(":option"), 1, "is not a commit's SHA");
    refused(&published.name(":short"), 1, "is not a commit's SHA");
    refused(&published.name(":foreign"), 1, "was not published by ci");
    refused(&published.name(":index"), 1, "not a single-platform image");
    refused(&published.name(":nothing"), 1, "is not in the registry");
    refused(
        &published.name(&format!("@sha256:{}", "0".repeat(64))),
        1,
        "is not in the registry",
    );
    refused(&published.name(""), 2, "it has no tag");
    refused(&published.name(":latest"), 2, "which ci never publishes");
    refused("a b", 2, "invalid image name");
    refused(
        &format!("{}/x:1", unused_address()),
        3,
        "cannot reach the registry",
    );
    // Commits that were pushed meanwhile are fetched.
    published
        .project
        .git(&["push", "--quiet", "origin", "main"]);
    published
        .project
        .git(&["update-ref", "-d", "refs/remotes/origin/main"]);
    let run = published
        .project
        .ci(&[&["verify", &published.name(":unpushed")], &engine[..]].concat());
    run.run()
        .exits(3)
        .says("fetching from origin")
        .says("building commit");
    published.project.git(&["remote", "remove", "origin"]);
    refused(
        &published.name(&format!(":{}", published.tag)),
        2,
        "has no remote",
    );
}

#[test]
fn rebuilds_with_the_ci_of_the_commit() {
    // A fake `ci` that records its call and runs the real one.
    let own = r#"use std::os::unix::process::CommandExt;
fn main() {
    std::fs::write(std::env::var("OWN_CI_RAN").unwrap(), "yes").unwrap();
    let real = std::env::var("REAL_CI").unwrap();
    panic!("{}", std::process::Command::new(real).args(std::env::args_os().skip(1)).exec());
}
"#;
    let manifest = |name: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"1.2.3\"\nedition = \"2024\"\n")
    };
    let project = Project::of(
        "verify-own-ci",
        &[
            (
                "Cargo.toml",
                "[workspace]\nmembers = [\"api\", \"ci\"]\nresolver = \"3\"\n",
            ),
            ("api/Cargo.toml", &manifest("api")),
            ("ci/Cargo.toml", &manifest("ci")),
            ("ci.toml", "[service]\npackage = \"api\"\n"),
            (".gitignore", "/target\n"),
            ("api/src/main.rs", crate::harness::SERVICE),
            ("ci/src/main.rs", own),
            (
                "Cargo.lock",
                "version = 4\n\n[[package]]\nname = \"api\"\nversion = \"1.2.3\"\n\n[[package]]\nname = \"ci\"\nversion = \"1.2.3\"\n",
            ),
        ],
    );
    project.format("");
    project.commit("formatted");
    let published = PublishedProject::of(project);
    let ran = published.project.path().join("target/own-ci-ran");
    published
        .verify_command(&published.name(&format!(":{}", published.tag)))
        .env("OWN_CI_RAN", ran.to_str().unwrap())
        .env("REAL_CI", env!("CARGO_BIN_EXE_ci"))
        .run()
        .exits(0)
        .says(&format!(
            "building the image with the ci of commit {}",
            published.sha
        ));
    assert!(ran.exists());
}
