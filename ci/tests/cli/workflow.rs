//! The permissions of the GitHub workflow: it checks out and runs `ci`, and only one step of one job gets the token.

use std::path::Path;

use serde_json::Value;

fn read_workflow() -> Value {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../.github/workflows/docker-builder.yml");
    serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn jobs(workflow: &Value) -> Vec<(&str, &Value)> {
    let jobs = workflow["jobs"].as_object().unwrap();
    jobs.iter().map(|(name, job)| (&**name, job)).collect()
}

fn steps(job: &Value) -> &[Value] {
    job["steps"].as_array().unwrap()
}

#[test]
fn only_the_main_job_has_permission_to_write_packages() {
    let workflow = read_workflow();
    let events = workflow["on"].as_object().unwrap();
    assert_eq!(events.keys().collect::<Vec<_>>(), ["pull_request", "push"]);
    assert_eq!(events["push"], serde_json::json!({ "branches": ["main"] }));
    assert_eq!(
        workflow["permissions"],
        serde_json::json!({ "contents": "read" })
    );
    for (name, job) in jobs(&workflow) {
        assert!(job["timeout-minutes"].as_u64().unwrap() <= 60);
        let condition = job["if"].as_str().unwrap();
        if name == "code-scanning" {
            let permissions = serde_json::json!({ "security-events": "write" });
            assert_eq!(job["permissions"], permissions);
        } else if name == "main" {
            assert_eq!(condition, "github.event_name == 'push'");
            let permissions = serde_json::json!({ "contents": "read", "packages": "write" });
            assert_eq!(job["permissions"], permissions);
        } else {
            assert_eq!(condition, "github.event_name == 'pull_request'");
            assert!(job["permissions"].is_null(), "{name}");
        }
    }
}

#[test]
fn only_one_step_gets_the_token() {
    let workflow = read_workflow();
    let mut with_token = Vec::new();
    for (name, job) in jobs(&workflow) {
        for step in steps(job) {
            let text = step.to_string();
            if text.contains("secrets") || text.contains("github.token") {
                assert_eq!(text.matches("secrets.").count(), 1, "{text}");
                assert_eq!(step["env"]["GITHUB_TOKEN"], "${{ secrets.GITHUB_TOKEN }}");
                with_token.push((name, step["run"].as_str().unwrap()));
            }
        }
    }
    assert_eq!(with_token, [("main", "cargo run -p ci --locked")]);
    let whole = workflow.to_string();
    assert_eq!(whole.matches("secrets").count(), 1, "{whole}");
}

#[test]
fn jobs_only_build_and_run_ci() {
    let workflow = read_workflow();
    for (name, job) in jobs(&workflow) {
        let commands: Vec<_> = steps(job)
            .iter()
            .filter_map(|step| step["run"].as_str())
            .collect();
        // Whatever runs in this job could write to code scanning.
        let expected: &[_] = match name {
            "code-scanning" => &[],
            _ => &["cargo build -p ci --locked", "cargo run -p ci --locked"],
        };
        assert_eq!(commands, expected, "{name}");
        for step in steps(job) {
            if step["uses"]
                .as_str()
                .is_some_and(|it| it.starts_with("actions/checkout@"))
            {
                assert_eq!(step["with"]["persist-credentials"], false);
            }
        }
    }
}

#[test]
fn pull_requests_save_no_cache() {
    let workflow = read_workflow();
    for (name, job) in jobs(&workflow) {
        let saves = steps(job)
            .iter()
            .filter_map(|step| step["uses"].as_str())
            .filter(|uses| {
                uses.starts_with("actions/cache/save@") || uses.starts_with("actions/cache@")
            });
        assert_eq!(saves.count() > 0, name == "main", "{name}");
    }
}

#[test]
fn new_commits_cancel_only_runs_of_the_same_pull_request() {
    let concurrency = &read_workflow()["concurrency"];
    let group = concurrency["group"].as_str().unwrap();
    assert!(group.ends_with("${{ github.event.pull_request.number || github.sha }}"));
    let cancels = concurrency["cancel-in-progress"].as_str().unwrap();
    assert_eq!(cancels, "${{ github.event_name == 'pull_request' }}");
}
