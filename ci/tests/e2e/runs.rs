//! The end of a run: several failures, time limits, signals, reruns, and machine-readable output.

use std::io::{BufRead, BufReader};
use std::process::{ChildStderr, Command, Stdio};
use std::time::SystemTime;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Ci, KillOnDrop, Outcome, Project, TEST_RUNS};
use crate::sources::short_sha;

/// Adds a unit test that announces its start and then sleeps for a day.
fn add_sleeping_test(project: &Project) {
    project.extend_test(&format!(
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
fn finishes_independent_gates_and_exits_with_1_despite_a_vulnerability() {
    let project = Project::new("several-failures");
    project.add_dependency(
        r#"regex = { version = "=1.5.4", default-features = false, features = ["std"] }"#,
    );
    break_format(&project);
    project.extend_test("assert!(std::env::args().count() > 9, \"not today\");");
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
fn a_profile_has_the_steps_and_what_the_engine_does_for_them() {
    let project = Project::new("profile");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("profile.json");
    project
        .ci(&["fmt", "--profile", file.to_str().unwrap()])
        .run()
        .exits(0);
    let trace: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let process = |track: &str| {
        let named = |event: &&Value| event["ph"] == "M" && event["args"]["name"] == track;
        events.iter().find(named).expect("the track exists")["pid"].clone()
    };
    for (track, name) in [
        ("ci", "plan"),
        ("ci", "open the session"),
        ("fmt", "step"),
        ("fmt", "Container.withExec"),
    ] {
        let process = process(track);
        let has_name = |event: &&Value| event["pid"] == process && event["name"] == name;
        let event = events.iter().find(has_name);
        let event = event.unwrap_or_else(|| panic!("{track} has no {name}: {events:#?}"));
        assert!(event["dur"].as_f64().unwrap() > 0.0, "{event}");
    }
}

#[test]
fn reports_the_time_the_cache_state_and_the_log_of_each_step() {
    const CACHEABLE: [&str; 5] = ["test", "fmt", "lint", "build", "scan"];
    let project = Project::new("records");
    // The engine has no result for sources that did not exist before.
    let now = SystemTime::now();
    project.extend_test(&format!(
        "// {now:?}\n        std::thread::sleep(std::time::Duration::from_millis(1500));"
    ));
    project.commit("a slow test");
    let log = |step: &str| project.read(&format!("target/ci/logs/{step}.log"));
    let milliseconds = |run: &Outcome, step| run.step(step)["duration_ms"].as_u64().unwrap();

    let cold = project.ci(&[]).run().exits(0);
    let logs = CACHEABLE.map(log);
    for step in CACHEABLE {
        assert_eq!(cold.step(step)["cached"], false, "{step}");
    }
    for (step, line) in [
        ("test", "test tests::answers_with_200 ... ok"),
        ("test", "Compiling api"),
        ("lint", "Checking api"),
        ("build", "Compiling api"),
    ] {
        assert_eq!(log(step).matches(line).count(), 1, "{step}: {}", log(step));
    }
    assert!(milliseconds(&cold, "test") >= 1500, "{:#}", cold.report);

    let warm = project.ci(&[]).run().exits(0);
    for step in CACHEABLE {
        assert_eq!(warm.step(step)["cached"], true, "{step}");
    }
    assert_eq!(warm.step("smoke")["cached"], false);
    assert_eq!(CACHEABLE.map(log), logs, "a cached step has its first log");

    project.extend_test("assert!(std::env::args().count() > 9, \"not today\");");
    project.commit("a test that fails");
    let failing = project.ci(&[]).run().exits(1);
    for (step, cached) in [("test", false), ("fmt", false), ("lint", false)] {
        assert_eq!(failing.step(step)["cached"], cached, "{step}");
    }
    assert_eq!(failing.status("test"), "failed");
    assert_eq!(
        log("test").matches("not today").count(),
        1,
        "{}",
        log("test")
    );
}

#[test]
fn fail_fast_cancels_running_steps() {
    let project = Project::new("fail-fast");
    break_format(&project);
    add_sleeping_test(&project);
    project.commit("a bad format, and a test that never ends");
    let run = project.ci(&["--fail-fast"]).run().exits(1);
    assert_eq!(run.status("fmt"), "failed");
    assert_eq!(run.status("test"), "cancelled");
    assert_eq!(run.status("publish"), "skipped");
    assert_eq!(run.report["verdict"]["exit_code"], 1);
    run.publishes_nothing();
}

#[test]
fn writes_a_report_when_the_time_limit_expires() {
    let project = Project::new("time-limit");
    add_sleeping_test(&project);
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

/// Asserts that a run stops on `signal` while its unit test runs, twice in a row.
fn assert_stops_on(signal: Signal, name: &str) {
    let project = Project::new(name);
    add_sleeping_test(&project);
    project.commit("a test that never ends");
    assert_stops_once_on(&project, signal);
    // The cancelled run does not prevent the next one from running its test.
    assert_stops_once_on(&project, signal);
}

/// Starts a verbose run, and reads its output until its unit test runs.
fn start(ci: Ci) -> (KillOnDrop, BufReader<ChildStderr>, String) {
    let child = ci
        .into_command()
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = KillOnDrop(child);
    let mut stderr = String::new();
    let mut reader = BufReader::new(child.0.stderr.take().unwrap());
    while !stderr.contains("the test runs") {
        assert_ne!(
            reader.read_line(&mut stderr).unwrap(),
            0,
            "ci exited:\n{stderr}"
        );
    }
    (child, reader, stderr)
}

#[test]
fn a_step_tells_why_it_ran() {
    let project = Project::new("why");
    let main = project.read("api/src/main.rs");
    // Never in the engine's cache.
    let now = jiff::Timestamp::now().as_nanosecond();
    project.write("api/src/main.rs", &format!("{main}// {now}\n"));
    project.commit("unique");
    let first = project.ci(&["fmt"]).run().exits(0);
    assert_eq!(first.step("fmt")["why"]["reasons"][0]["kind"], "first");
    let again = project.ci(&["fmt"]).run().exits(0);
    assert_eq!(again.step("fmt")["cached"], true);
    assert!(again.step("fmt")["why"].is_null());
    let passed = short_sha(&project);
    project.write("api/src/main.rs", &format!("{main}// {now} again\n"));
    project.write("README.md", &format!("{now}\n"));
    let changed = project.ci(&["fmt", "-v"]).run().exits(0).says(&format!(
        "ran because README.md, api/src/main.rs changed since commit {passed}"
    ));
    let reason = &changed.step("fmt")["why"]["reasons"][0];
    assert_eq!(reason["first"][1], "api/src/main.rs");
    let page = project.read("target/ci/report.html");
    assert!(page.contains("Ran because README.md, api/src/main.rs changed since commit"));
}

#[test]
fn a_killed_run_leaves_no_report_of_an_earlier_one() {
    let project = Project::new("killed-report");
    project.ci(&["fmt"]).run().exits(0);
    let folder = project.path().join("target/ci");
    assert!(folder.join("report.html").exists());
    add_sleeping_test(&project);
    let (mut ci, _, _) = start(project.ci(&["test", "-v"]));
    ci.0.kill().unwrap();
    ci.0.wait().unwrap();
    let entries = std::fs::read_dir(&folder).unwrap();
    let mut left: Vec<_> = entries.map(|it| it.unwrap().file_name()).collect();
    left.sort_unstable();
    assert_eq!(left, [".gitignore", "passes.json", "previous.json"]);
}

fn assert_stops_once_on(project: &Project, signal: Signal) {
    let (mut ci, mut reader, mut stderr) = start(project.ci(&["-v", "--timeout", "5m"]));
    let children = children(ci.0.id());
    assert!(
        children
            .iter()
            .any(|child| command_line(*child).contains("session")),
        "no session process: {children:?}"
    );
    kill(Pid::from_raw(ci.0.id().try_into().unwrap()), signal).unwrap();
    // Reads the rest, so that `ci` does not block on a full pipe.
    std::io::Read::read_to_string(&mut reader, &mut stderr).unwrap();
    let code = ci.0.wait().unwrap().code();
    assert_eq!(code, Some(130), "{stderr}");
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
        stderr,
        report: serde_json::from_str(&project.read("target/ci/report.json")).unwrap(),
    };
    assert_eq!(run.status("test"), "cancelled");
    assert_eq!(run.report["verdict"]["reason"], "cancelled");
    assert_eq!(run.status("publish"), "skipped");
    run.publishes_nothing();
}

#[test]
fn an_interrupted_run_leaves_a_report_and_no_session() {
    assert_stops_on(Signal::SIGINT, "interrupted");
}

#[test]
fn a_terminated_run_leaves_a_report_and_no_session() {
    assert_stops_on(Signal::SIGTERM, "terminated");
}

#[test]
fn a_closed_terminal_ends_a_run_as_a_signal_does() {
    assert_stops_on(Signal::SIGHUP, "hung-up");
}

#[test]
fn nohup_keeps_a_run_alive() {
    let project = Project::new("nohup");
    project.extend_test(&format!(
        "{TEST_RUNS}\n        std::thread::sleep(std::time::Duration::from_secs(2)); // {:?}",
        SystemTime::now()
    ));
    project.commit("a slow test");
    let call = project.ci(&["test", "-v"]).under("nohup", &[]);
    let (mut ci, mut reader, mut stderr) = start(call);
    kill(Pid::from_raw(ci.0.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
    std::io::Read::read_to_string(&mut reader, &mut stderr).unwrap();
    assert_eq!(ci.0.wait().unwrap().code(), Some(0), "{stderr}");
}

#[test]
fn the_next_run_removes_what_a_killed_one_has_left() {
    let project = Project::new("killed");
    add_sleeping_test(&project);
    project.commit("a test that never ends");
    let temporary = tempfile::tempdir().unwrap();
    let left = || std::fs::read_dir(temporary.path()).unwrap().count();
    let tmpdir = temporary.path().to_str().unwrap();
    let (ci, ..) = start(project.ci(&["test", "-v"]).env("TMPDIR", tmpdir));
    drop(ci);
    assert!(left() > 0);
    project.ci(&["fmt"]).env("TMPDIR", tmpdir).run().exits(0);
    let names: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().collect();
    assert_eq!(left(), 0, "{names:?}");
}

/// The children of all threads of a process.
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

/// The command line of a process, or an empty string if the process does not exist.
fn command_line(process: u32) -> String {
    std::fs::read_to_string(format!("/proc/{process}/cmdline"))
        .unwrap_or_default()
        .replace('\0', " ")
}

#[test]
fn repeats_failed_tests_and_remembers_passed_ones() {
    let project = Project::new("flaky");
    // The test depends on a file in the volume of cargo's work, with a name that is new for each run of this test.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let marker = format!("/work/outage-{}", now.unwrap().as_nanos());
    project.extend_test(&format!(
        r#"let over = std::path::Path::new("{marker}");
        if !over.exists() {{
            std::fs::write(over, "").unwrap();
            panic!("the other side is down");
        }}"#
    ));
    let commit = project.commit("a test with an outside dependency");
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
fn writes_the_archive_and_the_github_outputs() {
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
    assert!(shipped == built, "the archives differ");
    let short = short_sha(&project);
    let digest = run.report["digest"].as_str().unwrap();
    assert_eq!(
        project.read("target/outputs"),
        format!(
            "report={}\nimage=ghcr.io/e2e/output:{short}\ntag={short}\ndigest={digest}\n",
            project.path().join("target/ci").display()
        )
    );

    std::fs::remove_file(project.path().join("target/shipped.tar")).unwrap();
    std::fs::remove_file(&outputs).unwrap();
    project.write("api/src/main.rs", "fn main() { nonsense }\n");
    ci(&["build", "--output", "target/shipped.tar"])
        .run()
        .exits(1);
    assert!(!project.path().join("target/shipped.tar").exists());
    let outputs = project.read("target/outputs");
    assert!(outputs.starts_with("report="), "{outputs}");
    assert_eq!(outputs.lines().count(), 1, "{outputs}");
}

#[test]
fn prints_only_the_json_report_to_stdout() {
    let project = Project::new("json");
    break_format(&project);
    project.commit("a bad format");
    let run = project.ci(&["fmt", "--format", "json"]).run().exits(1);
    let printed: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(printed, run.report);
    assert_eq!(printed["schema"], 1);
    assert_eq!(printed["verdict"]["exit_code"], 1);
    assert_eq!(run.status("fmt"), "failed");
}

#[test]
fn prints_annotations_in_a_plain_log_on_github() {
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
        .says("\n::error file=api/src/main.rs,line=7,title=ci%3A fmt::not formatted");
    assert_eq!(on_github.report["event"], "pull-request");
    for run in [plain, on_github] {
        assert!(!run.stderr.contains('\u{1b}'), "escape codes in a file");
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn uses_colours_only_on_terminals_without_no_color() {
    let project = Project::new("colours");
    let on_a_terminal = |variables: &[(&str, &str)]| {
        // script(1), which is part of every Debian, runs the program on a terminal.
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
        plain.contains("error: --engine: `nonsense` is not an engine"),
        "{plain:?}"
    );
    assert!(!plain.contains('\u{1b}'), "{plain:?}");
}
