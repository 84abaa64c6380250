//! Renders `summary.md`, a summary of the run in Markdown; GitHub shows it as the job summary.

use std::fmt::Write as _;
use std::time::Duration;

use super::console::{cache_summary, format_duration};
use super::json::Report;
use crate::model::record::Status;

/// Renders the summary of a run.
#[must_use]
pub fn summary(report: &Report) -> String {
    let took = format_duration(Duration::from_millis(report.duration_ms));
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
            Some(_) => format_duration(Duration::from_millis(record.duration_ms)),
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
    fn escapes_markdown_and_line_breaks() {
        assert_eq!(
            cell("a | b\n<img src=x> `c` [d](e) @f\n"),
            "a \\| b \\<img src=x\\> \\`c\\` \\[d\\](e) \\@f"
        );
    }
}
