//! The image depends only on the commit, the platform, and the toolchain.

use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use ci::image::archive;
use common::digest;
use serde_json::Value;

use crate::embedded::Machine;
use crate::harness::{Ci, Outcome, Project, git};
use crate::image::Image;
use crate::registry::{FakeRegistry, Registry, response};
use crate::sources::short_sha;

const MAIN: &str = "api/src/main.rs";
/// The commit's time. Neither a file nor the day of the test has this time.
const TIME: &str = "2024-02-29T12:34:56+05:00";
const TIME_IN_UTC: &str = "2024-02-29T07:34:56Z";
const LATER: &str = "2024-03-31T01:02:03Z";
const UNDER_077: [&str; 2] = ["-c", "umask 077 && exec \"$0\" \"$@\""];

/// A service with a proc macro and build scripts in its dependencies.
fn service(name: &str) -> Project {
    let project = Project::new(name);
    project.edit(
        MAIN,
        "\"listening\"",
        "\"{} {:?}\", std::process::id(), serde_json::to_string(&Started { words: \"listening\" })",
    );
    project.edit(
        MAIN,
        "fn main() {",
        "#[derive(serde::Serialize)]\nstruct Started {\n    words: &'static str,\n}\n\nfn main() {",
    );
    project.write(".gitignore", "/target\n/ignored\n");
    project.add_dependency(
        "libc = \"0.2\"\nserde = { version = \"1\", features = [\"derive\"] }\nserde_json = \"1\"",
    );
    project.format("");
    // A unique file, so that the engine has no cached result of an earlier run of this test.
    project.write("docs/run.md", &format!("{:?}\n", SystemTime::now()));
    project
}

/// A build script that prints the number of cores, without an effect on the binary.
const CORES_BUILD_SCRIPT: &str = r#"fn main() {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("cargo::warning=cores: {cores}");
}
"#;

fn read_log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("target/ci/logs/build.log")).unwrap()
}

/// Sets the modification time of every file in a working tree to 2001.
fn set_mtimes_to_2001(folder: &Path) {
    let touched = Command::new("find")
        .arg(folder)
        .args(["-path", "*/.git", "-prune", "-o", "-exec", "touch"])
        .args(["--no-dereference", "--date=2001-01-01T00:00:00Z", "{}", "+"])
        .status();
    assert!(touched.unwrap().success());
}

/// A home directory with settings for git and cargo that would change the image.
fn create_other_home(folder: &Path) -> PathBuf {
    let home = folder.join("home of somebody");
    std::fs::create_dir_all(home.join("cargo")).unwrap();
    let excluded = home.join("excluded");
    std::fs::write(&excluded, "excluded-by-user\n").unwrap();
    let gitconfig = format!(
        "[user]\n\tname = Somebody\n\temail = somebody@example.com\n[core]\n\tabbrev = 20\n\tautocrlf = true\n\texcludesFile = {}\n",
        excluded.display()
    );
    std::fs::write(home.join(".gitconfig"), gitconfig).unwrap();
    for file in ["cargo/config", "cargo/config.toml"] {
        std::fs::write(home.join(file), OTHER_CARGO).unwrap();
    }
    home
}

/// Cargo settings that would change the binary or break the build.
const OTHER_CARGO: &str = r#"[build]
rustflags = ["--cfg", "somebodys", "-C", "debuginfo=2"]
target-dir = "/nonexistent"

[profile.release]
opt-level = 0
debug = true
"#;

