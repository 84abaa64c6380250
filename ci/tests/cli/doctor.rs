//! `ci doctor`, in an environment without the caller's settings.

use std::net::TcpListener;

use crate::harness::{Ci, Outcome, Project};
use crate::{MISSING_ENGINE, ci, run_without_engine_setting, server};

/// A registry that does not respond, so that `ci doctor` contacts no other machine.
const REGISTRY: [&str; 2] = ["LAB_CI_REGISTRY", "127.0.0.1:1"];

/// Asserts that each problem has a fix on the next line and that the exit code matches; returns the lines.
#[track_caller]
fn checked_lines(outcome: &Outcome) -> Vec<&str> {
    let lines: Vec<_> = outcome.stdout.lines().collect();
    let mut problems = 0;
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("problem ") || line.starts_with("note ") {
            problems += usize::from(line.starts_with("problem "));
            let fix = lines.get(at + 1).copied().unwrap_or_default();
            assert!(
                fix.starts_with("          ") && !fix.trim().is_empty(),
                "no fix below: {line}"
            );
        } else {
            assert!(
                ["ok ", "note ", " "]
                    .iter()
                    .any(|sign| line.starts_with(sign)),
                "{line}"
            );
        }
    }
    assert_eq!(
        outcome.code,
        if problems == 0 { 0 } else { 3 },
        "{lines:#?}"
    );
    lines
}

fn run_doctor(project: &Project) -> (Outcome, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join("cache");
    let ci = project
        .ci(&["doctor"])
        .env(REGISTRY[0], REGISTRY[1])
        .env("HOME", home.path().to_str().unwrap())
        .env("LAB_CI_CACHE_DIR", cache.to_str().unwrap());
    (run_without_engine_setting(ci), home)
}

#[test]
fn examines_everything_that_a_run_uses() {
    let project = Project::new("doctor");
    let (outcome, _home) = run_doctor(&project);
    let lines = checked_lines(&outcome);
    for about in [
        "git", "service", "publish", "registry", "engine", "memory", "cache", "disk",
    ] {
        assert!(
            lines
                .iter()
                .any(|line| line.split_whitespace().nth(1) == Some(about)),
            "nothing about {about} in {lines:#?}"
        );
    }
    let head = project.git(&["rev-parse", "HEAD"]);
    assert!(outcome.stdout.contains(&format!("commit {head}, clean")));
    assert!(
        outcome
            .stdout
            .contains("local run: a run ends after the gates")
    );
    assert!(
        !project.path().join("target").exists(),
        "ci doctor changes nothing"
    );
}

/// Gives the call an empty cache directory, because examining a large one takes long.
fn with_empty_cache(ci: Ci) -> (Ci, tempfile::TempDir) {
    let cache = tempfile::tempdir().unwrap();
    let path = cache.path().to_str().unwrap().to_owned();
    let ci = ci
        .env(REGISTRY[0], REGISTRY[1])
        .env("LAB_CI_CACHE_DIR", &path);
    (ci, cache)
}

#[test]
fn reports_an_engine_that_does_not_listen() {
    let project = Project::new("doctor-engine");
    let (doctor, _cache) = with_empty_cache(ci(&project, &["doctor"]));
    let outcome = doctor.run().exits(3);
    let lines = checked_lines(&outcome);
    let problem = format!("no engine listens on {MISSING_ENGINE}");
    assert!(
        lines.iter().any(|line| line.contains(&problem)),
        "{lines:#?}"
    );
}

#[test]
fn examines_the_engine_named_in_the_environment() {
    let project = Project::new("doctor-named");
    let (doctor, _cache) = with_empty_cache(project.ci(&["doctor"]));
    let named = doctor.env("_EXPERIMENTAL_DAGGER_RUNNER_HOST", MISSING_ENGINE);
    let outcome = run_without_engine_setting(named).exits(3);
    assert!(
        checked_lines(&outcome)
            .iter()
            .any(|line| line.contains(&format!("no engine listens on {MISSING_ENGINE}"))),
        "{}",
        outcome.stdout
    );
}

#[test]
fn reports_a_directory_outside_a_repository() {
    let folder = tempfile::tempdir().unwrap();
    let (doctor, _cache) = with_empty_cache(crate::ci_in(folder.path(), &["doctor"]));
    let outcome = doctor.run().exits(3);
    let lines = checked_lines(&outcome);
    assert!(
        lines.iter().any(|line| line.starts_with("problem  git")),
        "{lines:#?}"
    );
}

