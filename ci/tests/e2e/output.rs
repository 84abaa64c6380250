//! What `ci` makes of the output of a step's commands: causes, counts, and what it shows of them.

use crate::harness::Project;

/// A project whose package is not at the top of the repository.
fn nested(name: &str) -> Project {
    Project::of(
        name,
        &[
            (
                "backend/Cargo.toml",
                "[package]\nname = \"api\"\nversion = \"1.2.3\"\nedition = \"2024\"\n\n[workspace]\n",
            ),
            (
                "backend/Cargo.lock",
                "version = 4\n\n[[package]]\nname = \"api\"\nversion = \"1.2.3\"\n",
            ),
            (".gitignore", "target\n"),
            ("backend/src/main.rs", crate::harness::SERVICE),
        ],
    )
}

/// A library with a failing doc test and a warning of clippy.
const LIBRARY: &str = "/// Doubles.
///
/// ```
/// assert_eq!(api::double(2), 5);
/// ```
pub fn double(n: u32) -> u32 {
    return n * 2;
}
";

/// A comment that no earlier run has compiled.
fn new_comment() -> String {
    format!("// {:?}\n", std::time::SystemTime::now())
}

#[test]
fn names_the_cause_of_each_failure_with_its_place_in_the_working_tree() {
    let project = nested("causes");
    project.write("backend/src/lib.rs", &format!("{LIBRARY}{}", new_comment()));
    project.edit(
        "backend/src/main.rs",
        "    println!(\"listening\");\n",
        "  println!(\"listening\");\n",
    );
    project.write(
        "backend/tests/two.rs",
        "#[test]\nfn fails() {\n    assert_eq!(1, 2, \"one is not two\");\n}\n\n#[test]\nfn passes() {}\n\n#[test]\n#[ignore = \"slow\"]\nfn slow() {}\n",
    );
    project.commit("a failing test and doc test, a warning of clippy, and a bad format");
    let run = project
        .ci(&["run", "--workspace", "backend", "--report-dir", "target/ci"])
        .run()
        .exits(1);
    let causes = |step: &str| -> Vec<String> {
        let causes = run.step(step)["causes"].as_array().unwrap();
        causes
            .iter()
            .map(|cause| {
                format!(
                    "{} {}:{} {}",
                    cause["kind"].as_str().unwrap(),
                    cause["location"]["file"].as_str().unwrap(),
                    cause["location"]["line"],
                    cause["title"].as_str().unwrap()
                )
            })
            .collect()
    };
    // All test binaries ran, although the first failed.
    assert_eq!(
        causes("test"),
        [
            "test backend/tests/two.rs:3 fails",
            "test backend/src/lib.rs:3 src/lib.rs - double (line 3)",
        ]
    );
    assert_eq!(
        run.step("test")["tests"],
        serde_json::json!({ "passed": 2, "failed": 2, "ignored": 1 })
    );
    assert_eq!(
        causes("lint"),
        ["diagnostic backend/src/lib.rs:7 unneeded `return` statement [clippy::needless_return]"]
    );
    assert_eq!(
        causes("fmt"),
        ["format backend/src/main.rs:7 not formatted"]
    );
    // Paths are those of the working tree, and stderr has the order of the output.
    assert!(!run.stderr.contains("/work/src"), "{}", run.stderr);
    let log = project.read("target/ci/logs/test.log");
    assert!(!log.contains("/work/src"), "{log}");
    let compiling = log.find("Compiling api").unwrap();
    assert!(compiling < log.find("test passes ... ok").unwrap(), "{log}");
    // The end fits a terminal.
    let end: Vec<_> = run.stderr.lines().rev().take(22).collect();
    for part in [
        "backend/tests/two.rs:3:5 fails",
        "one is not two",
        "backend/src/lib.rs:7:5 unneeded `return` statement",
        "backend/src/main.rs:7 not formatted",
    ] {
        assert!(
            end.iter().any(|line| line.contains(part)),
            "{part}:\n{}",
            run.stderr
        );
    }
    assert!(
        end[0].ends_with("(exit code 1): test, fmt, lint"),
        "{}",
        end[0]
    );
}

