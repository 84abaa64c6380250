//! The smoke test passes only if the container answers `GET /health` with 200 in time, and otherwise reports the container's
//! output.

use crate::harness::{Outcome, Project};

/// Each service prints these lines at its start, the first to standard output and the second to standard error.
const OUTPUT: [&str; 2] = ["the service starts", "the service has no configuration"];

/// The source of a service that prints [`OUTPUT`] and then runs `body`.
fn service(body: &str) -> String {
    format!(
        r#"#![allow(unused)]
use std::io::{{Read, Write}};
use std::net::TcpListener;
use std::time::Duration;

fn main() {{
    println!("{}");
    eprintln!("{}");
    {body}
}}

/// Answers every request on `address` with the status line that `answer` returns.
fn serve(address: &str, answer: impl Fn(&str) -> &'static str) {{
    let listener = TcpListener::bind(address).expect("the port is free");
    for stream in listener.incoming() {{
        let Ok(mut stream) = stream else {{ continue }};
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap_or_default();
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        let answer = answer(&request);
        let _ = write!(stream, "HTTP/1.1 {{answer}}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }}
}}
"#,
        OUTPUT[0], OUTPUT[1]
    )
}

/// A shorter limit than the default of 20 tries within 20 s, for services that never become healthy.
const SHORT_LIMIT: &str = "[smoke]\ntries = 20\nwithin = \"4s\"\n";
const DEFAULT_LIMIT: &str = "";

/// Runs the smoke test of a service that runs `body`, with these settings, and returns outcome and log.
fn run_smoke_test(name: &str, body: &str, settings: &str) -> (Outcome, String) {
    let project = Project::new(&format!("smoke-{name}"));
    project.write("api/src/main.rs", &service(body));
    project.write("ci.toml", settings);
    project.commit(name);
    let run = project.ci(&["smoke"]).run();
    // The outcome explains a missing log.
    let log = project.path().join("target/ci/logs/smoke.log");
    (run, std::fs::read_to_string(log).unwrap_or_default())
}

/// Asserts that the smoke test failed for this reason, and that the log is exactly the service's output.
#[track_caller]
fn assert_fails((run, log): (Outcome, String), why: &str, last_lines: &[&str]) {
    let run = run
        .exits(1)
        .only_fails("smoke")
        .says(why)
        .says(OUTPUT[0])
        .says(OUTPUT[1]);
    assert_eq!(run.status("build"), "passed");
    let mut log: Vec<_> = log.lines().collect();
    log.sort_unstable();
    let mut expected = [&OUTPUT[..], last_lines].concat();
    expected.sort_unstable();
    assert_eq!(log, expected, "the log is not the container's output");
}

#[test]
fn fails_with_the_exit_code_of_a_crashed_service() {
    let run = run_smoke_test("crashes", "std::process::exit(7);", DEFAULT_LIMIT);
    assert_fails(run, "the service exited with code 7", &[]);
}

#[test]
fn fails_when_the_service_exits_with_0() {
    let run = run_smoke_test("ends", "", DEFAULT_LIMIT);
    assert_fails(run, "the service exited with code 0", &[]);
}

#[test]
fn fails_with_the_last_output_of_a_service_that_crashes_later() {
    let body = r#"std::thread::spawn(|| serve("0.0.0.0:8000", |_| "503 Service Unavailable"));
    std::thread::sleep(Duration::from_secs(1));
    eprintln!("the database is gone");
    std::process::exit(101);"#;
    assert_fails(
        run_smoke_test("crashes-later", body, DEFAULT_LIMIT),
        "the service exited with code 101",
        &["the database is gone"],
    );
}

#[test]
fn fails_when_the_service_hangs() {
    let body = "loop { std::thread::sleep(Duration::from_secs(60)); }";
    let run = run_smoke_test("hangs", body, SHORT_LIMIT);
    assert_fails(run, "no connection to port 8000", &[]);
}

#[test]
fn fails_when_the_service_answers_500() {
    let body = r#"serve("0.0.0.0:8000", |_| "500 Internal Server Error");"#;
    let run = run_smoke_test("answers-500", body, SHORT_LIMIT);
    assert_fails(run, "status 500 Internal Server Error", &[]);
}

#[test]
fn fails_when_the_service_redirects() {
    let body = r#"serve("0.0.0.0:8000", |request| {
        if request.starts_with("GET /health ") {
            "302 Found\r\nlocation: /elsewhere"
        } else {
            "200 OK"
        }
    });"#;
    let run = run_smoke_test("redirects", body, SHORT_LIMIT);
    assert_fails(run, "status 302 Found", &[]);
}

