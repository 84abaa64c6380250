//! Reads the text that `cargo test` and libtest print. It is stable, unlike libtest's JSON.

use std::collections::{HashMap, VecDeque};

use super::paths::{SourcePaths, detail};
use crate::model::cause::{Cause, CauseKind, Location, TestCase, TestCounts, TestStatus};

/// What cargo prints after a test binary that failed.
const FAILED: [&str; 2] = [
    "error: test failed, to rerun pass",
    "error: doctest failed, to rerun pass",
];
/// How many lines of a binary's output are kept, in case that it crashes.
const TAIL: usize = 30;

/// The part of libtest's output that is being read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Section {
    /// Results: `test NAME ... ok`.
    #[default]
    Results,
    /// The output of the failed test of this name, or what is before the first one.
    Output(Option<String>),
    /// The names of the failed tests.
    Names,
}

/// A test binary that is running.
#[derive(Debug, Default)]
struct Suite {
    name: String,
    /// The name of the binary, for a test binary without libtest.
    binary: String,
    is_doc: bool,
    /// libtest announced its tests.
    announced: bool,
    /// libtest reported the sum of the results.
    finished: bool,
    /// Cargo reported that the binary failed.
    failed: bool,
    /// How the process ended, as cargo says: `exit status: 1`.
    ended: Option<String>,
    /// A test whose result follows after other output.
    pending: Option<String>,
    section: Section,
    results: Vec<(String, TestStatus)>,
    outputs: HashMap<String, Vec<String>>,
    tail: VecDeque<String>,
}

/// The results so far.
#[derive(Debug, Default)]
pub(super) struct Libtest {
    suite: Option<Suite>,
    cases: Vec<TestCase>,
    causes: Vec<Cause>,
    counts: TestCounts,
}

impl Libtest {
    /// Reads a line; returns whether it belongs to the run of a test binary.
    pub(super) fn line(&mut self, line: &str, paths: &SourcePaths) -> bool {
        if let Some(suite) = Suite::starting(line) {
            self.close(paths);
            self.suite = Some(suite);
            return true;
        }
        let Some(suite) = &mut self.suite else {
            return false;
        };
        // Cargo prints how the process ended in the next lines.
        if FAILED.iter().any(|sign| line.starts_with(sign)) && !suite.is_inside_output() {
            suite.failed = true;
            return true;
        }
        if let Some(status) = suite.line(line) {
            self.counts.add(status);
        }
        true
    }

    pub(super) fn counts(&self) -> TestCounts {
        self.counts
    }

    pub(super) fn finish(mut self, paths: &SourcePaths) -> (Vec<TestCase>, Vec<Cause>) {
        self.close(paths);
        (self.cases, self.causes)
    }

    /// Ends the current test binary.
    fn close(&mut self, paths: &SourcePaths) {
        let Some(mut suite) = self.suite.take() else {
            return;
        };
        if !suite.announced {
            let status = if suite.failed {
                TestStatus::Failed
            } else {
                TestStatus::Passed
            };
            self.counts.add(status);
            suite.results.push((suite.binary.clone(), status));
        }
        for (name, status) in std::mem::take(&mut suite.results) {
            let mut output = String::new();
            if status == TestStatus::Failed {
                let lines = suite.outputs.remove(&name).unwrap_or_default();
                output = lines.join("\n");
                if suite.announced {
                    self.causes.push(suite.cause(&name, &lines, paths));
                }
            }
            self.cases.push(TestCase {
                suite: suite.name.clone(),
                name,
                status,
                output,
            });
        }
        // A binary that failed although none of its tests did: it crashed, or does not use libtest.
        if suite.failed && !suite.finished {
            let tail: Vec<_> = suite.tail.into_iter().collect();
            let how = suite.ended.unwrap_or_else(|| "it failed".to_owned());
            self.causes.push(Cause {
                kind: CauseKind::TestBinary,
                title: format!("{} ({how})", suite.name),
                location: panic_of(&tail).and_then(|(place, _)| paths.parse(place)),
                detail: detail(&tail),
            });
        }
    }
}

impl Suite {
    /// The test binary that cargo starts, if the line says so: `Running unittests src/main.rs (target/debug/deps/api-0123)`.
    fn starting(line: &str) -> Option<Self> {
        if let Some(package) = line.strip_prefix("   Doc-tests ") {
            return Some(Self {
                name: format!("{package} doc tests"),
                is_doc: true,
                ..Self::default()
            });
        }
        let rest = line.strip_prefix("     Running ")?;
        let (source, binary) = rest.strip_suffix(')')?.rsplit_once(" (")?;
        let binary = binary.rsplit('/').next().unwrap_or(binary);
        // Cargo adds a hash to the name.
        let binary = binary.rsplit_once('-').map_or(binary, |(name, _)| name);
        let source = source.strip_prefix("unittests ").unwrap_or(source);
        Some(Self {
            name: format!("{binary} {source}"),
            binary: binary.to_owned(),
            ..Self::default()
        })
    }

