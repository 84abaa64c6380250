//! Writes the outputs and the job summary for GitHub Actions.

use super::json::Report;
use common::failure::{Failure, OrFail};

/// Writes the outputs of the workflow's step and the job summary.
///
/// # Errors
/// When one of GitHub's files cannot be written (exit code 3).
pub fn write_github_outputs(report: &Report, summary: &str) -> Result<(), Failure> {
    let mut outputs = String::new();
    if let Some(digest) = report.digest.as_ref().filter(|_| report.verdict.passed) {
        outputs += &format!(
            "image={}\ntag={}\ndigest={digest}\n",
            report.image, report.tag
        );
    }
    // The workflow's next step saves the cache directory if it has new content.
    if let Some(cache) = &report.cache {
        outputs += &format!("cache-changed={}\n", !cache.saved.is_empty());
    }
    append_to("GITHUB_OUTPUT", &outputs)?;
    append_to("GITHUB_STEP_SUMMARY", summary)
}

/// Appends to the file in an environment variable, if the variable is set.
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
