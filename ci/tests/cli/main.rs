//! The command line, without an engine: what is wrong is said before one is looked for, and what is right gets as far as to
//! miss it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../e2e/harness.rs"]
#[expect(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "shared with the suite that has an engine and uses all of it"
)]
mod harness;

mod doctor;
mod help;
mod pins;
mod publish;
mod report;
mod settings;
mod source;
mod workflow;
mod workspace;

use std::path::Path;

use harness::{Ci, Outcome, Project};

/// An engine that does not exist: what gets as far as this was valid.
const NOWHERE: &str = "unix:///nonexistent/engine.sock";

/// A call in `directory` that would go on to an engine.
fn ci_in(directory: &Path, arguments: &[&str]) -> Ci {
    Ci::new(directory, &[arguments, &["--engine", NOWHERE]].concat())
}

fn ci(project: &Project, arguments: &[&str]) -> Ci {
    ci_in(project.path(), arguments)
}

/// Runs it without the engine that the caller's environment may name.
fn without_a_named_engine(ci: Ci) -> Outcome {
    let mut command = ci.into_command();
    let output = command.env_remove("LAB_CI_ENGINE").output().unwrap();
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

trait Ends {
    /// All was valid: only the engine is missing.
    fn misses_the_engine(self) -> Outcome;
    /// It was refused with this code and these words before any work, and nothing was left behind.
    fn refuses(self, code: i32, words: &str) -> Outcome;
}

impl Ends for Outcome {
    #[track_caller]
    fn misses_the_engine(self) -> Outcome {
        self.exits(3)
            .says(&format!("no engine listens on {NOWHERE}"))
    }

    #[track_caller]
    fn refuses(self, code: i32, words: &str) -> Outcome {
        let outcome = self.exits(code).says(words);
        assert!(outcome.report.is_null(), "{:#}", outcome.report);
        assert!(
            !outcome.stderr.contains("no engine"),
            "an engine was looked for:\n{}",
            outcome.stderr
        );
        outcome
    }
}