#[test]
fn shows_hostile_output_and_executes_none_of_it() {
    let project = Project::new("hostile");
    project.extend_test(
        r#"use std::io::Write;
        let mut all = std::io::stderr();
        all.write_all(b"\x1b[31mred \xff\xfe\n::error::forged\n##[error]forged\n").unwrap();
        all.write_all(&[b'x'; 50_000]).unwrap();
        all.write_all(b"\nend of the line\n").unwrap();
        println!("::set-output name=a::b");
        panic!("::error::\x1b[2Jforged");"#,
    );
    project.commit("hostile output");
    for format in ["human", "github"] {
        for verbose in [false, true] {
            let mut arguments = vec!["test", "--format", format];
            arguments.extend(verbose.then_some("-v"));
            let run = project.ci(&arguments).run().exits(1);
            assert!(!run.stderr.contains('\u{1b}'), "{:?}", run.stderr);
            run.clone().says("␛[31mred ").says("end of the line");
            if format == "github" {
                assert!(!run.stderr.contains("##["), "{}", run.stderr);
                assert_commands_are_own(&run.stderr);
            }
        }
    }
    let log = std::fs::read(project.path().join("target/ci/logs/test.log")).unwrap();
    assert!(log.len() > 50_000, "the log is complete");
}

#[test]
fn cuts_floods_and_keeps_them_in_the_log() {
    let project = Project::new("flood");
    project.extend_test(
        r#"println!("{}", "x".repeat(1_000_000));
        for number in 0..50_000 { println!("line {number}"); }
        panic!("not today");"#,
    );
    project.commit("a flood");
    for format in ["human", "github"] {
        let run = project.ci(&["test", "--format", format]).run().exits(1);
        assert!(run.stderr.len() < 100_000, "{}", run.stderr.len());
        run.says("lines left out, see target/ci/logs/test.log")
            .says("not today");
    }
    let log = project.read("target/ci/logs/test.log");
    assert!(log.len() > 1_500_000, "{}", log.len());
    assert!(log.contains("\nline 25000\n"));
}

/// Asserts that GitHub would execute only commands of `ci`.
#[track_caller]
fn assert_commands_are_own(log: &str) {
    let mut stopped: Option<String> = None;
    for line in log.lines() {
        let line = line.trim_start();
        if let Some(word) = &stopped {
            if line == format!("::{word}::") {
                stopped = None;
            }
        } else if let Some(word) = line.strip_prefix("::stop-commands::") {
            stopped = Some(word.to_owned());
        } else if line.starts_with("::") {
            let own = [
                "::group::",
                "::endgroup::",
                "::error file=api/src/main.rs,line=",
            ];
            assert!(own.iter().any(|start| line.starts_with(start)), "{line}");
        }
    }
}

#[test]
fn reports_a_step_that_is_stuck() {
    let project = Project::new("stuck");
    project.write("ci.toml", "stuck-after = \"6s\"\n");
    let now = std::time::SystemTime::now();
    // Busy and silent, then idle and silent.
    project.extend_test(&format!(
        "// {now:?}
        let begun = std::time::Instant::now();
        while begun.elapsed() < std::time::Duration::from_secs(10) {{}}
        {}
        std::thread::sleep(std::time::Duration::from_secs(14));",
        crate::harness::TEST_RUNS
    ));
    project.commit("a test that waits");
    let run = project.ci(&["test"]).run().exits(0);
    assert_eq!(
        run.stderr.matches("test seems to be stuck").count(),
        1,
        "{}",
        run.stderr
    );
    run.says("no CPU for 6s; its last line is: the test runs");
}

#[test]
fn quiet_and_verbose_runs_show_each_line_at_most_once() {
    let project = Project::new("lines");
    project.edit(
        "api/src/main.rs",
        "fn answer()",
        &format!("{}fn unused() {{}}\n\nfn answer()", new_comment()),
    );
    project.commit("a warning");
    let run = project.ci(&["test", "-v"]).run().exits(0);
    for line in [
        "warning: function `unused` is never used",
        "Compiling api v1.2.3 (api)",
        "test tests::answers_with_200 ... ok",
    ] {
        assert_eq!(
            run.stderr.matches(line).count(),
            1,
            "{line}:\n{}",
            run.stderr
        );
    }
    assert!(!run.stderr.contains("{\""), "{}", run.stderr);
    let quiet = project.ci(&["test", "-q"]).run().exits(0);
    assert_eq!(quiet.stderr.lines().count(), 1, "{}", quiet.stderr);
}
