//! Services whose repository has something special, taken through `ci init` and `ci run`.

use crate::harness::{Outcome, Project, git};
use crate::workspaces::{IGNORED, package, service};

#[test]
fn a_service_with_a_submodule_passes_after_init() {
    let project = Project::new("with-submodule");
    let origin = tempfile::tempdir().unwrap();
    git(origin.path(), &["init", "--quiet"]);
    std::fs::write(origin.path().join("name.txt"), "of the submodule").unwrap();
    git(origin.path(), &["add", "."]);
    git(origin.path(), &["commit", "--quiet", "--message", "a name"]);
    let url = origin.path().to_str().unwrap();
    let allow = "protocol.file.allow=always";
    project.git(&[
        "-c",
        allow,
        "submodule",
        "add",
        "--quiet",
        url,
        "vendor/dep",
    ]);
    project.extend_test(
        r#"assert_eq!(include_str!("../../vendor/dep/name.txt"), "of the submodule");"#,
    );
    project.format("");
    project.ci(&["init"]).run().exits(0);
    project.commit("a submodule, and the settings");
    let run = project.ci(&[]).run().exits(0);
    assert_eq!(run.report["clean"], true);
    assert_passes_every_gate(&run);

    // On a small machine, one cargo runs at a time, with one compiler.
    project.extend_test(r#"assert_eq!(std::env::var("CARGO_BUILD_JOBS").as_deref(), Ok("1"));"#);
    project.format("");
    let run = project
        .ci(&["--keep-going"])
        .env("LAB_CI_JOBS", "1")
        .env("LAB_CI_MEMORY", "2GiB")
        .run()
        .exits(0)
        .says("1 of 3 cargos with 1 compiler each: steps take turns");
    let time = |step: &str| {
        let steps = run.report["steps"].as_array().unwrap();
        let record = steps.iter().find(|it| it["name"] == step).unwrap();
        let start: jiff::Timestamp = record["start"].as_str().unwrap().parse().unwrap();
        let start = start.as_millisecond();
        (start, start + record["duration_ms"].as_i64().unwrap())
    };
    let mut times = ["test", "lint", "build"].map(time);
    times.sort_unstable();
    for pair in times.windows(2) {
        assert!(
            pair[0].1 <= pair[1].0 + 1,
            "two at the same time: {times:?}"
        );
    }
}

fn assert_passes_every_gate(run: &Outcome) {
    for step in ["test", "fmt", "lint", "build", "scan", "smoke"] {
        assert_eq!(run.status(step), "passed", "{step}");
    }
}

/// A build script that asks git for the commit.
const DESCRIBE: &str = r#"fn main() {
    let mut git = std::process::Command::new("git");
    let output = git.args(["describe", "--always", "--tags", "--dirty"]).output().expect("git");
    assert!(output.status.success(), "git describe failed");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("cargo:rustc-env=GIT_DESCRIBE={}", text.trim());
}
"#;

#[test]
fn a_build_script_that_asks_git_passes_with_the_setting_that_the_hint_names() {
    let project = Project::new("with-git-describe");
    project.write("api/build.rs", DESCRIBE);
    project.extend_test(
        r#"std::io::Write::write_all(&mut std::io::stderr(), concat!("at ", env!("GIT_DESCRIBE"), "\n").as_bytes()).unwrap();"#,
    );
    project.format("");
    project.ci(&["init"]).run().exits(0);
    project.edit("ci.toml", "\ncommit = true\n", "\ncommit = false\n");
    project
        .ci(&["lint"])
        .run()
        .exits(1)
        .says("set `commit = true` in [build] of ci.toml");

    project.edit("ci.toml", "\ncommit = false\n", "\ncommit = true\n");
    let commit = project.commit("a build script, and the settings as init has written them");
    let run = project.ci(&[]).run().exits(0);
    assert_passes_every_gate(&run);
    let tested_at = |commit: &str| {
        let log = project.read("target/ci/logs/test.log");
        assert!(log.contains(&format!("at {commit}\n")), "{commit}:\n{log}");
    };
    tested_at(&commit[..7]);

    // Cargo would not run the build script again.
    project.write("README.md", "A service.\n");
    let commit = project.commit("documentation");
    project.ci(&["test"]).run().exits(0);
    tested_at(&commit[..7]);
    project.write("README.md", "Not committed.\n");
    project.ci(&["test"]).run().exits(0);
    tested_at(&format!("{}-dirty", &commit[..7]));
}

/// The newest releases that compile with the pinned toolchain. Of the features that let `built` know the commit, `git2` needs the
/// fewest crates; neither it nor libgit2 finds a repository in the containers.
const COMMIT_READERS: &str = r#"
[dependencies]
shadow-rs = { version = "=2.0.0", default-features = false }

[build-dependencies]
built = { version = "=0.8.1", default-features = false, features = ["git2"] }
shadow-rs = { version = "=2.0.0", default-features = false, features = ["build"] }
vergen-gitcl = { version = "=9.1.0", default-features = false }
"#;

/// As the documentation of the three crates says.
const READ_COMMIT: &str = r#"fn main() -> Result<(), Box<dyn std::error::Error>> {
    let git = vergen_gitcl::GitclBuilder::all_git()?;
    vergen_gitcl::Emitter::default().add_instructions(&git)?.emit()?;
    built::write_built_file()?;
    shadow_rs::ShadowBuilder::builder().build()?;
    Ok(())
}
"#;

const COMMITS: &str = r#"
shadow_rs::shadow!(build);

#[allow(dead_code)]
mod built {
    include!(concat!(env!("OUT_DIR"), "/built.rs"));
}

/// What each crate says, and how long its SHA is.
fn commits() -> [(&'static str, usize); 7] {
    [
        (env!("VERGEN_GIT_SHA"), 40),
        (env!("VERGEN_GIT_DESCRIBE"), 7),
        (built::GIT_COMMIT_HASH.unwrap_or("none"), 40),
        (built::GIT_COMMIT_HASH_SHORT.unwrap_or("none"), 7),
        (built::GIT_VERSION.unwrap_or("none"), 7),
        (build::COMMIT_HASH, 40),
        (build::SHORT_COMMIT, 7),
    ]
}
"#;

/// An image has its commit in its environment, without the help of these crates.
const ARE_THAT_OF_THE_IMAGE: &str = r#"    let commit = std::env::var("APP_COMMIT").map_err(|error| error.to_string())?;
    let is_right = |(sha, length): &(&str, usize)| commit.get(..*length) == Some(*sha);
    if request.is_empty() || !commits().iter().all(is_right) {
        return Err(format!("{:?} in the image of {commit}", commits()));
    }
    Ok(())"#;

/// Only the steps that start the service: in each step that compiles, a new commit also compiles libgit2 anew, because the crate `cc`
/// depends on `SOURCE_DATE_EPOCH`. The volume of the previous run has another commit, which none of the crates may keep.
#[test]
fn a_service_knows_its_commit_from_vergen_built_and_shadow() {
    let main = format!("{}{COMMITS}", service(8000, ARE_THAT_OF_THE_IMAGE));
    let files = [
        IGNORED,
        ("Cargo.toml", &package("shop", COMMIT_READERS)),
        ("build.rs", READ_COMMIT),
        ("src/main.rs", &main),
    ];
    let project = Project::of("with-commit-readers", &files);
    project.lock("");
    project.ci(&["init"]).run().exits(0);
    let commit = project.commit("the settings as init has written them");
    let run = project.ci(&["smoke"]).run().exits(0);
    assert_eq!(run.report["clean"], true);
    assert_eq!(run.report["commit"], commit);
    assert_eq!(run.status("smoke"), "passed");
}