#[test]
fn fails_when_the_service_listens_on_another_port() {
    let body = r#"serve("0.0.0.0:8001", |_| "200 OK");"#;
    let run = run_smoke_test("wrong-port", body, SHORT_LIMIT);
    assert_fails(run, "no connection to port 8000", &[]);
}

#[test]
fn fails_when_the_service_never_answers() {
    let body = r#"let listener = TcpListener::bind("0.0.0.0:8000").expect("the port is free");
    let kept: Vec<_> = listener.incoming().collect();"#;
    let run = run_smoke_test("never-answers", body, SHORT_LIMIT);
    assert_fails(run, "no response within 2 s", &[]);
}

#[test]
fn passes_when_the_service_starts_after_19_seconds() {
    let body = r#"std::thread::sleep(Duration::from_secs(19));
    serve("0.0.0.0:8000", |_| "200 OK");"#;
    let run = run_smoke_test("needs-19-s", body, DEFAULT_LIMIT).0.exits(0);
    assert_eq!(run.status("smoke"), "passed");
}

#[test]
fn fails_when_the_service_starts_after_25_seconds() {
    let body = r#"std::thread::sleep(Duration::from_secs(25));
    serve("0.0.0.0:8000", |_| "200 OK");"#;
    let run = run_smoke_test("needs-25-s", body, DEFAULT_LIMIT);
    assert_fails(run, "20 tries within 20s", &[]);
}

#[test]
fn a_crash_fails_only_the_smoke_test() {
    let project = Project::new("crash");
    project.edit(
        "api/src/main.rs",
        "println!(\"listening\");",
        "assert!(std::env::args().count() > 1, \"no arguments\");",
    );
    project.commit("a service that needs an argument");
    let run = project
        .ci(&[])
        .run()
        .exits(1)
        .only_fails("smoke")
        .says("the service exited with code 101")
        .says("no arguments");
    for step in ["test", "fmt", "lint", "build", "scan"] {
        assert_eq!(run.status(step), "passed", "{step}");
    }
}

#[test]
fn starts_and_probes_the_image_again_in_every_run() {
    let project = Project::new("smoke-again");
    project.edit(
        "api/src/main.rs",
        "let _ = stream.read(&mut request);",
        "let _ = stream.read(&mut request);\n        print!(\"{}\", String::from_utf8_lossy(&request));",
    );
    project.commit("a service that prints its requests");
    let digests = [1, 2].map(|_| {
        let run = project.ci(&["smoke"]).run().exits(0);
        assert_eq!(run.step("smoke")["cached"], false);
        let log = project.read("target/ci/logs/smoke.log");
        assert!(log.contains("GET /health"), "{log}");
        std::fs::remove_dir_all(project.path().join("target")).unwrap();
        run.step("smoke")["digest"].clone()
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn says_where_a_service_listens_instead() {
    for (name, address, advice) in [
        (
            "loopback",
            "127.0.0.1:8000",
            "let it bind to 0.0.0.0 instead of 127.0.0.1",
        ),
        (
            "other-port",
            "0.0.0.0:3000",
            "listens on port 3000, not on 8000",
        ),
    ] {
        let body = format!("serve(\"{address}\", |_| \"200 OK\");");
        let (run, _) = run_smoke_test(name, &body, SHORT_LIMIT);
        run.exits(1).says(advice);
    }
}
