//! A run that cannot begin says so in its report, too.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::harness::Project;
use crate::{Ends, NOWHERE, ci};

#[test]
fn a_missing_engine_is_in_the_report_with_its_remedy() {
    let project = Project::new("report");
    let run = ci(&project, &[]).run().misses_the_engine();
    let report = &run.report;
    assert_eq!(report["schema"], 1);
    assert_eq!(report["verdict"]["exit_code"], 3);
    assert_eq!(report["verdict"]["passed"], false);
    assert_eq!(report["verdict"]["reason"], "environment");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains(NOWHERE), "{error}");
    let hint = report["hint"].as_str().unwrap();
    assert!(hint.contains("--engine"), "{hint}");
    assert!(run.stderr.contains(hint), "{}", run.stderr);
    let steps = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 7);
    assert!(steps.iter().all(|step| step["status"] == "skipped"));
    for nothing in ["engine", "digest", "publish"] {
        assert_eq!(report[nothing], Value::Null, "{nothing}");
    }
}

#[test]
fn json_goes_to_standard_output_and_is_the_report() {
    let project = Project::new("json");
    let run = ci(&project, &["--format", "json"])
        .run()
        .misses_the_engine();
    let printed: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(printed, run.report);
}

#[test]
fn on_github_the_failure_is_an_annotation() {
    let project = Project::new("annotation");
    let run = ci(&project, &[])
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_EVENT_NAME", "pull_request")
        .run()
        .misses_the_engine()
        .says("::error title=ci::no engine listens on");
    assert_eq!(run.report["event"], "pull-request");
}

#[test]
fn a_token_that_is_not_needed_is_in_no_report() {
    let project = Project::new("token");
    let token = "ghs_not-a-real-one";
    let run = ci(&project, &["--format", "json", "-vv"])
        .env("GITHUB_TOKEN", token)
        .run()
        .misses_the_engine();
    for text in [&run.stdout, &run.stderr, &run.report.to_string()] {
        assert!(!text.contains(token), "{text}");
    }
}

#[test]
fn quiet_says_nothing_but_the_failure() {
    let project = Project::new("quiet");
    let run = ci(&project, &["--quiet"]).run().misses_the_engine();
    assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
    assert_eq!(run.stdout, "");
}

#[test]
fn a_report_directory_that_cannot_be_made_is_named() {
    let project = Project::new("directory");
    project.write("target/taken", "a file");
    ci(&project, &["--report-dir", "target/taken/below"])
        .run()
        .refuses(3, "cannot make the report directory")
        .says("target/taken/below");
}

#[test]
fn a_dagger_cli_that_is_not_there_is_not_replaced_by_a_download() {
    let project = Project::new("cli-bin");
    // Nothing is checked at this address before the program that would go there.
    project
        .ci(&["--engine", "container+docker://engine"])
        .env("_EXPERIMENTAL_DAGGER_CLI_BIN", "/nonexistent/dagger")
        .run()
        .exits(2)
        .says("_EXPERIMENTAL_DAGGER_CLI_BIN names /nonexistent/dagger, which is not a file");
}

#[test]
fn an_image_that_nothing_could_load_is_not_built_first() {
    let project = Project::new("load");
    let programs = tempfile::tempdir().unwrap();
    for name in ["docker", "podman", "nerdctl"] {
        let program = programs.path().join(name);
        std::fs::write(&program, "#!/bin/sh\necho no daemon answers >&2\nexit 1\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = std::env::var("PATH").unwrap();
    ci(&project, &["build", "--load"])
        .env("PATH", &format!("{}:{path}", programs.path().display()))
        .run()
        .refuses(3, "the image cannot be loaded")
        .says("docker is here, but not usable (no daemon answers)")
        .says("hint: Start a container runtime");
}
