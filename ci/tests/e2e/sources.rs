//! What is tested, built and smoke-tested is what the report says, whatever the files, git or a cache look like.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Outcome, Project};
use crate::image::Image;

const MAIN: &str = "api/src/main.rs";
/// The first words of the service, which are in its binary and in its log.
const WORDS: &str = "\"listening\"";

/// The tag that git gives HEAD.
pub fn short(project: &Project) -> String {
    project.git(&["rev-parse", "--short", "HEAD"])
}

/// `ci build`, to a good end.
#[track_caller]
fn build(project: &Project) -> Outcome {
    project.ci(&["build"]).run().exits(0)
}

/// The binary that the last run built holds `marker`, and none of `others`.
#[track_caller]
pub fn holds(top: &Path, marker: &str, others: &[&str]) {
    let image = Image::of(&top.join("target/ci"));
    let layer = image.layer();
    let has = |text: &str| {
        layer
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(has(marker), "{marker} is not in what was built");
    for other in others {
        assert!(!has(other), "{other} is in what was built");
    }
}

/// The report names HEAD, and says that nothing was changed against it.
#[track_caller]
fn says_head(project: &Project, run: &Outcome) {
    assert_eq!(run.report["commit"], project.git(&["rev-parse", "HEAD"]));
    assert_eq!(run.report["clean"], true);
    assert_eq!(run.report["tag"], short(project));
}

pub fn is_from_2001(file: &Path) {
    let status = Command::new("touch")
        .args(["--date=2001-01-01T00:00:00Z"])
        .arg(file)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_change_counts_though_its_file_is_from_2001() {
    let project = Project::new("from-2001");
    project.edit(MAIN, WORDS, "\"marker one\"");
    project.commit("one");
    build(&project);
    holds(project.path(), "marker one", &[]);
    project.ci(&["test"]).run().exits(0);

    project.edit(MAIN, "marker one", "marker two");
    project.edit(MAIN, "contains(\" 200 \")", "contains(\" 500 \")");
    is_from_2001(&project.path().join(MAIN));
    // Neither the file's time nor that of its commit tells anything.
    let uncommitted = build(&project);
    assert_eq!(uncommitted.report["clean"], false);
    holds(project.path(), "marker two", &["marker one"]);
    project.ci(&["test"]).run().exits(1).only_fails("test");

    project.commit("two");
    let run = build(&project);
    says_head(&project, &run);
    holds(project.path(), "marker two", &["marker one"]);
    project
        .ci(&["test"])
        .run()
        .exits(1)
        .only_fails("test")
        .says("it_answers_well");

    project.git(&["checkout", "--quiet", "HEAD~1"]);
    is_from_2001(&project.path().join(MAIN));
    project.ci(&["test"]).run().exits(0);
    says_head(&project, &build(&project));
    holds(project.path(), "marker one", &["marker two"]);
}

#[test]
fn a_switch_of_branches_and_back_ships_each_time_the_right_one() {
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
        says_head(&project, &run);
        let (ours, theirs) = (format!("marker of {branch}"), format!("marker of {other}"));
        holds(project.path(), &ours, &[&theirs]);
        // What was started is what was built.
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
fn what_git_was_told_to_overlook_does_not_ship() {
    let project = Project::new("overlooked");
    project.edit(MAIN, WORDS, "\"marker of HEAD\"");
    project.commit("HEAD's");
    for flag in ["assume-unchanged", "skip-worktree"] {
        let marker = format!("marker under {flag}");
        project.git(&["update-index", &format!("--{flag}"), MAIN]);
        project.edit(MAIN, "marker of HEAD", &marker);
        project.edit(MAIN, "contains(\" 200 \")", "contains(\" 500 \")");
        let run = build(&project);
        says_head(&project, &run);
        holds(project.path(), "marker of HEAD", &[&marker]);
        // Nor is it tested.
        project.ci(&["test"]).run().exits(0);
        project.git(&["update-index", &format!("--no-{flag}"), MAIN]);
        project.git(&["checkout", "--quiet", "--", MAIN]);
    }
}

#[test]
fn a_replaced_object_does_not_ship() {
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
    holds(
        project.path(),
        "marker of the commit",
        &["marker of another"],
    );
}

#[test]
fn filters_and_attributes_change_nothing() {
    let project = Project::new("filters");
    project.edit(
        MAIN,
        WORDS,
        "concat!(\"marker of the object\", include_str!(\"expanded.txt\"), include_str!(\"ident.txt\"))",
    );
    project.write("api/src/expanded.txt", "commit $Format:%H$ end");
    project.write("api/src/ident.txt", "blob $Id$ end");
    project.write(
        ".gitattributes",
        "api/src/main.rs filter=swap export-ignore\napi/src/expanded.txt export-subst\napi/src/ident.txt ident\n",
    );
    project.commit("with attributes");
    // As on the machine of somebody whose configuration has such a filter.
    project.git(&[
        "config",
        "filter.swap.smudge",
        "sed 's/marker of the object/marker of the filter/'",
    ]);
    project.git(&[
        "config",
        "filter.swap.clean",
        "sed 's/marker of the filter/marker of the object/'",
    ]);
    for path in [MAIN, "api/src/ident.txt"] {
        std::fs::remove_file(project.path().join(path)).unwrap();
        project.git(&["checkout", "--quiet", "--", path]);
    }
    let on_disk = std::fs::read_to_string(project.path().join(MAIN)).unwrap();
    assert!(on_disk.contains("marker of the filter"), "{on_disk}");
    let run = build(&project);
    says_head(&project, &run);
    holds(
        project.path(),
        "marker of the object",
        &["marker of the filter"],
    );
    holds(project.path(), "commit $Format:%H$ endblob $Id$ end", &[]);
}

#[test]
fn a_dirty_tree_is_what_git_tracks_or_does_not_ignore() {
    let project = Project::new("dirty");
    // A build script is found by its name: it counts while it is there.
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
    holds(project.path(), "marker of the script", &[]);

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
    // Cargo would stop at this one.
    project.write(".cargo/config.toml", "this is not TOML");
    let run = build(&project);
    assert_eq!(run.report["clean"], false);
    let tag = format!("{}-dirty", short(&project));
    assert_eq!(run.report["tag"], tag.as_str());
    let image = run.report["image"].as_str().unwrap();
    assert!(image.ends_with(&format!(":{tag}")), "{image}");
    holds(
        project.path(),
        "marker, untracked",
        &["marker of the script"],
    );
}

#[test]
fn an_edit_during_the_run_does_not_ship() {
    let project = Project::new("edited-meanwhile");
    project.edit(MAIN, WORDS, "\"marker before\"");
    project.commit("before");
    let run = while_running(&project, || {
        project.edit(MAIN, "marker before", "marker during");
    });
    says_head(&project, &run);
    holds(project.path(), "marker before", &["marker during"]);

    // It is part of the next run, and what comes during that is not.
    let run = while_running(&project, || {
        project.edit(MAIN, "marker during", "marker after");
    });
    assert_eq!(run.report["clean"], false);
    holds(
        project.path(),
        "marker during",
        &["marker before", "marker after"],
    );
}

/// Runs `ci build`, and does `work` when it has said what it builds.
fn while_running(project: &Project, work: impl FnOnce()) -> Outcome {
    let mut child = project
        .ci(&["build"])
        .into_command()
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = lines.next().unwrap().unwrap();
    assert!(said.contains("commit "), "{said}");
    work();
    for line in lines {
        said += &format!("\n{}", line.unwrap());
    }
    let report = project.path().join("target/ci/report.json");
    let run = Outcome {
        code: child.wait().unwrap().code().unwrap(),
        stdout: String::new(),
        stderr: said,
        report: serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap(),
    };
    run.exits(0)
}

#[test]
fn what_a_build_script_saw_counts_though_cargo_was_not_told() {
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
    holds(project.path(), "marker of nothing", &[]);

    project.write("api/seen.txt", "marker when new\n");
    project.commit("the file comes");
    build(&project);
    holds(project.path(), "marker when new", &["marker of nothing"]);

    project.write("api/seen.txt", "marker of change\n");
    project.commit("the file changes");
    build(&project);
    holds(project.path(), "marker of change", &["marker when new"]);

    project.git(&["rm", "--quiet", "api/seen.txt"]);
    // Not a tree that was built before, which the engine would remember.
    project.edit(MAIN, "ok\"", "OK\"");
    project.commit("the file goes");
    build(&project);
    holds(project.path(), "marker of nothing", &["marker of change"]);
}

#[test]
fn what_a_macro_saw_counts_though_cargo_was_not_told() {
    let project = Project::new("macro");
    project.write(
        "Cargo.toml",
        "[workspace]\nmembers = [\"api\", \"listing\"]\nresolver = \"3\"\n",
    );
    project.write(
        "listing/Cargo.toml",
        "[package]\nname = \"listing\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[lib]\nproc-macro = true\n",
    );
    // As crates do that embed a folder's files, migrations and templates.
    project.write(
        "listing/src/lib.rs",
        r#"use proc_macro::TokenStream;

#[proc_macro]
pub fn parts(_: TokenStream) -> TokenStream {
    let mut parts: Vec<_> = std::fs::read_dir("api/parts")
        .expect("the folder is there")
        .map(|part| std::fs::read_to_string(part.expect("a part").path()).expect("text"))
        .collect();
    parts.sort();
    format!("{:?}", parts.concat()).parse().expect("a literal")
}
"#,
    );
    project.write("api/parts/one.txt", "marker of one, ");
    project.edit(MAIN, WORDS, "\"{}\", listing::parts!()");
    project.depend("listing = { path = \"../listing\" }");
    project.commit("one part");
    build(&project);
    holds(project.path(), "marker of one, ", &["marker of two"]);

    project.write("api/parts/two.txt", "marker of two, ");
    project.commit("a part comes");
    build(&project);
    holds(project.path(), "marker of one, marker of two, ", &[]);

    project.write("api/parts/two.txt", "marker of change, ");
    project.commit("a part changes");
    build(&project);
    holds(project.path(), "marker of change, marker of one, ", &[]);
}

#[cfg(unix)]
#[test]
fn a_symbolic_link_that_leads_elsewhere_counts() {
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
    holds(project.path(), "marker one", &["marker two"]);
    points_to("two.rs");
    build(&project);
    holds(project.path(), "marker two", &["marker one"]);
}
