//! `ci` tests and builds exactly the sources that its report names, regardless of file times, git settings, and caches.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Outcome, Project};
use crate::image::Image;

const MAIN: &str = "api/src/main.rs";
/// The first output of the service. It is contained in the binary and the log.
const WORDS: &str = "\"listening\"";

/// The abbreviated SHA of HEAD.
pub fn short_sha(project: &Project) -> String {
    project.git(&["rev-parse", "--short=7", "HEAD"])
}

/// Runs `ci build` successfully.
#[track_caller]
fn build(project: &Project) -> Outcome {
    project.ci(&["build"]).run().exits(0)
}

/// Asserts that the binary of the last run contains `marker`, and none of `others`.
#[track_caller]
pub fn assert_binary_contains(top: &Path, marker: &str, others: &[&str]) {
    let image = Image::read(&top.join("target/ci"));
    let layer = image.layer();
    let has = |text: &str| {
        layer
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(has(marker), "the binary does not contain {marker}");
    for other in others {
        assert!(!has(other), "the binary contains {other}");
    }
}

/// Asserts that the report names HEAD and a clean working tree.
#[track_caller]
fn assert_at_head(project: &Project, run: &Outcome) {
    assert_eq!(run.report["commit"], project.git(&["rev-parse", "HEAD"]));
    assert_eq!(run.report["clean"], true);
    assert_eq!(run.report["tag"], short_sha(project));
}

/// Sets the modification time of a file to 2001.
pub fn set_mtime_to_2001(file: &Path) {
    let status = Command::new("touch")
        .args(["--date=2001-01-01T00:00:00Z"])
        .arg(file)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn builds_a_change_despite_an_old_modification_time() {
    let project = Project::new("from-2001");
    project.edit(MAIN, WORDS, "\"marker one\"");
    project.commit("one");
    build(&project);
    assert_binary_contains(project.path(), "marker one", &[]);
    project.ci(&["test"]).run().exits(0);

    project.edit(MAIN, "marker one", "marker two");
    project.edit(MAIN, "contains(\" 200 \")", "contains(\" 500 \")");
    set_mtime_to_2001(&project.path().join(MAIN));
    // Neither the file's time nor a commit reveals the change.
    let uncommitted = build(&project);
    assert_eq!(uncommitted.report["clean"], false);
    assert_binary_contains(project.path(), "marker two", &["marker one"]);
    project.ci(&["test"]).run().exits(1).only_fails("test");

    project.commit("two");
    let run = build(&project);
    assert_at_head(&project, &run);
    assert_binary_contains(project.path(), "marker two", &["marker one"]);
    project
        .ci(&["test"])
        .run()
        .exits(1)
        .only_fails("test")
        .says("answers_with_200");

    project.git(&["checkout", "--quiet", "HEAD~1"]);
    set_mtime_to_2001(&project.path().join(MAIN));
    project.ci(&["test"]).run().exits(0);
    assert_at_head(&project, &build(&project));
    assert_binary_contains(project.path(), "marker one", &["marker two"]);
}

#[test]
fn builds_the_checked_out_branch_after_each_switch() {
    let project = Project::new("branches");
    project.edit(MAIN, WORDS, "\"marker of main\"");
    project.commit("main's");
    project.git(&["switch", "--quiet", "--create", "topic"]);
    project.edit(MAIN, "marker of main", "marker of topic");
    project.commit("topic's");

    let mut digests = Vec::new();
    for (branch, other) in [
        ("topic", "main"),
        ("main", "topic"),
        ("topic", "main"),
        ("main", "topic"),
    ] {
        project.git(&["switch", "--quiet", branch]);
        let run = project.ci(&["smoke"]).run().exits(0);
        assert_at_head(&project, &run);
        let (ours, theirs) = (format!("marker of {branch}"), format!("marker of {other}"));
        assert_binary_contains(project.path(), &ours, &[&theirs]);
        // The smoke test has started the built image.
        let log = project.path().join("target/ci/logs/smoke.log");
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains(&ours) && !log.contains(&theirs), "{log}");
        assert_eq!(run.step("smoke")["digest"], run.report["digest"]);
        digests.push(run.report["digest"].clone());
    }
    assert_ne!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2]);
    assert_eq!(digests[1], digests[3]);
}

