//! Renders `summary.md`, a summary of the run in Markdown; GitHub shows it as the job summary.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::json::Report;
use super::text::{
    NOTE, count, count_of, failure_text, format_bytes, format_ms, verdict_word, visible,
};
use crate::model::finding::Finding;
use crate::model::record::{CacheReport, CachedPart, Record, Status};

/// [GitHub's limit](https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands#step-isolation-and-limits) for
/// the summary of a workflow's step, in bytes. GitHub shows nothing of a longer one.
const LIMIT: usize = 1024 * 1024;
/// The end of a summary that would exceed the limit.
const CUT: &str = "\n… The rest was left out, because GitHub shows at most 1 MiB. `report.html` and `report.json` have all of it.\n";
/// At most this many findings are listed; `report.json` has all of them.
const FINDINGS: usize = 50;
/// At most so many bytes of a cause's details are shown.
const DETAIL: usize = 16 * 1024;

/// A page of complete blocks: what does not fit is left out, with a note.
#[derive(Default)]
struct Page {
    text: String,
    is_full: bool,
}

impl Page {
    fn push(&mut self, block: &str) {
        self.is_full |= self.text.len() + block.len() + CUT.len() > LIMIT;
        if !self.is_full {
            self.text += block;
        }
    }

    fn end(mut self) -> String {
        if self.is_full {
            self.text += CUT;
        }
        self.text
    }
}

/// Renders the summary of a run.
#[must_use]
pub(super) fn summary(report: &Report) -> String {
    let mut page = Page::default();
    page.push(&head(report));
    page.push(&steps(report));
    for record in &report.steps {
        if record.status == Status::Failed {
            let failure = cell(&failure_text(record));
            page.push(&format!("\n### {}: {failure}\n\n", record.name));
            for block in causes(record) {
                page.push(&block);
            }
        }
    }
    if let Some(error) = &report.error {
        page.push(&format!("\n{}\n", cell(error)));
    }
    if let Some(hint) = &report.hint {
        page.push(&format!("\nHint: {}\n", cell(hint)));
    }
    for record in &report.steps {
        page.push(&findings(&record.findings));
    }
    if let Some(cache) = &report.cache {
        let lines = anstream::adapter::strip_str(&cache_summary(cache)).to_string();
        for line in lines.lines() {
            let line = cell(line.trim_start_matches("cache").trim());
            page.push(&format!("\n{line}\n"));
        }
    }
    for what in &report.left_out {
        page.push(&format!("\n⚠️ left out by ci.toml: {}\n", cell(what)));
    }
    for note in &report.stand_ins {
        let used = cell(&note.used);
        page.push(&format!("\n⚠️ stand-in for `{}`: {used}\n", note.name));
    }
    page.end()
}

fn head(report: &Report) -> String {
    let took = format_ms(report.duration_ms);
    let with = if report.stand_ins.is_empty() {
        ""
    } else {
        ", with stand-ins"
    };
    let mut text = format!("## {}{with} in {took}", verdict_word(report));
    if !report.verdict.passed {
        text += &format!(" (exit code {})", report.verdict.exit_code);
    }
    text += &format!(
        "\n\nCommit `{}`, event {}.\n\n",
        report.commit, report.event
    );
    if let Some(digest) = &report.digest {
        let published = match &report.publish {
            Some(_) => "Published",
            None => "Built, not published",
        };
        text += &format!("{published}: `{}@{digest}`.\n\n", report.image);
    }
    text
}

fn steps(report: &Report) -> String {
    let mut text = "| step | | time | |\n|---|---|---|---|\n".to_owned();
    for record in &report.steps {
        let sign = match record.status {
            Status::Passed => "✅ passed",
            Status::Failed => "❌ failed",
            Status::Skipped => "⏭️ skipped",
            Status::Cancelled => "🛑 cancelled",
        };
        let time = match record.start {
            Some(_) => format_ms(record.duration_ms),
            None => String::new(),
        };
        let mut notes: Vec<_> = record.parts.iter().map(|part| cell(&part.name)).collect();
        if !notes.is_empty() {
            notes = vec![notes.join(", ")];
        }
        match (&record.error, &record.reused) {
            (Some(error), _) => notes.push(cell(error)),
            (None, Some(passed)) => {
                notes.push(format!("reused from commit {:.7}", passed.commit));
            }
            (None, None) if record.cached => notes.push("cached".to_owned()),
            (None, None) => {}
        }
        if let (Status::Passed, Some(tests)) = (record.status, record.test_counts) {
            notes.push(count(tests.run(), "test"));
        }
        let notes = notes.join(": ");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {} | {sign} | {time} | {notes} |", record.name);
    }
    text
}

