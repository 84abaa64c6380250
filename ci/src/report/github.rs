//! What GitHub Actions gets of a run.

use super::json::Report;
use common::failure::{Failure, OrFail};

/// What GitHub Actions gets of a run: the outputs of the workflow's step, and the page beside it.
///
/// # Errors
/// When a file that GitHub names cannot be written (exit 3).
pub fn tell_github(report: &Report, summary: &str) -> Result<(), Failure> {
    let mut outputs = String::new();
    if let Some(digest) = report.digest.as_ref().filter(|_| report.verdict.passed) {
        outputs += &format!(
            "image={}\ntag={}\ndigest={digest}\n",
            report.image, report.tag
        );
    }
    // The next step of the workflow carries the folder away, where there is something new in it.
    if let Some(cache) = &report.cache {
        outputs += &format!("cache-changed={}\n", !cache.saved.is_empty());
    }
    append_to("GITHUB_OUTPUT", &outputs)?;
    append_to("GITHUB_STEP_SUMMARY", summary)
}

/// Appends to the file that a variable names, where it names one.
fn append_to(variable: &str, text: &str) -> Result<(), Failure> {
    let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    if text.is_empty() {
        return Ok(());
    }
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .or_environment(format!("cannot write {variable}"))
}
