//! Renders `junit.xml`: the tests, in the format that Jenkins, GitLab and most other tools read.

use std::time::Duration;

use quick_junit::{
    NonSuccessKind, Report as Junit, TestCase, TestCaseStatus, TestSuite, XmlString,
};

use super::json::Report;
use super::text::visible;
use crate::model::cause::{self, Cause, CauseKind, TestStatus};
use crate::model::record::{Record, Status};
use crate::model::step::Step;
use common::failure::{Failure, OrFail};

/// The suite of failures that belong to no test: a compiler error, or a test binary that crashed.
const OTHER: &str = "ci";

/// Renders the tests of a run. A run without tests has an empty list.
///
/// # Errors
/// When the tests cannot be serialized (exit code 3).
pub(super) fn junit(report: &Report) -> Result<String, Failure> {
    let mut junit = Junit::new("ci");
    let test = report.steps.iter().find(|step| step.name == Step::Test);
    if let Some(record) = test {
        junit.set_time(Duration::from_millis(record.duration_ms));
        junit.add_test_suites(suites(record));
    }
    junit
        .to_string()
        .or_environment("cannot serialize the tests")
}

fn suites(record: &Record) -> Vec<TestSuite> {
    let mut suites: Vec<TestSuite> = Vec::new();
    for test in &record.tests {
        if suites
            .last()
            .is_none_or(|it| it.name.as_str() != test.suite)
        {
            suites.push(TestSuite::new(text(&test.suite)));
        }
        if let Some(suite) = suites.last_mut() {
            suite.add_test_case(case(test, record));
        }
    }
    let others = record.causes.iter().filter(|it| it.kind != CauseKind::Test);
    let mut other = TestSuite::new(OTHER);
    if record.status == Status::Failed {
        other.add_test_cases(others.map(|cause| {
            let place = cause.location.as_ref().map(ToString::to_string);
            error(&cause.title, place.as_deref(), &cause.detail)
        }));
        if other.tests == 0 && suites.iter().all(|suite| suite.failures == 0) {
            let why = record.error.as_deref().unwrap_or_default();
            other.add_test_case(error(record.name.name(), None, why));
        }
    }
    if other.tests > 0 {
        suites.push(other);
    }
    suites
}

fn case(test: &cause::TestCase, record: &Record) -> TestCase {
    let is_cause = |it: &&Cause| it.kind == CauseKind::Test && it.title == test.name;
    let cause = record.causes.iter().find(is_cause);
    let status = match test.status {
        TestStatus::Passed => TestCaseStatus::success(),
        TestStatus::Ignored => TestCaseStatus::skipped(),
        TestStatus::Failed => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            if let Some(cause) = cause {
                status.set_message(text(cause.detail.lines().next().unwrap_or_default()));
                status.set_description(text(&cause.detail));
            }
            status
        }
    };
    let mut case = TestCase::new(text(&test.name), status);
    case.set_classname(text(&test.suite));
    // Not part of the format, but GitLab and others link to it.
    if let Some(at) = cause.and_then(|cause| cause.location.as_ref()) {
        case.extra.insert("file".into(), text(&at.file));
        case.extra.insert("line".into(), text(&at.line.to_string()));
    }
    if !test.output.is_empty() {
        case.set_system_out(text(&test.output));
    }
    case
}

fn error(title: &str, place: Option<&str>, detail: &str) -> TestCase {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
    let message = match place {
        Some(place) => format!("{place} {title}"),
        None => title.to_owned(),
    };
    status.set_message(text(&message));
    status.set_description(text(detail));
    let mut case = TestCase::new(text(title), status);
    case.set_classname(OTHER);
    case
}

/// Foreign text. XML cannot contain control characters, which are shown as symbols.
fn text(text: &str) -> XmlString {
    XmlString::new(visible(text))
}
