//! Renders `code-quality.json`: everything that has a place in the sources, in GitLab's [code quality format].
//!
//! [code quality format]: https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format

use std::collections::BTreeSet;

use serde::Serialize;

use super::json::Report;
use super::text::shown;
use crate::model::cause::{CauseKind, Location};
use crate::model::finding::Severity;
use common::digest::sha256;
use common::failure::{Failure, OrFail};

/// A problem in a file.
#[derive(Serialize)]
struct Issue {
    description: String,
    check_name: &'static str,
    /// The same in each run, so that GitLab recognizes an old problem.
    fingerprint: String,
    severity: &'static str,
    location: Place,
}

#[derive(Serialize)]
struct Place {
    path: String,
    lines: Lines,
}

#[derive(Serialize)]
struct Lines {
    begin: u32,
}

/// Renders the problems of a run. Vulnerabilities are listed whether or not they fail the gate.
///
/// # Errors
/// When the problems cannot be serialized (exit code 3).
pub(super) fn code_quality(report: &Report) -> Result<String, Failure> {
    let causes = report.steps.iter().flat_map(|record| {
        let causes = record.causes.iter();
        // They are among the findings.
        let causes = causes.filter(|cause| cause.kind != CauseKind::Vulnerability);
        causes.filter_map(|cause| {
            let at = cause.location.as_ref()?;
            Some(Issue::new(record.name.name(), "major", &cause.title, at))
        })
    });
    let findings = report.steps.iter().flat_map(|record| {
        record.findings.iter().filter_map(|finding| {
            let severity = match finding.severity {
                Severity::Critical => "blocker",
                Severity::High => "critical",
                Severity::Medium => "major",
                Severity::Low => "minor",
                Severity::Unknown => "info",
            };
            let text = format!(
                "{} in {} {}, {}: {}",
                finding.id,
                finding.package,
                finding.version,
                finding.fix(),
                finding.title
            );
            let at = finding.location.as_ref()?;
            Some(Issue::new(record.name.name(), severity, &text, at))
        })
    });
    let mut known = BTreeSet::new();
    let issues: Vec<_> = causes
        .chain(findings)
        .filter(|issue| known.insert(issue.fingerprint.clone()))
        .collect();
    let text =
        serde_json::to_string_pretty(&issues).or_environment("cannot serialize the problems")?;
    Ok(text + "\n")
}

impl Issue {
    fn new(step: &'static str, severity: &'static str, text: &str, at: &Location) -> Self {
        Self {
            description: shown(text),
            check_name: step,
            // Without the line, which changes with every line above it.
            fingerprint: sha256(format!("{step}\0{}\0{text}", at.file).as_bytes()),
            severity,
            location: Place {
                path: shown(&at.file),
                lines: Lines { begin: at.line },
            },
        }
    }
}
