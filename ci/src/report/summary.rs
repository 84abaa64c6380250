//! Renders `summary.md`, a summary of the run in Markdown; GitHub shows it as the job summary.

use std::fmt::Write as _;

use super::json::Report;
use super::text::{NOTE, failure_text, format_bytes, format_ms, visible};
use crate::model::record::{CacheReport, CachedPart, Record, Status};

/// Renders the summary of a run.
#[must_use]
pub fn summary(report: &Report) -> String {
    let took = format_ms(report.duration_ms);
    let with = if report.stand_ins.is_empty() {
        ""
    } else {
        ", with stand-ins"
    };
    let mut page = if report.verdict.passed {
        format!("## passed{with} in {took}\n\n")
    } else {
        format!(
            "## failed{with} in {took} (exit code {})\n\n",
            report.verdict.exit_code
        )
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        page,
        "Commit `{}`, event {}.\n",
        report.commit, report.event
    );
    if let Some(digest) = &report.digest {
        let published = match &report.publish {
            Some(_) => "Published",
            None => "Built, not published",
        };
        let _ = writeln!(page, "{published}: `{}@{digest}`.\n", report.image);
    }
    page += "| step | | time | |\n|---|---|---|---|\n";
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
        let note = match (&record.error, &record.reused) {
            (Some(error), _) => cell(error),
            (None, Some(passed)) => format!("reused from commit {:.7}", passed.commit),
            (None, None) if record.cached => "cached".to_owned(),
            (None, None) => String::new(),
        };
        let names: Vec<_> = record.parts.iter().map(|part| cell(&part.name)).collect();
        let note = match (names.is_empty(), note.is_empty()) {
            (true, _) => note,
            (false, true) => names.join(", "),
            (false, false) => format!("{}: {note}", names.join(", ")),
        };
        let _ = writeln!(page, "| {} | {sign} | {time} | {note} |", record.name);
    }
    for record in &report.steps {
        if record.status == Status::Failed {
            page += &causes(record);
        }
    }
    if let Some(error) = &report.error {
        let _ = writeln!(page, "\n{}", cell(error));
    }
    if let Some(cache) = &report.cache {
        let lines = anstream::adapter::strip_str(&cache_summary(cache)).to_string();
        for line in lines.lines() {
            let _ = writeln!(page, "\n{}", cell(line.trim_start_matches("cache").trim()));
        }
    }
    for note in &report.stand_ins {
        let _ = writeln!(
            page,
            "\n⚠️ stand-in for `{}`: {}",
            note.name,
            cell(&note.used)
        );
    }
    page
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

/// The causes of a step's failure.
fn causes(record: &Record) -> String {
    let mut text = format!("\n### {}: {}\n\n", record.name, cell(&failure_text(record)));
    for cause in record.causes.iter().take(CAUSES) {
        let place = cause.location.as_ref().map(ToString::to_string);
        let place = place.map_or(String::new(), |at| format!("{} ", cell(&at)));
        text += &format!("- {place}{}\n", cell(&cause.title));
        if !cause.detail.is_empty() {
            text += &block(&cause.detail);
        }
    }
    if record.causes.len() > CAUSES {
        text += &format!("- … and {} more\n", record.causes.len() - CAUSES);
    }
    if let Some(hint) = &record.hint {
        text += &format!("\nHint: {}\n", cell(hint));
    }
    text
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
    fn escapes_markdown_and_line_breaks() {
        assert_eq!(
            cell("a | b\n<img src=x> `c` [d](e) @f\n"),
            "a \\| b \\<img src=x\\> \\`c\\` \\[d\\](e) \\@f"
        );
    }
}
