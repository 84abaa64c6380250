//! Writes the report of a run, in every format.

use std::path::Path;

use super::code_quality::code_quality;
use super::json::Report;
use super::junit::junit;
use super::page::page;
use super::places;
use super::previous::{Previous, REPORT};
use super::summary::summary;
use common::failure::{Failure, OrFail};

/// Writes all reports to `directory`, filtered by `redact`, and returns the summary. The logs are there already; the page compares the
/// run with the `previous` one.
///
/// # Errors
/// When a file cannot be written (exit code 3).
pub fn write(
    report: &Report,
    directory: &Path,
    previous: Option<&Previous>,
    redact: impl Fn(&str) -> String,
) -> Result<String, Failure> {
    std::fs::create_dir_all(directory)
        .or_environment(format!("cannot create {}", directory.display()))?;
    let summary = redact(&summary(report));
    places::write(directory, "summary.md", &summary)?;
    places::write(directory, "junit.xml", &redact(&junit(report)?))?;
    places::write(
        directory,
        "code-quality.json",
        &redact(&code_quality(report)?),
    )?;
    places::write(
        directory,
        "report.html",
        &redact(&page(report, directory, previous)?),
    )?;
    // The last one: with it, all others are there.
    places::write(directory, REPORT, &report.text(redact)?)?;
    Ok(summary)
}