#[test]
fn ignores_changes_hidden_from_git() {
    let project = Project::new("overlooked");
    project.edit(MAIN, WORDS, "\"marker of HEAD\"");
    project.commit("HEAD's");
    for flag in ["assume-unchanged", "skip-worktree"] {
        let marker = format!("marker under {flag}");
        project.git(&["update-index", &format!("--{flag}"), MAIN]);
        project.edit(MAIN, "marker of HEAD", &marker);
        project.edit(MAIN, "contains(\" 200 \")", "contains(\" 500 \")");
        let run = build(&project);
        assert_at_head(&project, &run);
        assert_binary_contains(project.path(), "marker of HEAD", &[&marker]);
        // The tests ignore the change, too.
        project.ci(&["test"]).run().exits(0);
        project.git(&["update-index", &format!("--no-{flag}"), MAIN]);
        project.git(&["checkout", "--quiet", "--", MAIN]);
    }
}

#[test]
fn ignores_replaced_git_objects() {
    let project = Project::new("replaced");
    project.edit(MAIN, WORDS, "\"marker of the commit\"");
    let commit = project.commit("the one");
    project.git(&["switch", "--quiet", "--create", "other"]);
    project.edit(MAIN, "marker of the commit", "marker of another");
    project.commit("another");
    project.git(&["switch", "--quiet", "main"]);
    project.git(&["replace", "main:api/src/main.rs", "other:api/src/main.rs"]);
    project.git(&["replace", "main", "other"]);
    let run = build(&project);
    assert_eq!(run.report["commit"], commit);
    assert_eq!(run.report["clean"], true);
    assert_binary_contains(
        project.path(),
        "marker of the commit",
        &["marker of another"],
    );
}

#[test]
fn ships_the_files_that_attributes_and_git_lfs_stand_for() {
    let project = Project::new("filters");
    let content = "a large file";
    project.write(".gitattributes", "*.bin filter=lfs\n*.crlf eol=crlf\n");
    project.write("api/data/lines.crlf", "one\ntwo\n");
    project.add_to_lfs("api/data/large.bin", content);
    project.write("ci.toml", "[image]\nfiles = { \"api/data\" = \"/data\" }\n");
    project.commit("attributes");
    for state in ["clean", "dirty"] {
        if state == "dirty" {
            project.write("api/untracked.txt", "");
        }
        build(&project);
        let files = Image::read(&project.path().join("target/ci")).entries();
        assert_eq!(files["data/large.bin"].1, content.as_bytes(), "{state}");
        assert_eq!(files["data/lines.crlf"].1, b"one\r\ntwo\r\n", "{state}");
    }
}

#[test]
fn own_output_is_never_part_of_the_sources() {
    let project = Project::new("own-output");
    std::fs::remove_file(project.path().join(".gitignore")).unwrap();
    project.commit("nothing is ignored");
    for _ in 0..2 {
        let run = project
            .ci(&["fmt", "--report-dir", "reports"])
            .run()
            .exits(0);
        drop(run);
        assert_eq!(project.git(&["status", "--porcelain"]), "");
    }
}

