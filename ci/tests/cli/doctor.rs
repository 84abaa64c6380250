//! `ci doctor` in an environment without anything of the caller's.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::harness::{Ci, Outcome, Project};
use crate::{NOWHERE, ci, without_a_named_engine};

/// A registry that does not answer: the doctor asks nobody outside of this machine here.
const REGISTRY: [&str; 2] = ["LAB_CI_REGISTRY", "127.0.0.1:1"];

/// Its lines, each problem with its remedy below it; and the exit code says whether there is a problem.
#[track_caller]
fn examined(outcome: &Outcome) -> Vec<&str> {
    let lines: Vec<_> = outcome.stdout.lines().collect();
    let mut problems = 0;
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("problem ") {
            problems += 1;
            let remedy = lines.get(at + 1).copied().unwrap_or_default();
            assert!(
                remedy.starts_with("          ") && !remedy.trim().is_empty(),
                "no remedy below: {line}"
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

fn doctor(project: &Project) -> (Outcome, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join("cache");
    let ci = project
        .ci(&["doctor"])
        .env(REGISTRY[0], REGISTRY[1])
        .env("HOME", home.path().to_str().unwrap())
        .env("LAB_CI_CACHE_DIR", cache.to_str().unwrap());
    (without_a_named_engine(ci), home)
}

#[test]
fn it_looks_at_everything_a_run_would_use() {
    let project = Project::new("doctor");
    let (outcome, _home) = doctor(&project);
    let lines = examined(&outcome);
    for about in [
        "git", "service", "publish", "registry", "engine", "cache", "disk",
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
    assert!(outcome.stdout.contains("it ends after its gates"));
    assert!(
        !project.path().join("target").exists(),
        "it changes nothing"
    );
}

/// A doctor that does not look through the caches of this machine, which may be large.
fn without_caches(ci: Ci) -> (Ci, tempfile::TempDir) {
    let cache = tempfile::tempdir().unwrap();
    let path = cache.path().to_str().unwrap().to_owned();
    let ci = ci
        .env(REGISTRY[0], REGISTRY[1])
        .env("LAB_CI_CACHE_DIR", &path);
    (ci, cache)
}

#[test]
fn an_engine_that_does_not_listen_is_a_problem() {
    let project = Project::new("doctor-engine");
    let (doctor, _cache) = without_caches(ci(&project, &["doctor"]));
    let outcome = doctor.run().exits(3);
    let lines = examined(&outcome);
    let problem = format!("no engine listens on {NOWHERE}");
    assert!(
        lines.iter().any(|line| line.contains(&problem)),
        "{lines:#?}"
    );
}

#[test]
fn the_engine_that_the_environment_names_is_the_one_it_looks_at() {
    let project = Project::new("doctor-named");
    let (doctor, _cache) = without_caches(project.ci(&["doctor"]));
    let named = doctor.env("_EXPERIMENTAL_DAGGER_RUNNER_HOST", NOWHERE);
    let outcome = without_a_named_engine(named).exits(3);
    assert!(
        examined(&outcome)
            .iter()
            .any(|line| line.contains(&format!("no engine listens on {NOWHERE}"))),
        "{}",
        outcome.stdout
    );
}

#[test]
fn a_folder_without_a_repository_is_a_problem_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let (doctor, _cache) = without_caches(crate::ci_in(folder.path(), &["doctor"]));
    let outcome = doctor.run().exits(3);
    let lines = examined(&outcome);
    assert!(
        lines.iter().any(|line| line.starts_with("problem  git")),
        "{lines:#?}"
    );
}

#[test]
fn wrong_settings_are_wrong_for_the_doctor_too() {
    let project = Project::new("doctor-settings");
    ci(&project, &["doctor", "--repository", "a/b:latest"])
        .run()
        .exits(2)
        .says("it has a tag");
}

/// `ci` ends with 3 and these words, and the doctor says the same.
#[track_caller]
fn cannot_use(engine: &str, words: &str) {
    let project = Project::new("doctor-url");
    let with = |command| {
        let (ci, _cache) = without_caches(project.ci(&[command, "--engine", engine]));
        ci.run().exits(3)
    };
    with("fmt").says(words);
    let outcome = with("doctor");
    let lines = examined(&outcome);
    assert!(lines.iter().any(|line| line.contains(words)), "{lines:#?}");
}

#[test]
fn an_engine_that_nobody_listens_for_is_known_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    drop(listener);
    cannot_use(&url, &format!("no engine listens on {url}"));
}

#[test]
fn what_listens_and_is_no_engine_is_known_at_once() {
    for answer in ["", "HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("tcp://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 64]);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        cannot_use(&url, &format!("what listens on {url} is no Dagger engine"));
    }
}

#[test]
fn the_program_that_a_url_needs_is_asked_for() {
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
        .says("through kubectl, which is not on the PATH")
        .says("Install kubectl");
}

#[test]
fn it_says_what_there_is_in_the_caches_of_a_throw_away_runner() {
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
        let outcome = without_a_named_engine(ci);
        let lines = examined(&outcome);
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
        line.starts_with("note") && line.contains("another version"),
        "{line}"
    );
}
