//! Reports and messages of runs that fail before their first step.

use std::process::Command;

use serde_json::Value;

use crate::harness::Project;
use crate::{Assertions, MISSING_ENGINE, ci};

#[test]
fn reports_a_missing_engine_with_a_hint() {
    let project = Project::new("report");
    let run = ci(&project, &[]).run().finds_no_engine();
    let report = &run.report;
    assert_eq!(report["schema"], 1);
    assert_eq!(report["verdict"]["exit_code"], 3);
    assert_eq!(report["verdict"]["passed"], false);
    assert_eq!(report["verdict"]["reason"], "environment");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains(MISSING_ENGINE), "{error}");
    let hint = report["hint"].as_str().unwrap();
    assert!(hint.contains("--engine"), "{hint}");
    assert!(run.stderr.contains(hint), "{}", run.stderr);
    let steps = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 7);
    assert!(steps.iter().all(|step| step["status"] == "skipped"));
    for key in ["engine", "digest", "publish"] {
        assert_eq!(report[key], Value::Null, "{key}");
    }
}

#[test]
fn prints_the_report_as_json() {
    let project = Project::new("json");
    let run = ci(&project, &["--format", "json"]).run().finds_no_engine();
    let printed: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(printed, run.report);
}

#[test]
fn prints_a_failure_as_an_annotation_on_github() {
    let project = Project::new("annotation");
    let run = ci(&project, &[])
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_EVENT_NAME", "pull_request")
        .run()
        .finds_no_engine()
        .says("::error title=ci::no engine listens on");
    assert_eq!(run.report["event"], "pull-request");
}

#[test]
fn keeps_an_unused_token_out_of_all_output() {
    let project = Project::new("token");
    let token = "ghs_not-a-real-one";
    let run = ci(&project, &["--format", "json", "-vv"])
        .env("GITHUB_TOKEN", token)
        .run()
        .finds_no_engine();
    for text in [&run.stdout, &run.stderr, &run.report.to_string()] {
        assert!(!text.contains(token), "{text}");
    }
}

#[test]
fn quiet_prints_only_one_line() {
    let project = Project::new("quiet");
    let run = ci(&project, &["--quiet"]).run().finds_no_engine();
    let [line] = run.stderr.lines().collect::<Vec<_>>()[..] else {
        panic!("{}", run.stderr)
    };
    assert!(line.starts_with("failed in "), "{line}");
    assert!(
        line.contains("(exit code 3): no engine listens on"),
        "{line}"
    );
    assert_eq!(run.stdout, "");
}

#[test]
fn rejects_a_report_directory_that_cannot_be_created() {
    let project = Project::new("directory");
    project.write("target/taken", "a file");
    ci(&project, &["--report-dir", "target/taken/below"])
        .run()
        .refuses(3, "cannot create the report directory")
        .says("target/taken/below");
}

#[test]
fn rejects_a_missing_dagger_cli_instead_of_downloading_one() {
    let project = Project::new("cli-bin");
    // The CLI is checked before the address, which needs it.
    project
        .ci(&["--engine", "container+docker://engine"])
        .env("_EXPERIMENTAL_DAGGER_CLI_BIN", "/nonexistent/dagger")
        .run()
        .exits(2)
        .says("_EXPERIMENTAL_DAGGER_CLI_BIN names /nonexistent/dagger, which is not a file");
}

#[test]
fn rejects_load_without_a_container_runtime_before_building() {
    let project = Project::new("load");
    let programs = tempfile::tempdir().unwrap();
    let text = programs.path().join("text");
    std::fs::write(&text, "#!/bin/sh\necho no daemon answers >&2\nexit 1\n").unwrap();
    for name in ["docker", "podman", "nerdctl"] {
        // Another process writes the program: a child process of another test would inherit our open file, and Linux executes no
        // file that is open for writing.
        let install = Command::new("install")
            .args(["-m", "755"])
            .args([&text, &programs.path().join(name)])
            .status();
        assert!(install.unwrap().success());
    }
    let path = std::env::var("PATH").unwrap();
    ci(&project, &["build", "--load"])
        .env("PATH", &format!("{}:{path}", programs.path().display()))
        .run()
        .refuses(3, "cannot load the image")
        .says("docker is installed, but not usable (no daemon answers)")
        .says("hint: Start a container runtime");
}

#[test]
fn a_collector_that_does_not_listen_only_causes_a_message() {
    let project = Project::new("collector");
    ci(&project, &[])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .run()
        .finds_no_engine()
        .says("cannot send the spans to the collector");
    ci(&project, &[])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "no address")
        .run()
        .finds_no_engine()
        .says("hint: Set OTEL_EXPORTER_OTLP_ENDPOINT to a URL");
}

#[test]
fn a_refused_run_leaves_no_report_of_an_earlier_one() {
    let project = Project::new("refused-report");
    ci(&project, &[]).run().finds_no_engine();
    let path = |name: &str| project.path().join("target/ci").join(name);
    for name in ["report.json", "report.html", "summary.md", "junit.xml"] {
        assert!(path(name).exists(), "{name}");
    }
    project
        .ci(&["publish", "--registry", "registry.example.com"])
        .run()
        .exits(4);
    for name in ["report.json", "report.html", "summary.md", "junit.xml"] {
        assert!(!path(name).exists(), "{name}");
    }
}