/// The vulnerabilities as a table, the worst first.
fn findings(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n### {}\n\n| severity | vulnerability | package | fixed in | |\n|---|---|---|---|---|\n",
        count_of(findings.len(), "vulnerability", "vulnerabilities")
    );
    for finding in findings.iter().take(FINDINGS) {
        let fixed = finding.fixed_version.as_deref().unwrap_or("–");
        let fails = if finding.fails { "❌ " } else { "" };
        let _ = writeln!(
            text,
            "| {fails}{} | {} | {} {} | {} | {} |",
            finding.severity,
            cell(&finding.id),
            cell(&finding.package),
            cell(&finding.version),
            cell(fixed),
            cell(&finding.title)
        );
    }
    if findings.len() > FINDINGS {
        let _ = writeln!(text, "\n… and {} more", findings.len() - FINDINGS);
    }
    text
}

/// Summarizes what was restored, reused and saved, one line each.
pub(super) fn cache_summary(cache: &CacheReport) -> String {
    let mut text = String::new();
    let list = |what: &str, parts: &[CachedPart]| {
        let bytes = parts.iter().map(|it| it.bytes).sum();
        let names: Vec<_> = parts.iter().map(|it| &*it.part).collect();
        (!parts.is_empty()).then(|| {
            format!(
                "cache    {what} {}: {}",
                names.join(", "),
                format_bytes(bytes)
            )
        })
    };
    text.extend(list("restored", &cache.restored).map(|line| line + "\n"));
    if !cache.passed_before.is_empty() {
        let steps: Vec<_> = cache.passed_before.iter().map(|it| it.name()).collect();
        text += &format!(
            "cache    reused results for the same inputs: {}\n",
            steps.join(", ")
        );
    }
    if let (Some(gained), Some(cold)) = (cache.gained_ms, &cache.measured_by) {
        text += &format!(
            "cache    gained {}: these steps took {} without it (commit {:.7})\n",
            format_ms(gained),
            format_ms(cold.duration_ms),
            cold.commit
        );
    }
    if let Some(line) = list("saved", &cache.saved) {
        text += &format!(
            "{line} in {}, {} in total\n",
            format_ms(cache.save_ms),
            format_bytes(cache.bytes)
        );
    }
    if !cache.left_out.is_empty() {
        text += &format!(
            "{NOTE}cache    not saved because of the size limit: {}{NOTE:#}\n",
            cache.left_out.join(", ")
        );
    }
    text
}

/// At most this many causes of a step are listed; `report.json` has all of them.
const CAUSES: usize = 20;

/// The causes of a step's failure, one block each, and the hint.
fn causes(record: &Record) -> Vec<String> {
    let mut blocks = Vec::new();
    for cause in record.causes.iter().take(CAUSES) {
        let place = cause.location.as_ref().map(ToString::to_string);
        let place = place.map_or(String::new(), |at| format!("{} ", cell(&at)));
        let mut text = format!("- {place}{}\n", cell(&cause.title));
        if !cause.detail.is_empty() {
            text += &block(&shortened(&cause.detail));
        }
        blocks.push(text);
    }
    if record.causes.len() > CAUSES {
        let more = record.causes.len() - CAUSES;
        blocks.push(format!("- … and {more} more\n"));
    }
    if let Some(hint) = &record.hint {
        blocks.push(format!("\nHint: {}\n", cell(hint)));
    }
    blocks
}

/// Text of at most [`DETAIL`] bytes.
fn shortened(text: &str) -> Cow<'_, str> {
    match text.get(..text.floor_char_boundary(DETAIL)) {
        Some(start) if start.len() < text.len() => Cow::Owned(format!("{start}…")),
        _ => Cow::Borrowed(text),
    }
}

/// Foreign text as a block of code in a list item, with a fence that the text does not contain.
fn block(text: &str) -> String {
    let longest = text
        .split(|c| c != '`')
        .map(str::len)
        .max()
        .unwrap_or_default();
    let fence = "`".repeat(longest.max(2) + 1);
    let lines: String = visible(text)
        .lines()
        .map(|line| format!("  {line}\n"))
        .collect();
    format!("\n  {fence}text\n{lines}  {fence}\n")
}

/// Escapes foreign text for a table cell: one line without Markdown.
fn cell(text: &str) -> String {
    let mut line = String::new();
    for c in text.trim().chars() {
        match c {
            '\n' | '\r' => line.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '!' | '~' | '@' => {
                line.push('\\');
                line.push(c);
            }
            _ => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_are_longer_than_those_in_the_text() {
        assert_eq!(
            block("a\n```\nb"),
            "\n  ````text\n  a\n  ```\n  b\n  ````\n"
        );
    }

    #[test]
    fn page_is_cut_after_a_complete_block() {
        let mut page = Page::default();
        let block = block(&"a line\n".repeat(10_000));
        for _ in 0..100 {
            page.push(&block);
        }
        page.push("the end");
        let text = page.end();
        assert!(
            text.len() <= LIMIT && text.len() > LIMIT / 2,
            "{}",
            text.len()
        );
        assert_eq!(text.matches("```").count() % 2, 0);
        assert!(text.ends_with(CUT));
    }

    #[test]
    fn escapes_markdown_and_line_breaks() {
        assert_eq!(
            cell("a | b\n<img src=x> `c` [d](e) @f\n"),
            "a \\| b \\<img src=x\\> \\`c\\` \\[d\\](e) \\@f"
        );
    }
}