#[test]
fn only_the_build_scripts_of_packages_run_again_after_a_change() {
    let project = Project::new("scripts");
    project.write(
        "api/Cargo.toml",
        "[package]\nname = \"api\"\nversion = \"1.2.3\"\nedition = \"2024\"\nbuild = \"generate.rs\"\n",
    );
    project.write("api/generate.rs", "fn main() {}\n");
    project.write("api/src/build.rs", "pub fn nothing() {}\n");
    project.edit(
        MAIN,
        "fn main() {",
        "mod build;\n\nfn main() {\n    build::nothing();",
    );
    project.write(
        "ci.toml",
        "[[gate]]\nname = \"times\"\nrun = \"stat --format '%n at %Y' api/generate.rs api/src/build.rs\"\n",
    );
    let mut times = Vec::new();
    for number in 0..2 {
        project.edit(
            MAIN,
            "\nfn answer()",
            &format!(
                "\n// {number} {:?}\nfn answer()",
                std::time::SystemTime::now()
            ),
        );
        project.commit("a changed line");
        project.ci(&["custom"]).run().exits(0);
        let log = project.read("target/ci/logs/custom.log");
        let lines: Vec<_> = log
            .lines()
            .filter(|line| line.contains(" at "))
            .map(ToOwned::to_owned)
            .collect();
        times.push(lines);
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    assert_ne!(times[0][0], times[1][0], "the build script is refreshed");
    assert_eq!(times[0][1], times[1][1], "a module called build.rs is not");
}

#[test]
fn builds_tracked_and_unignored_files_of_a_dirty_tree() {
    let project = Project::new("dirty");
    // cargo uses a build script with this name if it exists.
    project.write(
        "api/build.rs",
        "fn main() { println!(\"cargo::rustc-env=SCRIPT=marker of the script\"); }\n",
    );
    project.edit(
        MAIN,
        WORDS,
        "\"{}\", option_env!(\"SCRIPT\").unwrap_or(\"no script\")",
    );
    project.write(".gitignore", "/target\n/.cargo\n");
    project.commit("with a build script");
    build(&project);
    assert_binary_contains(project.path(), "marker of the script", &[]);

    std::fs::remove_file(project.path().join("api/build.rs")).unwrap();
    project.write(
        "api/src/untracked.rs",
        "pub const WORDS: &str = \"marker, untracked\";\n",
    );
    project.edit(
        MAIN,
        "\"{}\", option_env!(\"SCRIPT\").unwrap_or(\"no script\")",
        "\"{}{}\", untracked::WORDS, option_env!(\"SCRIPT\").unwrap_or(\"no script\")",
    );
    project.edit(MAIN, "fn main() {", "mod untracked;\n\nfn main() {");
    // This file would make cargo fail.
    project.write(".cargo/config.toml", "this is not TOML");
    let run = build(&project);
    assert_eq!(run.report["clean"], false);
    let tag = format!("{}-dirty", short_sha(&project));
    assert_eq!(run.report["tag"], tag.as_str());
    let image = run.report["image"].as_str().unwrap();
    assert!(image.ends_with(&format!(":{tag}")), "{image}");
    assert_binary_contains(
        project.path(),
        "marker, untracked",
        &["marker of the script"],
    );
}

#[test]
fn ignores_edits_during_the_run() {
    let project = Project::new("edited-meanwhile");
    project.edit(MAIN, WORDS, "\"marker before\"");
    project.commit("before");
    let run = build_during(&project, || {
        project.edit(MAIN, "marker before", "marker during");
    });
    assert_at_head(&project, &run);
    assert_binary_contains(project.path(), "marker before", &["marker during"]);

    // The edit is part of the next run, but an edit during that run is not.
    let run = build_during(&project, || {
        project.edit(MAIN, "marker during", "marker after");
    });
    assert_eq!(run.report["clean"], false);
    assert_binary_contains(
        project.path(),
        "marker during",
        &["marker before", "marker after"],
    );
}

/// Runs `ci build`, and calls `edit` once it has printed the commit.
fn build_during(project: &Project, edit: impl FnOnce()) -> Outcome {
    let mut child = project
        .ci(&["build"])
        .into_command()
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut stderr = lines.next().unwrap().unwrap();
    assert!(stderr.contains("commit "), "{stderr}");
    edit();
    for line in lines {
        stderr += &format!("\n{}", line.unwrap());
    }
    let report = project.path().join("target/ci/report.json");
    let run = Outcome {
        code: child.wait().unwrap().code().unwrap(),
        stdout: String::new(),
        stderr,
        report: serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap(),
    };
    run.exits(0)
}

#[test]
fn rebuilds_when_an_undeclared_input_of_a_build_script_changes() {
    let project = Project::new("build-script");
    project.write(
        "api/build.rs",
        r#"fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let seen = std::fs::read_to_string("seen.txt").unwrap_or("marker of nothing".into());
    println!("cargo::rustc-env=SEEN={}", seen.trim());
}
"#,
    );
    project.edit(MAIN, WORDS, "env!(\"SEEN\")");
    project.commit("without the file");
    build(&project);
    assert_binary_contains(project.path(), "marker of nothing", &[]);

    project.write("api/seen.txt", "marker when new\n");
    project.commit("the file comes");
    build(&project);
    assert_binary_contains(project.path(), "marker when new", &["marker of nothing"]);

    project.write("api/seen.txt", "marker of change\n");
    project.commit("the file changes");
    build(&project);
    assert_binary_contains(project.path(), "marker of change", &["marker when new"]);

    project.git(&["rm", "--quiet", "api/seen.txt"]);
    // A new tree, because the engine caches the result of the previous one.
    project.edit(MAIN, "ok\"", "OK\"");
    project.commit("the file goes");
    build(&project);
    assert_binary_contains(project.path(), "marker of nothing", &["marker of change"]);
}