#[test]
fn reads_the_file_that_config_names() {
    let project = Project::new("doctor-config");
    project.write("ci-worker.toml", "[service]\nport = 9090\n");
    let with = |file: &str| {
        let (doctor, cache) = with_empty_cache(ci(&project, &["doctor", "--config", file]));
        (doctor.run(), cache)
    };
    let (outcome, _cache) = with("ci-worker.toml");
    let lines = checked_lines(&outcome);
    assert!(
        lines.iter().any(|line| line.ends_with("on port 9090")),
        "{lines:#?}"
    );
    with("ci-wroker.toml")
        .0
        .exits(2)
        .says("there is no ci-wroker.toml");
}

#[test]
fn says_whether_steps_take_turns() {
    let project = Project::new("doctor-memory");
    let with = |memory: &str| {
        let (doctor, _cache) = with_empty_cache(ci(&project, &["doctor", "--jobs", "1"]));
        let outcome = doctor.env("LAB_CI_MEMORY", memory).run();
        let lines = checked_lines(&outcome);
        let line = lines.iter().find(|line| line.contains(" memory "));
        (*line.unwrap()).to_owned()
    };
    let small = with("2GiB");
    assert!(
        small.contains("enough for 1 of 3 cargos with 1 compiler each: steps take turns"),
        "{small}"
    );
    let large = with("64GiB");
    assert!(
        large.ends_with("test, lint, build run at the same time"),
        "{large}"
    );
}

#[test]
fn rejects_invalid_settings() {
    let project = Project::new("doctor-settings");
    ci(&project, &["doctor", "--repository", "a/b:latest"])
        .run()
        .exits(2)
        .says("it has a tag");
}

/// Asserts that a run exits with code 3 and this message, and that `ci doctor` prints the same.
#[track_caller]
fn run_and_doctor_reject(engine: &str, words: &str) {
    let project = Project::new("doctor-url");
    let with = |command| {
        let (ci, _cache) = with_empty_cache(project.ci(&[command, "--engine", engine]));
        ci.run().exits(3)
    };
    with("fmt").says(words);
    let outcome = with("doctor");
    let lines = checked_lines(&outcome);
    assert!(lines.iter().any(|line| line.contains(words)), "{lines:#?}");
}

#[test]
fn run_and_doctor_reject_an_address_without_a_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    drop(listener);
    run_and_doctor_reject(&url, &format!("no engine listens on {url}"));
}

#[test]
fn run_and_doctor_reject_a_listener_that_is_not_an_engine() {
    for answer in ["", "HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let url = format!("tcp://{}", server(answer));
        run_and_doctor_reject(&url, &format!("the server at {url} is not a Dagger engine"));
    }
}

#[test]
fn names_the_program_that_an_engine_url_needs() {
    let project = Project::new("doctor-kubectl");
    let programs = tempfile::tempdir().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let git = std::env::split_paths(&path)
        .map(|folder| folder.join("git"))
        .find(|git| git.is_file())
        .unwrap();
    std::os::unix::fs::symlink(git, programs.path().join("git")).unwrap();
    project
        .ci(&["fmt", "--engine", "kube-pod://engine-0?namespace=dagger"])
        .env("PATH", programs.path().to_str().unwrap())
        .run()
        .exits(3)
        .says("requires kubectl, which is not on PATH")
        .says("Install kubectl");
}

#[test]
fn reports_the_content_of_the_runner_cache() {
    let project = Project::new("doctor-caches");
    let folder = tempfile::tempdir().unwrap();
    let doctor = || {
        let home = tempfile::tempdir().unwrap();
        let ci = project
            .ci(&["doctor"])
            .env(REGISTRY[0], REGISTRY[1])
            .env("HOME", home.path().to_str().unwrap())
            .env(
                "LAB_CI_CACHE_DIR",
                home.path().join("cache").to_str().unwrap(),
            )
            .env("LAB_CI_RUNNER_CACHE", folder.path().to_str().unwrap());
        let outcome = run_without_engine_setting(ci);
        let lines = checked_lines(&outcome);
        lines
            .into_iter()
            .find(|line| line.contains("cache-dir"))
            .unwrap()
            .to_owned()
    };
    let line = doctor();
    assert!(
        line.starts_with("ok") && line.ends_with("0 parts, 0 MB"),
        "{line}"
    );
    std::fs::write(folder.path().join("cache.json"), "{\"schema\": 99}").unwrap();
    let line = doctor();
    assert!(
        line.starts_with("note") && line.contains("its schema version is 99"),
        "{line}"
    );
}
