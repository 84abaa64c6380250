//! Verifies the OpenAPI document and the metrics with third-party tools.

use std::{collections::BTreeSet, process::Command, thread, time::Duration};

use common::pins;

use crate::{
    dependencies::{Server, redis_url},
    harness::{Service, free_port, venv},
};

/// A service with a Redis that is up, and two checks that are down: one critical, one with a password.
fn service() -> (Service, Server) {
    let redis = Server::redis();
    let configuration = format!(
        r#"
[redis]
url = "{}"

[defaults]
interval = "500ms"
failures = 1

[[checks]]
name = "gone"
tcp = "127.0.0.1:{}"
critical = true

[[checks]]
name = "database"
postgres = "postgresql://app:s3cret@127.0.0.1:{}/app"
"#,
        redis_url(&redis),
        free_port(),
        free_port(),
    );
    let service = Service::start(&configuration, &[]);
    let changed = |name: &str, to: &str| {
        service
            .log()
            .iter()
            .any(|line| line["check"] == name && line["to"] == to)
    };
    while !(changed("redis", "Up") && changed("gone", "Down") && changed("database", "Down")) {
        thread::sleep(Duration::from_millis(50));
    }
    (service, redis)
}

#[test]
fn schemathesis_finds_no_response_that_violates_the_openapi_document() {
    let (service, _redis) = service();
    let tool = venv("schemathesis", pins::SCHEMATHESIS, &[]);
    let output = Command::new(tool.join("bin/schemathesis"))
        .args(["run", &service.url("/openapi.json"), "--checks", "all"])
        // An event stream does not end; the module `events` tests it.
        .args(["--exclude-path", "/events", "--request-timeout", "5"])
        .args(["--max-examples", "50", "--no-color"])
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}");
    // Schemathesis received more than 404 responses.
    assert!(!report.contains("Missing test data"), "{report}");
    let line = report
        .lines()
        .find(|line| line.ends_with(" passed") && line.contains("generated"))
        .unwrap();
    let cases: u32 = line.split_whitespace().next().unwrap().parse().unwrap();
    assert!(cases > 300, "{line}");
}

/// Parses `/metrics` strictly in the format of the second argument, and prints the samples.
const PARSE: &str = r#"
import sys, urllib.request
if sys.argv[2].startswith("application/openmetrics-text"):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families
else:
    from prometheus_client.parser import text_string_to_metric_families
with urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers={"Accept": sys.argv[2]})) as answer:
    assert answer.headers["content-type"].startswith(sys.argv[2]), answer.headers
    text = answer.read().decode()
for family in text_string_to_metric_families(text):
    for sample in family.samples:
        print(family.type, sample.name, sorted(sample.labels.items()), sample.value)
"#;

#[test]
fn prometheus_client_parses_the_metrics_in_both_formats() {
    let (service, _redis) = service();
    let tool = venv("prometheus-client", pins::PROMETHEUS_CLIENT, &[]);
    let parse = |format: &str| {
        let output = Command::new(tool.join("bin/python"))
            .args(["-c", PARSE, &service.url("/metrics"), format])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let openmetrics = "application/openmetrics-text; version=1.0.0";
    // The first scrape adds the metrics of this request.
    parse(openmetrics);
    let samples = parse(openmetrics);
    let text = parse("text/plain; version=0.0.4");
    let names = |samples: &str| {
        let lines = samples.lines().map(|line| line.split(' ').nth(1).unwrap());
        lines.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&text), names(&samples));
    for expected in [
        "gauge check_up [('check', 'redis'), ('critical', 'false'), ('kind', 'redis')] 1.0",
        "gauge check_up [('check', 'gone'), ('critical', 'true'), ('kind', 'tcp')] 0.0",
        "gauge probe_success [('check', 'database'), ('critical', 'false'), ('kind', 'postgres')] 0.0",
        "info build_info [('created', ''), ('revision', ''), ('version', '0.1.0')] 1",
        "gauge event_streams [] 0",
    ] {
        assert!(
            samples.lines().any(|line| line == expected),
            "{expected}\n{samples}"
        );
    }
    for name in [
        "gauge process_start_time_seconds ",
        "gauge process_resident_memory_bytes ",
        "counter process_cpu_seconds_total ",
        "counter probes_total ",
        "counter probe_failures_total ",
        "gauge probe_duration_seconds ",
    ] {
        assert!(
            samples.lines().any(|line| line.starts_with(name)),
            "{name}\n{samples}"
        );
    }
    assert!(!samples.contains("s3cret"));
}