/// Environment variables that would change the binary.
const OTHER_ENVIRONMENT: [(&str, &str); 16] = [
    ("TZ", "Pacific/Kiritimati"),
    ("LANG", "tr_TR.UTF-8"),
    ("LC_ALL", "tr_TR.UTF-8"),
    ("USER", "somebody"),
    ("LOGNAME", "somebody"),
    ("HOSTNAME", "somewhere"),
    ("GIT_AUTHOR_NAME", "Somebody"),
    ("GIT_COMMITTER_NAME", "Somebody"),
    ("GIT_COMMITTER_DATE", "2001-01-01T00:00:00Z"),
    ("SOURCE_DATE_EPOCH", "1"),
    ("RUSTFLAGS", "-C debuginfo=2 --cfg somebodys"),
    ("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2"),
    ("CARGO_BUILD_RUSTFLAGS", "-C opt-level=0"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_INCREMENTAL", "1"),
    ("APP_COMMIT", "0000000"),
];

/// Runs the call with another home directory and environment. `RUSTUP_HOME` still points to the real toolchain.
fn in_other_environment(mut ci: Ci, home: &Path) -> Ci {
    if std::env::var_os("RUSTUP_HOME").is_none() {
        let rustup = Path::new(&std::env::var("HOME").unwrap()).join(".rustup");
        ci = ci.env("RUSTUP_HOME", rustup.to_str().unwrap());
    }
    for (name, value) in OTHER_ENVIRONMENT {
        ci = ci.env(name, value);
    }
    ci.env("HOME", home.to_str().unwrap())
        .env("CARGO_HOME", home.join("cargo").to_str().unwrap())
}

/// Adds files that git ignores for three different reasons, and that cargo would use.
fn add_ignored_files(folder: &Path) {
    let write = |path: &str, text: &str| {
        let file = folder.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    };
    write(
        ".git/info/exclude",
        ".cargo\napi/src/bin\nrust-toolchain.toml\n",
    );
    write(".cargo/config.toml", OTHER_CARGO);
    write(
        "rust-toolchain.toml",
        "[toolchain]\nchannel = \"nightly\"\n",
    );
    write("api/src/bin/other.rs", "fn main() {}\n");
    write("ignored/file", "ignored\n");
    write("target/release/api", "not a program\n");
    write("excluded-by-user", "excluded\n");
}

#[test]
fn one_commit_builds_one_image_everywhere() {
    let machine = Machine::new();
    let engine = machine.shared_engine.clone();
    let project = service("reproducible");
    project.write("api/build.rs", CORES_BUILD_SCRIPT);
    // Incremental compilation could reuse parts of an older build.
    let manifest = project.read("Cargo.toml");
    project.write(
        "Cargo.toml",
        &format!("{manifest}\n[profile.release]\nincremental = true\n"),
    );
    project.edit(MAIN, "listening", "listened");
    project.commit_with("before", &[("GIT_COMMITTER_DATE", LATER)]);
    project.ci(&["build", "--engine", &engine]).run().exits(0);
    project.edit(MAIN, "listened", "listening");
    let commit = project.commit_with("the one", &[("GIT_COMMITTER_DATE", TIME)]);
    project.git(&["tag", "the-one"]);
    project.commit("after");
    project.git(&["checkout", "--quiet", "--detach", "the-one"]);

    // Builds with the caches of another commit.
    let first = project.ci(&["build", "--engine", &engine]).run().exits(0);
    let digest = first.report["digest"].as_str().unwrap().to_owned();
    let same = |what: &str, run: Outcome| {
        let run = run.exits(0);
        assert_eq!(run.report["commit"], commit, "{what}");
        assert_eq!(run.report["clean"], true, "{what}");
        assert_eq!(run.report["digest"], digest, "{what}");
        run
    };

    let folder = tempfile::tempdir().unwrap();
    let home = create_other_home(folder.path());
    // cargo reads the settings in parent directories of a clone.
    std::fs::create_dir(folder.path().join(".cargo")).unwrap();
    std::fs::write(folder.path().join(".cargo/config.toml"), OTHER_CARGO).unwrap();
    let clone = |name: &str, how: &[&str]| {
        let path = folder.path().join(name);
        let from = format!("file://{}", project.path().display());
        let arguments = [&["clone", "--quiet", "--branch", "the-one"], how].concat();
        git(
            folder.path(),
            &[&arguments[..], &[&from, path.to_str().unwrap()]].concat(),
        );
        path
    };
    let whole = clone("another path, and a longer one", &[]);
    let shallow = clone("shallow", &["--depth", "1"]);
    git(&shallow, &["config", "core.abbrev", "12"]);
    let build = |folder: &Path| {
        machine
            .with_cache(Ci::new(folder, &["build", "--engine", &engine]))
            .env("LAB_CI_REPOSITORY", project.repository())
    };

    // Each difference alone, so that a failure shows its cause.
    same("another path", build(&whole).run());
    let run = same("a shallow clone", build(&shallow).run());
    assert_eq!(run.report["tag"].as_str().unwrap().len(), 7);
    set_mtimes_to_2001(&whole);
    same("other times", build(&whole).run());
    same("another umask", build(&whole).under("sh", &UNDER_077).run());
    same(
        "another user",
        in_other_environment(build(&whole), &home).run(),
    );
    project.ci(&["test", "--engine", &engine]).run().exits(0);
    let after = project.ci(&["build", "--engine", &engine]).run();
    same("after the tests", after);
    add_ignored_files(&shallow);
    same(
        "ignored files",
        in_other_environment(build(&shallow), &home).run(),
    );

    // All differences at once, on a new engine with one core.
    let one_core = ["--cpu-list", "0"];
    machine
        .ci(&["engine", "up"])
        .under("taskset", &one_core)
        .run()
        .exits(0);
    set_mtimes_to_2001(&shallow);
    let elsewhere = |command: &str| {
        let ci = Ci::new(&shallow, &[command, "--engine", "embedded"]);
        let ci = machine
            .with_cache(ci)
            .env("LAB_CI_REPOSITORY", "e2e/elsewhere");
        in_other_environment(ci, &home)
            .under("sh", &UNDER_077)
            .under("taskset", &one_core)
    };
    elsewhere("test").run().exits(0);
    same("all at once", elsewhere("build").run());
    let log = read_log(&shallow);
    assert!(log.contains("Compiling serde_json"), "{log}");
    assert!(log.contains("cores: 1\n"), "{log}");
    machine.down();
}

/// Removes the parts that differ for every commit.
fn without_the_commit(mut config: Value) -> Value {
    let is_of_commit =
        |name: &str| name.starts_with("APP_COMMIT=") || name.starts_with("APP_BUILD_TIME=");
    config.as_object_mut().unwrap().remove("created").unwrap();
    for entry in config["history"].as_array_mut().unwrap() {
        entry.as_object_mut().unwrap().remove("created").unwrap();
    }
    let process = &mut config["config"];
    let labels = process["Labels"].as_object_mut().unwrap();
    labels.remove("org.opencontainers.image.revision").unwrap();
    let env = process["Env"].as_array_mut().unwrap();
    let before = env.len();
    env.retain(|line| !is_of_commit(line.as_str().unwrap()));
    assert_eq!(env.len(), before - 2);
    config
}

#[test]
fn documentation_changes_recompile_nothing_and_keep_the_layers() {
    let project = service("reproducible-documentation");
    project.write("docs/old.md", "# Old\n");
    project.write("api/parts/part.txt", "a part\n");
    project.write(
        "ci.toml",
        "[image]\nfiles = { \"api/parts\" = \"/usr/share/parts\" }\n",
    );
    project.commit_with("the code", &[("GIT_COMMITTER_DATE", TIME)]);
    let build = || project.ci(&["build"]).run().exits(0);
    build();
    let before = Image::read(&project.path().join("target/ci"));

    project.write("README.md", "# What this is\n");
    project.write("api/README.md", "# What this part is\n");
    project.write("docs/how.svg", "<svg/>\n");
    project.write("LICENSE", "Take it.\n");
    project.git(&["rm", "--quiet", "docs/old.md"]);
    project.commit_with("what it is", &[("GIT_COMMITTER_DATE", LATER)]);
    build();
    let after = Image::read(&project.path().join("target/ci"));
    let log = read_log(project.path());
    assert!(log.contains("Finished `release` profile"), "{log}");
    assert!(!log.contains("Compiling"), "{log}");
    assert_eq!(before.manifest["layers"], after.manifest["layers"]);
    assert_ne!(
        before.manifest["config"]["digest"],
        after.manifest["config"]["digest"]
    );
    assert_eq!(
        without_the_commit(before.config),
        without_the_commit(after.config)
    );
}

#[test]
fn the_image_has_only_commit_timestamps_and_no_user_names() {
    let project = Project::new("reproducible-times");
    project.write("api/parts/part.txt", "a part\n");
    project.write(
        "ci.toml",
        "[image]\nfiles = { \"api/parts\" = \"/usr/share/parts\" }\n",
    );
    project.commit_with("the code", &[("GIT_COMMITTER_DATE", TIME)]);
    project.ci(&["build"]).run().exits(0);
    let image = Image::read(&project.path().join("target/ci"));
    assert_eq!(image.config["created"], TIME_IN_UTC);
    for entry in image.config["history"].as_array().unwrap() {
        assert_eq!(entry["created"], TIME_IN_UTC);
    }
    let env = image.config["config"]["Env"].as_array().unwrap();
    let time = format!("APP_BUILD_TIME={TIME_IN_UTC}");
    assert!(env.contains(&time.as_str().into()), "{env:?}");

    let mut entries = 0;
    for layer in &image.layers {
        for entry in tar::Archive::new(&layer[..]).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(header.mtime().unwrap(), 0);
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.username().unwrap().unwrap_or_default(), "");
            assert_eq!(header.groupname().unwrap().unwrap_or_default(), "");
            entries += 1;
        }
    }
    assert_eq!(
        entries, 5,
        "the binary, the folders above the part, the part"
    );
}