    fn is_inside_output(&self) -> bool {
        matches!(self.section, Section::Output(Some(_)))
    }

    /// Reads a line, and returns the result of a test if it has one.
    fn line(&mut self, line: &str) -> Option<TestStatus> {
        if let Some(ended) = exit_of(line)
            && self.failed
        {
            self.ended = Some(ended.to_owned());
            return None;
        }
        if !self.failed {
            self.tail.push_back(line.to_owned());
            if self.tail.len() > TAIL {
                self.tail.pop_front();
            }
        }
        if line.starts_with("test result: ") {
            self.finished = true;
            self.section = Section::Results;
            return None;
        }
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
            && self.section != Section::Results
        {
            self.section = Section::Output(Some(name.to_owned()));
            return None;
        }
        match &self.section {
            Section::Results => self.result(line),
            // The names come after the output.
            Section::Output(_) if line == "failures:" => {
                self.section = Section::Names;
                None
            }
            Section::Output(Some(name)) => {
                let lines = self.outputs.entry(name.clone()).or_default();
                lines.push(line.to_owned());
                None
            }
            Section::Output(None) | Section::Names => None,
        }
    }

    fn result(&mut self, line: &str) -> Option<TestStatus> {
        if is_announcement(line) {
            self.announced = true;
            return None;
        }
        if line == "failures:" && self.announced {
            self.section = Section::Output(None);
            return None;
        }
        if let Some(rest) = line.strip_prefix("test ") {
            let last = rest.rsplit_once(" ... ");
            if let Some((name, Some(status))) = last.map(|(name, word)| (name, status_of(word))) {
                self.pending = None;
                return Some(self.record(name.to_owned(), status));
            }
            if let Some((name, _)) = rest.split_once(" ... ") {
                self.pending = Some(name.to_owned());
                return None;
            }
        }
        let status = status_of(line)?;
        let name = self.pending.take()?;
        Some(self.record(name, status))
    }

    fn record(&mut self, name: String, status: TestStatus) -> TestStatus {
        self.results.push((name, status));
        status
    }

    fn cause(&self, name: &str, lines: &[String], paths: &SourcePaths) -> Cause {
        let (location, message) = match panic_of(lines) {
            Some((place, message)) => (paths.parse(place), message),
            None => (None, lines),
        };
        Cause {
            kind: CauseKind::Test,
            title: name.to_owned(),
            location: location.or_else(|| self.place_of_doc_test(name, paths)),
            detail: detail(message),
        }
    }

    /// The place of a doc test, which its name contains: `src/lib.rs - double (line 3)`.
    fn place_of_doc_test(&self, name: &str, paths: &SourcePaths) -> Option<Location> {
        if !self.is_doc {
            return None;
        }
        let (file, rest) = name.split_once(" - ")?;
        let (_, line) = rest.split_once("(line ")?;
        let line = line.split(')').next()?.parse().ok()?;
        paths.location(file, line, None)
    }
}

/// Whether the line announces the number of tests: `running 3 tests`.
fn is_announcement(line: &str) -> bool {
    let count = line.strip_prefix("running ").and_then(|rest| {
        rest.strip_suffix(" tests")
            .or_else(|| rest.strip_suffix(" test"))
    });
    count.is_some_and(|count| count.parse::<usize>().is_ok())
}

fn status_of(word: &str) -> Option<TestStatus> {
    match word {
        "ok" => Some(TestStatus::Passed),
        "FAILED" => Some(TestStatus::Failed),
        _ if word == "ignored" || word.starts_with("ignored, ") => Some(TestStatus::Ignored),
        _ => None,
    }
}

/// How a process ended, from cargo's `process didn't exit successfully: PROGRAM (exit status: 1)`.
fn exit_of(line: &str) -> Option<&str> {
    let rest = line
        .trim_start()
        .strip_prefix("process didn't exit successfully: ")?;
    let (_, how) = rest.strip_suffix(')')?.rsplit_once(" (")?;
    Some(how)
}

/// The place of the first panic in a test's output, and the lines of its message.
fn panic_of(lines: &[String]) -> Option<(&str, &[String])> {
    let at = lines
        .iter()
        .position(|line| line.starts_with("thread '") && line.contains(" panicked at "))?;
    let (_, place) = lines[at].split_once(" panicked at ")?;
    let message = &lines[at + 1..];
    let end = message
        .iter()
        .position(|line| line.starts_with("note: ") || line == "stack backtrace:")
        .unwrap_or(message.len());
    Some((place, &message[..end]))
}
