//! The findings in a step's output: the causes of a failure, the tests, and the current activity.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A place in a file of the working tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Location {
    /// The path, relative to the top of the working tree.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
}

/// Formats the location as compilers do: `src/main.rs:3:5`.
impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        match self.column {
            Some(column) => write!(f, ":{column}"),
            None => Ok(()),
        }
    }
}

/// The kind of a [`Cause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CauseKind {
    /// A test failed.
    Test,
    /// A test binary ended without reporting the results of its tests.
    TestBinary,
    /// The compiler, clippy or cargo reported an error.
    Diagnostic,
    /// rustfmt would change a file.
    Format,
    /// A package has a vulnerability.
    Vulnerability,
    /// One of the project's own gates failed.
    Gate,
    /// The service did not start or did not answer.
    Service,
    /// Nothing more specific is known than the last lines of output.
    Output,
}

/// A cause of a step's failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Cause {
    /// What kind of cause this is.
    pub kind: CauseKind,
    /// The problem, in one line: the name of the test, the compiler's message, the vulnerability and its package.
    pub title: String,
    /// Its place, if the cause has a place in the sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// More lines: the panic message, the rendered diagnostic, the diff, the last output. May be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The result of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestStatus {
    /// The test passed.
    Passed,
    /// The test failed.
    Failed,
    /// The test was not run, because it has the attribute `ignore`.
    Ignored,
}

/// A test that ran, or was ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestCase {
    /// The test binary, as cargo names it: `api src/main.rs`, `api tests/http.rs`, or `api doc tests`.
    pub suite: String,
    /// The test's path in its binary. A test binary without libtest counts as one test, with the binary's name.
    pub name: String,
    /// The result.
    pub status: TestStatus,
    /// What the test printed, if it failed.
    pub output: String,
}

/// How many tests had which result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TestCounts {
    /// The tests that passed.
    pub passed: usize,
    /// The tests that failed.
    pub failed: usize,
    /// The tests that were not run.
    pub ignored: usize,
}

impl TestCounts {
    /// Counts the results of `tests`.
    #[must_use]
    pub fn of(tests: &[TestCase]) -> Self {
        let mut counts = Self::default();
        for test in tests {
            counts.add(test.status);
        }
        counts
    }

    /// Adds one result.
    pub fn add(&mut self, status: TestStatus) {
        match status {
            TestStatus::Passed => self.passed += 1,
            TestStatus::Failed => self.failed += 1,
            TestStatus::Ignored => self.ignored += 1,
        }
    }

    /// The tests that ran.
    #[must_use]
    pub fn run(&self) -> usize {
        self.passed + self.failed
    }
}

/// What a step is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// What the step waits for, if it does: another run, an image, a program that is being compiled.
    pub waiting_for: Option<String>,
    /// The crates that cargo has compiled.
    pub crates: Option<Crates>,
    /// The results of the tests so far.
    pub tests: TestCounts,
    /// The last line of output.
    pub last_line: String,
}

/// The progress of cargo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crates {
    /// The crates that are compiled, or were compiled before.
    pub done: usize,
    /// All crates of the build.
    pub all: usize,
}
