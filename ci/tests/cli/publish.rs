//! The conditions for publishing: if one is missing, `ci` exits with code 4 before any work and without a registry.

use crate::harness::{Ci, Project};
use crate::{Assertions, ci};

const TOKEN: &str = "ghs_not-a-real-one";

/// A call in the environment of a push to main on GitHub Actions.
fn push(project: &Project, arguments: &[&str]) -> Ci {
    ci(project, arguments).push_to_main(&project.git(&["rev-parse", "HEAD"]), TOKEN)
}

#[test]
fn refuses_to_publish_a_push_that_misses_a_condition() {
    let project = Project::new("push");
    for (name, value, words) in [
        (
            "GITHUB_SHA",
            "0000000000000000000000000000000000000000",
            "but GITHUB_SHA is `0000",
        ),
        ("GITHUB_SHA", "", "but GITHUB_SHA is ``"),
        ("GITHUB_TOKEN", "", "GITHUB_TOKEN is not set"),
        (
            "GITHUB_TOKEN",
            "ghp_a-person's",
            "personal access tokens are not accepted",
        ),
        (
            "GITHUB_TOKEN",
            "github_pat_a-person's",
            "personal access tokens are not accepted",
        ),
        (
            "GITHUB_TOKEN",
            "x-ghs_not-at-the-beginning",
            "personal access tokens are not accepted",
        ),
        ("GITHUB_ACTOR", "", "GITHUB_ACTOR is not set"),
        (
            "LAB_CI_REGISTRY",
            "registry.example.com",
            "another registry (registry.example.com)",
        ),
    ] {
        for command in ["run", "publish"] {
            let outcome = push(&project, &[command])
                .env(name, value)
                .run()
                .refuses(4, "this run is not allowed to publish")
                .says(words);
            for token in [TOKEN, "ghp_a-person's", "github_pat_", "x-ghs_"] {
                assert!(!outcome.stderr.contains(token), "{}", outcome.stderr);
                assert!(!outcome.stdout.contains(token), "{}", outcome.stdout);
            }
        }
    }
    project.write("ci.toml", "registry = \"registry.example.com\"\n");
    project.commit("another registry");
    push(&project, &[])
        .run()
        .refuses(4, "must be set with --registry on the command line");
}

#[test]
fn refuses_to_publish_uncommitted_changes() {
    let project = Project::new("push-dirty");
    project.write("new.txt", "not committed\n");
    push(&project, &[])
        .run()
        .refuses(4, "the working tree has uncommitted changes");
    ci(&project, &["publish", "--registry", "127.0.0.1:5000"])
        .run()
        .refuses(4, "the working tree has uncommitted changes");
}

#[test]
fn reports_all_missing_conditions_at_once() {
    let project = Project::new("nothing");
    let mut outcome = ci(&project, &["publish"])
        .run()
        .refuses(4, "this run is not allowed to publish");
    for words in [
        "GITHUB_ACTIONS is not `true`",
        "GITHUB_EVENT_NAME",
        "GITHUB_REF",
        "GITHUB_SHA",
        "GITHUB_TOKEN is not set",
        "GITHUB_ACTOR is not set",
        "hint: Push to main to publish with GitHub Actions",
    ] {
        outcome = outcome.says(words);
    }
}

#[test]
fn publish_refuses_every_event_but_a_push_to_main() {
    let project = Project::new("events");
    for (name, value, words) in [
        ("GITHUB_ACTIONS", "1", "GITHUB_ACTIONS is not `true`"),
        (
            "GITHUB_EVENT_NAME",
            "pull_request",
            "is `pull_request`, not `push`",
        ),
        (
            "GITHUB_EVENT_NAME",
            "workflow_dispatch",
            "is `workflow_dispatch`, not `push`",
        ),
        (
            "GITHUB_REF",
            "refs/heads/topic",
            "GITHUB_REF is `refs/heads/topic`",
        ),
        ("GITHUB_REF", "refs/tags/v1", "GITHUB_REF is `refs/tags/v1`"),
        (
            "GITHUB_EVENT_NAME",
            "pull_request_target",
            "is `pull_request_target`, not `push`",
        ),
        (
            "GITHUB_EVENT_NAME",
            "merge_group",
            "is `merge_group`, not `push`",
        ),
        ("GITHUB_EVENT_NAME", "schedule", "is `schedule`, not `push`"),
        ("LAB_CI_EVENT", "local", "--event is `local`, not `push`"),
    ] {
        push(&project, &["publish"])
            .env(name, value)
            .run()
            .refuses(4, words);
        // `ci run` runs the gates without publishing.
        let run = push(&project, &["run"])
            .env(name, value)
            .run()
            .finds_no_engine();
        assert_ne!(run.report["event"], "push");
    }
}

#[test]
fn event_option_grants_no_permission() {
    let project = Project::new("raise");
    for command in ["run", "publish", "test", "build", "scan"] {
        ci(&project, &[command, "--event", "push"])
            .run()
            .refuses(4, "GITHUB_ACTIONS is not `true`");
        // A pull request gets no access to main's caches either.
        push(&project, &[command, "--event", "push"])
            .env("GITHUB_EVENT_NAME", "pull_request")
            .env("GITHUB_REF", "refs/pull/1/merge")
            .run()
            .refuses(4, "is `pull_request`, not `push`");
    }
    ci(
        &project,
        &["publish", "--event", "push", "--registry", "127.0.0.1:5000"],
    )
    .run()
    .refuses(4, "GITHUB_ACTIONS is not `true`");
}

#[test]
fn lower_event_needs_no_token() {
    let project = Project::new("lower");
    for event in ["local", "pull-request"] {
        let run = push(&project, &["run", "--event", event])
            .env("GITHUB_TOKEN", "")
            .run()
            .finds_no_engine();
        assert_eq!(run.report["event"], event);
    }
}

#[test]
fn checks_the_registry_before_the_engine() {
    let project = Project::new("unreachable");
    // The port is free again once the listener is dropped.
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let registry = format!("127.0.0.1:{port}");
    let run = ci(&project, &["publish", "--registry", &registry])
        .run()
        .exits(3)
        .says(&format!("cannot reach the registry {registry}"));
    assert_eq!(run.report["engine"], serde_json::Value::Null);
    assert_eq!(run.report["publish"], serde_json::Value::Null);
}
