//! How a run goes on and ends: failures together, limits, signals, reruns, and what programs read of it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Ended, Outcome, Project, TEST_RUNS};

/// A test that says that it runs, and does not end in a lifetime.
fn test_sleeps(project: &Project) {
    project.test_does(&format!(
        "{TEST_RUNS}\n        std::thread::sleep(std::time::Duration::from_secs(86400));"
    ));
}

fn break_format(project: &Project) {
    project.edit(
        "api/src/main.rs",
        "    println!(\"listening\");\n",
        "  println!(\"listening\");\n",
    );
}

#[test]
fn independent_gates_finish_and_a_failing_test_outweighs_a_vulnerability() {
    let project = Project::new("several-failures");
    project
        .depend(r#"regex = { version = "=1.5.4", default-features = false, features = ["std"] }"#);
    break_format(&project);
    project.test_does("assert!(std::env::args().count() > 9, \"not today\");");
    project.commit("a bad format, a failing test and a vulnerability");
    let run = project
        .ci(&[])
        .run()
        .exits(1)
        .says("not today")
        .says("CVE-2022-24713");
    for (step, status) in [
        ("test", "failed"),
        ("fmt", "failed"),
        ("lint", "passed"),
        ("build", "passed"),
        ("scan", "failed"),
        ("smoke", "passed"),
        ("publish", "skipped"),
    ] {
        assert_eq!(run.status(step), status, "{step}:\n{}", run.stderr);
    }
    assert_eq!(run.report["verdict"]["reason"], "gate_failed");
    run.publishes_nothing();
}

#[test]
fn fail_fast_cancels_what_still_runs() {
    let project = Project::new("fail-fast");
    break_format(&project);
    test_sleeps(&project);
    project.commit("a bad format, and a test that never ends");
    let run = project.ci(&["--fail-fast"]).run().exits(1);
    assert_eq!(run.status("fmt"), "failed");
    assert_eq!(run.status("test"), "cancelled");
    assert_eq!(run.status("publish"), "skipped");
    assert_eq!(run.report["verdict"]["exit_code"], 1);
    run.publishes_nothing();
}

#[test]
fn a_run_that_takes_too_long_ends_with_its_report() {
    let project = Project::new("time-limit");
    test_sleeps(&project);
    project.commit("a test that never ends");
    let run = project
        .ci(&["test", "--timeout", "3s"])
        .run()
        .exits(124)
        .says("time limit");
    assert_eq!(run.report["verdict"]["exit_code"], 124);
    assert_eq!(run.report["verdict"]["reason"], "timed_out");
    let steps = run.report["steps"].as_array().unwrap();
    assert!(
        steps.iter().all(|step| step["status"] == "cancelled"),
        "{steps:?}"
    );
}

/// Ends a run by `signal` while its test runs.
fn ends_by(signal: Signal, name: &str) {
    let project = Project::new(name);
    test_sleeps(&project);
    project.commit("a test that never ends");
    interrupt(&project, signal);
    // What was cancelled does not stand in the way of the next run: its test runs, too.
    interrupt(&project, signal);
}

fn interrupt(project: &Project, signal: Signal) {
    let ci = project
        .ci(&["-v", "--timeout", "5m"])
        .into_command()
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ci = Ended(ci);
    let mut said = String::new();
    let mut stderr = BufReader::new(ci.0.stderr.take().unwrap());
    while !said.contains("the test runs") {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "it ended:\n{said}");
    }
    let children = children(ci.0.id());
    assert!(
        children
            .iter()
            .any(|child| command_line(*child).contains("session")),
        "a session is open: {children:?}"
    );
    kill(Pid::from_raw(ci.0.id().try_into().unwrap()), signal).unwrap();
    // The rest is read, so that nobody waits for a full pipe.
    std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
    let code = ci.0.wait().unwrap().code();
    assert_eq!(code, Some(130), "{said}");
    for child in children {
        assert!(
            !command_line(child).contains("session"),
            "{child} was left behind: {}",
            command_line(child)
        );
    }
    let run = Outcome {
        code: 130,
        stdout: String::new(),
        stderr: said,
        report: serde_json::from_str(&project.read("target/ci/report.json")).unwrap(),
    };
    assert_eq!(run.status("test"), "cancelled");
    assert_eq!(run.report["verdict"]["reason"], "cancelled");
    assert_eq!(run.status("publish"), "skipped");
    run.publishes_nothing();
}

#[test]
fn an_interrupted_run_leaves_a_report_and_no_session() {
    ends_by(Signal::SIGINT, "interrupted");
}

#[test]
fn a_terminated_run_leaves_a_report_and_no_session() {
    ends_by(Signal::SIGTERM, "terminated");
}

