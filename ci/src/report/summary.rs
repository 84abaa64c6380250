//! `summary.md`: the run on one page of Markdown, which GitHub shows beside it.

use std::fmt::Write as _;
use std::time::Duration;

use super::console::{carried, format_duration};
use super::json::Report;
use crate::model::record::Status;

/// The page.
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
        let said = match (&record.error, &record.reused) {
            (Some(error), _) => cell(error),
            (None, Some(passed)) => format!("passed before, in commit {:.7}", passed.commit),
            (None, None) if record.cached => "cached".to_owned(),
            (None, None) => String::new(),
        };
        let names: Vec<_> = record.parts.iter().map(|part| cell(&part.name)).collect();
        let said = match (names.is_empty(), said.is_empty()) {
            (true, _) => said,
            (false, true) => names.join(", "),
            (false, false) => format!("{}: {said}", names.join(", ")),
        };
        let _ = writeln!(page, "| {} | {sign} | {time} | {said} |", record.name);
    }
    if let Some(error) = &report.error {
        let _ = writeln!(page, "\n{}", cell(error));
    }
    if let Some(cache) = &report.cache {
        let lines = anstream::adapter::strip_str(&carried(cache)).to_string();
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

/// Text of other people's, as one line in which nothing is Markdown.
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
    fn what_a_program_said_is_no_markdown() {
        assert_eq!(
            cell("a | b\n<img src=x> `c` [d](e) @f\n"),
            "a \\| b \\<img src=x\\> \\`c\\` \\[d\\](e) \\@f"
        );
    }
}
