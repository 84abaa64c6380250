//! The smoke test: only a container that answers `GET /health` with 200 in time passes, and one that does not is heard.

use crate::harness::{Outcome, Project};

/// Each service says this at its start, the first on standard output and the second on standard error.
const SAYS: [&str; 2] = ["the service starts", "the service has no configuration"];

/// A service that speaks and then does `body`.
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

/// Answers every request on `port` with what `answer` makes of its first line.
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
        SAYS[0], SAYS[1]
    )
}

/// A limit that a service which never answers well reaches soon, instead of the default of 20 tries within 20 s.
const SOON: &str = "[smoke]\ntries = 20\nwithin = \"4s\"\n";
const DEFAULT: &str = "";

/// Runs the smoke test of a service that does `body`, with these settings; returns its outcome and log.
fn smoke(name: &str, body: &str, settings: &str) -> (Outcome, String) {
    let project = Project::new(&format!("smoke-{name}"));
    project.write("api/src/main.rs", &service(body));
    project.write("ci.toml", settings);
    project.commit(name);
    let run = project.ci(&["smoke"]).run();
    // Where there is none, the run itself tells why.
    let log = project.path().join("target/ci/logs/smoke.log");
    (run, std::fs::read_to_string(log).unwrap_or_default())
}

/// The smoke test of this service failed, for this reason, and the service was heard: nothing but what it said.
#[track_caller]
fn fails((run, log): (Outcome, String), why: &str, last_words: &[&str]) {
    let run = run
        .exits(1)
        .only_fails("smoke")
        .says(why)
        .says(SAYS[0])
        .says(SAYS[1]);
    assert_eq!(run.status("build"), "passed");
    let mut log: Vec<_> = log.lines().collect();
    log.sort_unstable();
    let mut said = [&SAYS[..], last_words].concat();
    said.sort_unstable();
    assert_eq!(log, said, "the log is what the container said");
}

#[test]
fn a_service_that_crashes_fails_with_its_exit_code() {
    let run = smoke("crashes", "std::process::exit(7);", DEFAULT);
    fails(run, "the service ended with exit code 7", &[]);
}

#[test]
fn a_service_that_ends_well_fails_too() {
    let run = smoke("ends", "", DEFAULT);
    fails(run, "the service ended with exit code 0", &[]);
}

#[test]
fn a_service_that_crashes_later_fails_with_its_last_words() {
    let body = r#"std::thread::spawn(|| serve("0.0.0.0:8000", |_| "503 Service Unavailable"));
    std::thread::sleep(Duration::from_secs(1));
    eprintln!("the database is gone");
    std::process::exit(101);"#;
    fails(
        smoke("crashes-later", body, DEFAULT),
        "the service ended with exit code 101",
        &["the database is gone"],
    );
}

#[test]
fn a_service_that_hangs_fails() {
    let body = "loop { std::thread::sleep(Duration::from_secs(60)); }";
    let run = smoke("hangs", body, SOON);
    fails(run, "nothing answers on port 8000", &[]);
}

#[test]
fn a_service_that_answers_500_fails() {
    let body = r#"serve("0.0.0.0:8000", |_| "500 Internal Server Error");"#;
    let run = smoke("answers-500", body, SOON);
    fails(run, "it answered 500 Internal Server Error", &[]);
}

#[test]
fn a_redirect_is_no_answer_whatever_it_leads_to() {
    let body = r#"serve("0.0.0.0:8000", |request| {
        if request.starts_with("GET /health ") {
            "302 Found\r\nlocation: /elsewhere"
        } else {
            "200 OK"
        }
    });"#;
    let run = smoke("redirects", body, SOON);
    fails(run, "it answered 302 Found", &[]);
}

#[test]
fn a_service_on_another_port_fails() {
    let body = r#"serve("0.0.0.0:8001", |_| "200 OK");"#;
    let run = smoke("wrong-port", body, SOON);
    fails(run, "nothing answers on port 8000", &[]);
}

#[test]
fn a_service_that_accepts_and_never_answers_fails() {
    let body = r#"let listener = TcpListener::bind("0.0.0.0:8000").expect("the port is free");
    let kept: Vec<_> = listener.incoming().collect();"#;
    let run = smoke("never-answers", body, SOON);
    fails(run, "it did not answer within 2 s", &[]);
}

#[test]
fn a_service_that_needs_19_seconds_passes() {
    let body = r#"std::thread::sleep(Duration::from_secs(19));
    serve("0.0.0.0:8000", |_| "200 OK");"#;
    let run = smoke("needs-19-s", body, DEFAULT).0.exits(0);
    assert_eq!(run.status("smoke"), "passed");
}

#[test]
fn a_service_that_needs_25_seconds_fails() {
    let body = r#"std::thread::sleep(Duration::from_secs(25));
    serve("0.0.0.0:8000", |_| "200 OK");"#;
    let run = smoke("needs-25-s", body, DEFAULT);
    fails(run, "20 tries within 20s", &[]);
}

#[test]
fn a_crash_does_not_touch_the_other_gates() {
    let project = Project::new("crash");
    project.edit(
        "api/src/main.rs",
        "println!(\"listening\");",
        "assert!(std::env::args().count() > 1, \"no arguments\");",
    );
    project.commit("a service that wants what the image does not give");
    let run = project
        .ci(&[])
        .run()
        .exits(1)
        .only_fails("smoke")
        .says("the service ended with exit code 101")
        .says("no arguments");
    for step in ["test", "fmt", "lint", "build", "scan"] {
        assert_eq!(run.status(step), "passed", "{step}");
    }
}

#[test]
fn the_same_image_is_started_and_asked_again_in_every_run() {
    let project = Project::new("smoke-again");
    project.edit(
        "api/src/main.rs",
        "let _ = stream.read(&mut request);",
        "let _ = stream.read(&mut request);\n        print!(\"{}\", String::from_utf8_lossy(&request));",
    );
    project.commit("a service that tells what it is asked");
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
