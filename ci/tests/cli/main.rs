//! Tests of the command line that need no engine: invalid input is rejected before `ci` looks for an engine, and valid input
//! fails only because the engine is missing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../e2e/harness.rs"]
#[expect(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "shared with the e2e suite, which uses all of it"
)]
mod harness;

mod completions;
mod docs;
mod doctor;
mod help;
mod init;
mod pins;
mod publish;
mod report;
mod settings;
mod snapshot;
mod source;
mod words;
mod workflow;
mod workspace;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;

use harness::{Ci, Outcome, Project};

/// The address of an engine that does not exist. A call that gets as far as this address was valid.
const MISSING_ENGINE: &str = "unix:///nonexistent/engine.sock";

/// A call in `directory` with an engine that does not exist.
fn ci_in(directory: &Path, arguments: &[&str]) -> Ci {
    Ci::new(
        directory,
        &[arguments, &["--engine", MISSING_ENGINE]].concat(),
    )
}

/// The address of a server that reads the head of each request and answers with `response`.
fn server(response: &'static str) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            // The client may have closed the connection.
            let _ = stream.write_all(response.as_bytes());
        }
    });
    address
}

/// The address of a registry that refuses every request. `ci` would try again for seconds to reach one that does not listen.
fn refusing_registry() -> String {
    server("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn ci(project: &Project, arguments: &[&str]) -> Ci {
    ci_in(project.path(), arguments)
}

/// Runs the call without the variables that the harness sets.
fn run_without_engine_setting(ci: Ci) -> Outcome {
    let mut command = ci.into_command();
    let output = command
        .env_remove("LAB_CI_ENGINE")
        .env_remove("LAB_CI_MEMORY")
        .output()
        .unwrap();
    let report = command
        .get_current_dir()
        .unwrap()
        .join("target/ci/report.json");
    Outcome {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        report: std::fs::read_to_string(report).map_or(serde_json::Value::Null, |text| {
            serde_json::from_str(&text).unwrap()
        }),
    }
}

trait Assertions {
    /// Asserts that all input was valid and only the engine is missing.
    fn finds_no_engine(self) -> Outcome;
    /// Asserts that the call was refused with this exit code and message before any work, without a report.
    fn refuses(self, code: i32, words: &str) -> Outcome;
}

impl Assertions for Outcome {
    #[track_caller]
    fn finds_no_engine(self) -> Outcome {
        self.exits(3)
            .says(&format!("no engine listens on {MISSING_ENGINE}"))
    }

    #[track_caller]
    fn refuses(self, code: i32, words: &str) -> Outcome {
        let outcome = self.exits(code).says(words);
        assert!(outcome.report.is_null(), "{:#}", outcome.report);
        assert!(
            !outcome.stderr.contains("no engine"),
            "ci looked for an engine:\n{}",
            outcome.stderr
        );
        outcome
    }
}
