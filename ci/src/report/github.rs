//! GitHub Actions: workflow commands in the log, the outputs of the workflow's step, and the job summary.

use std::path::Path;

use super::json::Report;
use super::text::{failure_text, shown};
use crate::model::cause::Cause;
use crate::model::record::{Record, Status};
use common::failure::{Failure, OrFail};

/// GitHub shows at most this many error annotations of a workflow's step.
const ANNOTATIONS: usize = 10;
/// The lines of a cause's detail in its annotation.
const DETAIL: usize = 8;

/// The annotations of a run, as [workflow
/// commands](https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands): of each failed step in turn, so
/// that one with many causes does not hide the others. The last one counts those that GitHub would not show.
#[must_use]
pub(super) fn annotations(report: &Report) -> String {
    let failed: Vec<&Record> = report
        .steps
        .iter()
        .filter(|record| record.status == Status::Failed)
        .collect();
    let mut queues: Vec<_> = failed
        .iter()
        .map(|record| {
            let placed = record.causes.iter().filter(|it| it.location.is_some());
            let mut all: Vec<_> = placed.map(|cause| of_cause(record, cause)).collect();
            if all.is_empty() {
                all.push(of_step(record));
            }
            all.into_iter()
        })
        .collect();
    let total: usize = queues.iter().map(ExactSizeIterator::len).sum();
    let room = if total > ANNOTATIONS {
        ANNOTATIONS - 1
    } else {
        ANNOTATIONS
    };
    let mut chosen = Vec::new();
    while chosen.len() < room.min(total) {
        for queue in &mut queues {
            if chosen.len() < room {
                chosen.extend(queue.next());
            }
        }
    }
    let mut text = chosen.concat();
    if total > chosen.len() {
        let more = format!(
            "{} more errors; see the job summary or report.json",
            total - chosen.len()
        );
        text += &annotation(&[("title", "ci")], &more);
    }
    text
}

fn of_cause(record: &Record, cause: &Cause) -> String {
    let mut message = shown(&cause.title);
    for line in cause.detail.lines().take(DETAIL) {
        message += &format!("\n{}", shown(line));
    }
    let title = format!("ci: {}", record.name);
    let Some(at) = &cause.location else {
        return annotation(&[("title", &title)], &message);
    };
    let line = at.line.to_string();
    let column = at.column.map(|column| column.to_string());
    let mut properties = vec![("file", &*at.file), ("line", &line)];
    properties.extend(column.as_deref().map(|column| ("col", column)));
    properties.push(("title", &title));
    annotation(&properties, &message)
}

fn of_step(record: &Record) -> String {
    let title = format!("ci: {}", record.name);
    annotation(&[("title", &title)], &failure_text(record))
}

/// The annotation of a failure outside of the steps.
#[must_use]
pub(super) fn of_failure(failure: &Failure) -> String {
    annotation(&[("title", "ci")], &shown(&failure.to_string()))
}

fn annotation(properties: &[(&str, &str)], message: &str) -> String {
    let escaped = |text: &str| {
        text.replace('%', "%25")
            .replace('\r', "%0D")
            .replace('\n', "%0A")
    };
    let properties: Vec<_> = properties
        .iter()
        .map(|(name, value)| {
            let value = escaped(value).replace(':', "%3A").replace(',', "%2C");
            format!("{name}={value}")
        })
        .collect();
    format!("::error {}::{}\n", properties.join(","), escaped(message))
}

/// Lines in a group that is closed at first. GitHub executes no workflow commands in them.
#[must_use]
pub(super) fn group(title: &str, lines: &str) -> String {
    format!(
        "::group::{}\n{}::endgroup::\n",
        shown(title),
        without_commands(lines)
    )
}

/// Prevents GitHub from executing workflow commands in a program's output, by
/// [stopping](https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands#stopping-and-starting-workflow-commands)
/// commands with a random token, which the output cannot contain.
#[must_use]
pub(super) fn without_commands(text: &str) -> String {
    let mut word = [0; 16];
    if let Err(error) = getrandom::fill(&mut word) {
        return format!("cannot generate a random token: {error}; see the logs for the output\n");
    }
    let word = hex::encode(word);
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let text = without_old_commands(text);
    format!("::stop-commands::{word}\n{text}{end}::{word}::\n")
}

/// Disables GitHub's old command syntax, which its runner accepts anywhere in a line.
#[must_use]
pub(super) fn without_old_commands(line: &str) -> String {
    line.replace("##[", "## [")
}

/// Writes the outputs of the workflow's step and the job summary. `directory` is the report directory.
///
/// # Errors
/// When one of GitHub's files cannot be written (exit code 3).
pub fn write_github_outputs(
    report: &Report,
    directory: &Path,
    summary: &str,
) -> Result<(), Failure> {
    let mut outputs = String::new();
    let directory = directory.display().to_string();
    // A line feed would begin another output.
    if !directory.contains(['\n', '\r']) {
        outputs += &format!("report={directory}\n");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_tests_cannot_contain_workflow_commands() {
        let text = without_commands("      ::add-mask::a\n");
        let lines: Vec<_> = text.lines().collect();
        let word = lines[0].strip_prefix("::stop-commands::").unwrap();
        assert_eq!(lines[1], "      ::add-mask::a");
        assert_eq!(lines[2], format!("::{word}::"));
        assert_ne!(text, without_commands("      ::add-mask::a\n"));
    }

    #[test]
    fn escapes_annotations_to_one_line() {
        assert_eq!(
            annotation(&[("file", "a,b:c"), ("title", "ci")], "a\nb 100%"),
            "::error file=a%2Cb%3Ac,title=ci::a%0Ab 100%25\n"
        );
    }
}
