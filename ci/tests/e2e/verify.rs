//! `ci verify`: what a commit makes is proven, and what it does not make is found, down to the file.

use std::io::{Read, Write};

use common::digest;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::harness::{Ci, Outcome, Project};
use crate::image::unpacked;
use crate::registry::{Registry, nobody};
use crate::sources::short;

/// A project whose commits a remote has, and whose first is published.
struct Lab {
    project: Project,
    registry: Registry,
    _remote: tempfile::TempDir,
    sha: String,
    tag: String,
}

impl Lab {
    fn new(name: &str) -> Self {
        Self::of(Project::new(name))
    }

    fn of(project: Project) -> Self {
        let remote = tempfile::tempdir().unwrap();
        let bare = remote.path().to_str().unwrap();
        project.git(&["init", "--quiet", "--bare", bare]);
        project.git(&["remote", "add", "origin", bare]);
        project.git(&["push", "--quiet", "origin", "main"]);
        let lab = Self {
            sha: project.git(&["rev-parse", "HEAD"]),
            tag: short(&project),
            project,
            registry: Registry::open(),
            _remote: remote,
        };
        let address = lab.registry.address();
        let publish = lab.project.ci(&["publish", "--registry", &address]);
        publish.run().exits(0);
        lab
    }

    fn name(&self, version: &str) -> String {
        format!(
            "{}/{}{version}",
            self.registry.address(),
            self.project.repository()
        )
    }

    fn verify(&self, version: &str) -> Outcome {
        self.call(&self.name(version)).run()
    }

    fn call(&self, image: &str) -> Ci {
        self.project.ci(&["verify", image])
    }

    fn manifest(&self) -> Value {
        let manifest = self.registry.manifest(self.project.repository(), &self.tag);
        serde_json::from_slice(&manifest).unwrap()
    }