#[test]
fn rebuilds_when_an_undeclared_input_of_a_macro_changes() {
    let project = Project::new("macro");
    project.write(
        "Cargo.toml",
        "[workspace]\nmembers = [\"api\", \"listing\"]\nresolver = \"3\"\n",
    );
    project.write(
        "listing/Cargo.toml",
        "[package]\nname = \"listing\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[lib]\nproc-macro = true\n",
    );
    // Like crates that embed a folder of files, migrations, or templates.
    project.write(
        "listing/src/lib.rs",
        r#"use proc_macro::TokenStream;

#[proc_macro]
pub fn parts(_: TokenStream) -> TokenStream {
    let mut parts: Vec<_> = std::fs::read_dir("api/parts")
        .expect("the folder exists")
        .map(|part| std::fs::read_to_string(part.expect("a part").path()).expect("text"))
        .collect();
    parts.sort();
    format!("{:?}", parts.concat()).parse().expect("a literal")
}
"#,
    );
    project.write("api/parts/one.txt", "marker of one, ");
    project.edit(MAIN, WORDS, "\"{}\", listing::parts!()");
    project.add_dependency("listing = { path = \"../listing\" }");
    project.commit("one part");
    build(&project);
    assert_binary_contains(project.path(), "marker of one, ", &["marker of two"]);

    project.write("api/parts/two.txt", "marker of two, ");
    project.commit("a part comes");
    build(&project);
    assert_binary_contains(project.path(), "marker of one, marker of two, ", &[]);

    project.write("api/parts/two.txt", "marker of change, ");
    project.commit("a part changes");
    build(&project);
    assert_binary_contains(project.path(), "marker of change, marker of one, ", &[]);
}

#[cfg(unix)]
#[test]
fn rebuilds_when_a_symbolic_link_changes() {
    let project = Project::new("link");
    let link = project.path().join("api/src/words.rs");
    let points_to = |name: &str| {
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(name, &link).unwrap();
        project.commit(name);
    };
    for name in ["one", "two"] {
        project.write(
            &format!("api/src/{name}.rs"),
            &format!("pub const WORDS: &str = \"marker {name}\";\n"),
        );
    }
    project.edit(MAIN, WORDS, "\"{}\", words::WORDS");
    project.edit(MAIN, "fn main() {", "mod words;\n\nfn main() {");
    points_to("one.rs");
    build(&project);
    assert_binary_contains(project.path(), "marker one", &["marker two"]);
    points_to("two.rs");
    build(&project);
    assert_binary_contains(project.path(), "marker two", &["marker one"]);
}