/// The children of a process: of all its threads.
fn children(parent: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).unwrap();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|children| {
            children
                .split_whitespace()
                .map(|child| child.parse().unwrap())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The command line of a process; empty where there is none.
fn command_line(process: u32) -> String {
    std::fs::read_to_string(format!("/proc/{process}/cmdline"))
        .unwrap_or_default()
        .replace('\0', " ")
}

#[test]
fn a_test_that_fails_for_an_outside_reason_passes_when_it_is_run_again() {
    let project = Project::new("flaky");
    // What is outside of the sources here is a file in the volume of cargo's work, by a name that no run before had.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let marker = format!("/work/outage-{}", now.unwrap().as_nanos());
    project.test_does(&format!(
        r#"let over = std::path::Path::new("{marker}");
        if !over.exists() {{
            std::fs::write(over, "").unwrap();
            panic!("the other side is down");
        }}"#
    ));
    let commit = project.commit("a test of something outside");
    let first = project
        .ci(&["test"])
        .run()
        .exits(1)
        .says("the other side is down");
    let second = project.ci(&["test"]).run().exits(0);
    let third = project.ci(&["test"]).run().exits(0);
    for run in [&first, &second, &third] {
        assert_eq!(run.report["commit"], commit.as_str());
        assert_eq!(run.report["clean"], true);
    }
    assert_eq!(second.step("test")["cached"], false);
    assert_eq!(third.step("test")["cached"], true);
}

#[test]
fn the_archive_goes_where_output_says_and_the_outputs_to_github() {
    let project = Project::new("output");
    let outputs = project.path().join("target/outputs");
    let ci = |arguments: &[&str]| {
        project
            .ci(arguments)
            .env("GITHUB_OUTPUT", outputs.to_str().unwrap())
    };
    let run = ci(&["build", "--output", "target/shipped.tar"])
        .run()
        .exits(0);
    let shipped = std::fs::read(project.path().join("target/shipped.tar")).unwrap();
    let built = std::fs::read(project.path().join("target/ci/image.tar")).unwrap();
    assert!(shipped == built, "the same bytes");
    let short = project.git(&["rev-parse", "--short", "HEAD"]);
    let digest = run.report["digest"].as_str().unwrap();
    assert_eq!(
        project.read("target/outputs"),
        format!("image=ghcr.io/e2e/output:{short}\ntag={short}\ndigest={digest}\n")
    );

    std::fs::remove_file(project.path().join("target/shipped.tar")).unwrap();
    std::fs::remove_file(&outputs).unwrap();
    project.write("api/src/main.rs", "fn main() { nonsense }\n");
    ci(&["build", "--output", "target/shipped.tar"])
        .run()
        .exits(1);
    assert!(!project.path().join("target/shipped.tar").exists());
    assert!(!outputs.exists(), "no image, no outputs");
}

#[test]
fn the_report_as_json_is_all_that_standard_output_gets() {
    let project = Project::new("json");
    break_format(&project);
    project.commit("a bad format");
    let run = project.ci(&["fmt", "--format", "json"]).run().exits(1);
    let printed: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(printed, run.report);
    assert_eq!(printed["schema"], 1);
    assert_eq!(printed["verdict"]["exit_code"], 1);
    assert_eq!(run.status("fmt"), "failed");
}

#[test]
fn on_github_a_failure_is_an_annotation_in_a_plain_log() {
    let project = Project::new("github");
    break_format(&project);
    let sha = project.commit("a bad format");
    let ci = || project.ci(&["fmt"]);
    let plain = ci().run().exits(1);
    assert!(!plain.stderr.contains("::error"), "{}", plain.stderr);
    let on_github = ci()
        .push_to_main(&sha, "ghs_not-looked-at")
        .env("GITHUB_EVENT_NAME", "pull_request")
        .run()
        .exits(1)
        .says("::group::fmt: output")
        .says("::endgroup::")
        .says("\n::error title=ci::fmt: some files are not formatted");
    assert_eq!(on_github.report["event"], "pull-request");
    for run in [plain, on_github] {
        assert!(!run.stderr.contains('\u{1b}'), "no escape codes in a file");
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let project = Project::new("colours");
    let on_a_terminal = |variables: &[(&str, &str)]| {
        // script(1) gives the program a terminal; it is part of every Debian.
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--command"])
            .arg(format!("{} --engine nonsense", env!("CARGO_BIN_EXE_ci")))
            .arg("/dev/null")
            .current_dir(project.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("TERM", "xterm-256color")
            .envs(variables.iter().copied())
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stdout).unwrap()
    };
    let coloured = on_a_terminal(&[]);
    assert!(coloured.contains("\u{1b}["), "{coloured:?}");
    let plain = on_a_terminal(&[("NO_COLOR", "1")]);
    assert!(
        plain.contains("error: `nonsense` is not an engine"),
        "{plain:?}"
    );
    assert!(!plain.contains('\u{1b}'), "{plain:?}");
}