    fn blob(&self, descriptor: &Value) -> Vec<u8> {
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

    /// Publishes an image under `tag` whose configuration is changed.
    fn with_config(&self, tag: &str, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest();
        let mut config = serde_json::from_slice(&self.blob(&manifest["config"])).unwrap();
        change(&mut config);
        let descriptor = manifest["config"].clone();
        manifest["config"] = self.put_blob(descriptor, config.to_string().as_bytes());
        self.put(tag, &manifest);
    }

    /// Publishes an image under `tag` whose layer is another tar, as somebody would who knows how to.
    fn with_layer(&self, tag: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let mut manifest = self.manifest();
        let tar = change(unpacked(&self.blob(&manifest["layers"][0])));
        let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&tar).unwrap();
        let descriptor = manifest["layers"][0].clone();
        manifest["layers"][0] = self.put_blob(descriptor, &packed.finish().unwrap());
        let mut config: Value = serde_json::from_slice(&self.blob(&manifest["config"])).unwrap();
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

/// The tar with its entries changed one by one, and `more` behind them.
fn rewritten(
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
fn what_a_commit_makes_is_proven_in_one_line_also_from_a_newer_checkout() {
    let lab = Lab::new("verify-proof");
    let digest = lab.registry.digest(lab.project.repository(), &lab.tag);
    let proof = format!(
        "{} is commit {}, bit for bit\n",
        lab.name(&format!("@{digest}")),
        lab.sha
    );
    assert_eq!(lab.verify(&format!(":{}", lab.tag)).exits(0).stdout, proof);

    // Newer code, a dirty tree, and a hook that must not run.
    lab.project.edit(
        "api/src/main.rs",
        "fn main() {",
        "fn main() {\n    // Newer.",
    );
    lab.project.commit("newer");
    lab.project.write("api/src/main.rs", "not even Rust");
    lab.project.write(
        ".git/hooks/post-checkout",
        "#!/bin/sh\ntouch \"$HOOK_RAN\"\n",
    );
    let hook = lab.project.path().join(".git/hooks/post-checkout");
    let runs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(hook, runs).unwrap();
    let ran = lab.project.path().join("ran");
    let old = lab
        .call(&lab.name(&format!("@{digest}")))
        .env("HOOK_RAN", ran.to_str().unwrap());
    assert_eq!(old.run().exits(0).stdout, proof);
    assert!(!ran.exists());
    let found = lab
        .call(&lab.name(&format!(":{}", lab.tag)))
        .env("LAB_CI_FORMAT", "json")
        .run()
        .exits(0);
    let found: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(found["reproduced"], true);
    assert_eq!(found["rebuilt"], digest.as_str());
    assert_eq!(found["revision"], lab.sha.as_str());
    assert_eq!(found["differences"], json!([]));
    // The worktree is gone.
    assert_eq!(lab.project.git(&["worktree", "list"]).lines().count(), 1);
}

#[test]
fn a_tampered_image_is_caught_and_the_place_is_named() {
    let lab = Lab::new("verify-tampered");
    lab.with_layer("byte", |tar| {
        let change = |_: &mut tar::Header, content: &mut Vec<u8>| content[4711] ^= 1;
        rewritten(&tar, change, None)
    });
    lab.with_layer("mode", |tar| {
        rewritten(&tar, |header, _| header.set_mode(0o4755), None)
    });
    lab.with_layer("file", |tar| {
        rewritten(
            &tar,
            |_, _| {},
            Some(("etc/passwd", b"root::0:0::/:/bin/sh")),
        )
    });
    lab.with_layer("owner", |tar| {
        rewritten(&tar, |header, _| header.set_uid(1000), None)
    });
    lab.with_config("label", |config| {
        config["config"]["Labels"]["org.opencontainers.image.title"] = "another".into();
    });
    lab.with_config("entrypoint", |config| {
        config["config"]["Entrypoint"][0] = "/bin/sh".into();
    });
    let mut manifest = lab.manifest();
    manifest["annotations"] = json!({ "somebody": "was here" });
    lab.put("manifest", &manifest);
    // The same content, packed again.
    lab.with_layer("packed", |tar| tar);

    for (tag, places) in [
        ("byte", &["layer 1 /api: content, first at offset 4711"][..]),
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
        ("packed", &["compressed otherwise"]),
    ] {
        let mut found = lab
            .verify(&format!(":{tag}"))
            .exits(1)
            .says(&format!("is not what commit {} makes here", lab.sha));
        for place in places {
            found = found.says(place);
        }
        assert_eq!(found.stdout, "");
    }
    let json = lab.call(&lab.name(":mode")).env("LAB_CI_FORMAT", "json");
    let found: Value = serde_json::from_str(&json.run().exits(1).stdout).unwrap();
    assert_eq!(found["reproduced"], false);
    let mode = json!({ "place": "layer 1 /api: mode", "published": "4755", "rebuilt": "0755" });
    assert!(
        found["differences"].as_array().unwrap().contains(&mode),
        "{found:#}"
    );

    // A byte that changes where the registry keeps it: no digest of its own has this image.
    lab.registry
        .damage(lab.manifest()["layers"][0]["digest"].as_str().unwrap());
    lab.verify(&format!(":{}", lab.tag))
        .exits(1)
        .says("hands out other bytes");
}

#[test]
fn an_image_made_with_another_toolchain_says_so() {
    let lab = Lab::new("verify-toolchain");
    lab.with_config("older", |config| {
        let labels = &mut config["config"]["Labels"];
        labels["io.github.upwind1647.infrastructure-lab.compiler"] = "rustc 1.90.0".into();
    });
    lab.verify(":older")
        .exits(1)
        .says("made with another toolchain:\n")
        .says("published: rustc 1.90.0");
}

#[test]
fn what_no_remote_has_is_neither_checked_out_nor_built() {
    let lab = Lab::new("verify-foreign");
    let engine = ["--engine", "unix:///nonexistent/engine.sock"];
    let refused = |image: &str, code: i32, words: &str| {
        let run = lab
            .project
            .ci(&[&["verify", image], &engine[..]].concat())
            .run();
        run.exits(code).says(words);
        assert_eq!(lab.project.git(&["worktree", "list"]).lines().count(), 1);
    };
    let revision = |tag: &str, value: Value| {
        lab.with_config(tag, |config| {
            let labels = &mut config["config"]["Labels"];
            labels["org.opencontainers.image.revision"] = value;
        });
    };
    // One that exists here, and that nobody else has seen.
    let own = lab.project.commit("not pushed");
    revision("unpushed", own.as_str().into());
    revision("unknown", "0123456789abcdef0123456789abcdef01234567".into());
    revision("option", "--upload-pack=touch /tmp/pwned; #".into());
    revision("short", lab.sha[..12].into());
    lab.with_config("foreign", |config| config["config"]["Labels"] = json!({}));
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [] });
    lab.registry.put_index(
        lab.project.repository(),
        "index",
        index.to_string().into_bytes(),
    );

    refused(&lab.name(":unpushed"), 1, "is in no branch of origin");
    refused(&lab.name(":unknown"), 1, "is in no branch of origin");
    refused(&lab.name(":option"), 1, "is not a commit's SHA");
    refused(&lab.name(":short"), 1, "is not a commit's SHA");
    refused(
        &lab.name(":foreign"),
        1,
        "is not an image that ci has published",
    );
    refused(&lab.name(":index"), 1, "is not a single image");
    refused(&lab.name(":nothing"), 1, "is not in the registry");
    refused(
        &lab.name(&format!("@sha256:{}", "0".repeat(64))),
        1,
        "is not in the registry",
    );
    refused(&lab.name(""), 2, "it has no tag");
    refused(&lab.name(":latest"), 2, "which ci never publishes");
    refused("a b", 2, "is not a published image");
    refused(&format!("{}/x:1", nobody()), 3, "cannot be reached");
    // What is pushed by now is fetched.
    lab.project.git(&["push", "--quiet", "origin", "main"]);
    lab.project
        .git(&["update-ref", "-d", "refs/remotes/origin/main"]);
    let run = lab
        .project
        .ci(&[&["verify", &lab.name(":unpushed")], &engine[..]].concat());
    run.run()
        .exits(3)
        .says("asking origin")
        .says("building commit");
    lab.project.git(&["remote", "remove", "origin"]);
    refused(&lab.name(&format!(":{}", lab.tag)), 2, "has no remote");
}

#[test]
fn the_commits_own_ci_builds_it() {
    // It is told by the environment where the real one is, and tells that it was there.
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
    let lab = Lab::of(project);
    let ran = lab.project.path().join("target/own-ci-ran");
    lab.call(&lab.name(&format!(":{}", lab.tag)))
        .env("OWN_CI_RAN", ran.to_str().unwrap())
        .env("REAL_CI", env!("CARGO_BIN_EXE_ci"))
        .run()
        .exits(0)
        .says(&format!("building it with the ci of commit {}", lab.sha));
    assert!(ran.exists());
}