/// A function that identifies the image at run time, by the commit in its configuration and a hash of the binary.
const IDENTITY: &str = r#"
fn identity() -> String {
    let program = std::fs::read("/proc/self/exe").expect("it is running");
    let commit = std::env::var("APP_COMMIT").unwrap_or_default();
    format!("{commit} {}", hash(&program))
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hasher::write(&mut hasher, bytes);
    std::hash::Hasher::finish(&hasher)
}
"#;

#[test]
fn scan_smoke_test_and_registry_see_the_same_image() {
    let project = Project::new("one-image");
    project.edit(MAIN, "\"listening\"", "\"{}\", identity()");
    project.edit(MAIN, "\n#[cfg(test)]", &format!("{IDENTITY}\n#[cfg(test)]"));
    project.format("");
    let commit = project.commit("a service that prints its identity");
    let registry = Registry::open();
    let run = project
        .ci(&["publish", "--registry", &registry.address()])
        .run()
        .exits(0);

    // The archive.
    let archive = project.path().join("target/ci/image.tar");
    let digest = archive::read_digest(&archive).unwrap();
    let image = Image::read(&project.path().join("target/ci"));
    let config = &image.manifest["config"]["digest"];
    assert_eq!(run.report["digest"], digest.as_str());

    // The image that Trivy has scanned.
    let trivy: Value = serde_json::from_str(&project.read("target/ci/trivy.json")).unwrap();
    assert_eq!(trivy["Metadata"]["ImageID"], *config);
    assert_eq!(
        trivy["Metadata"]["DiffIDs"],
        image.config["rootfs"]["diff_ids"]
    );

    // The image of the smoke test, according to the service's own output.
    let program = &image.entries()["api"].1;
    let mut hasher = DefaultHasher::new();
    hasher.write(program);
    let identity = format!("{commit} {}", hasher.finish());
    let log = project.read("target/ci/logs/smoke.log");
    assert!(log.contains(&identity), "{identity} is not in: {log}");

    // The content in the registry.
    let tag = short_sha(&project);
    let manifest = registry.manifest(project.repository(), &tag);
    assert_eq!(digest::sha256(&manifest), digest);
    for blob in [config, &image.manifest["layers"][0]["digest"]] {
        let digest = blob.as_str().unwrap();
        let published = registry.blob(project.repository(), digest);
        assert_eq!(digest::sha256(&published), digest);
        assert_eq!(
            published,
            archive::read_entry(&archive, &archive::blob_path(digest)).unwrap()
        );
    }
}

#[test]
fn publishes_nothing_when_the_archive_changes_before_the_push() {
    let project = Project::new("changed-archive");
    let archive = project.path().join("target/ci/image.tar");
    // The archive is changed on the request for the tag, which comes after all gates and before the push.
    let registry = FakeRegistry::new("127.0.0.1", move |head| {
        if head.starts_with("POST") {
            let headers = [("location", "/v2/upload"), ("content-length", "0")];
            return response("202 Accepted", &headers, "");
        }
        if head.contains("/manifests/") {
            if let Ok(mut bytes) = std::fs::read(&archive) {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&archive, bytes).unwrap();
            }
            return response("404 Not Found", &[], "");
        }
        response("200 OK", &[], "")
    });
    let run = project
        .ci(&["publish", "--registry", &registry.address()])
        .run()
        .exits(1)
        .only_fails("publish")
        .says("was changed during the run");
    assert_eq!(run.status("smoke"), "passed");
    let puts = |head: &String| head.starts_with("PUT") || head.starts_with("PATCH");
    assert!(!registry.requests().iter().any(puts));
}
