//! Prepares text for a terminal or a log: foreign text without control characters, excerpts, durations, sizes.

use std::borrow::Cow;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Style};

use super::json::Report;
use crate::model::record::Record;
use common::failure::ExitCode;

pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(super) const NOTE: Style = AnsiColor::Yellow.on_default();
pub(super) const DIM: Style = Style::new().dimmed();

/// Longer lines are cut when they are shown, but not in the log.
const LONGEST: usize = 2000;

/// Replaces the control characters in foreign text with symbols, so that a terminal shows them instead of obeying them: `␛[31m`.
/// Line feeds and tabs are kept.
#[must_use]
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    let is_harmless = |c: char| matches!(c, '\n' | '\t') || !(c.is_control() || is_bidi(c));
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let symbol = |c: char| match u32::from(c) {
        _ if is_harmless(c) => c,
        // The block of pictures for control characters.
        code @ 0..0x20 => char::from_u32(0x2400 + code).unwrap_or('�'),
        0x7f => '␡',
        _ => '�',
    };
    Cow::Owned(text.chars().map(symbol).collect())
}

/// Characters that reorder text, so that it seems to say something else.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Foreign text for people: harmless, and without the rest of very long lines.
#[must_use]
pub(super) fn shown(line: &str) -> String {
    let mut short: String = line.chars().take(LONGEST).collect();
    if short.len() < line.len() {
        short += &format!("… ({} characters)", line.chars().count());
    }
    visible(&short).into_owned()
}

/// The first and the last lines of `text`, indented. `rest` says where all of them are.
#[must_use]
pub(super) fn excerpt(text: &str, head: usize, tail: usize, rest: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    let indented = |lines: &[&str]| -> String {
        let lines = lines.iter().map(|line| format!("      {}\n", shown(line)));
        lines.collect()
    };
    if lines.len() <= head + tail {
        return indented(&lines);
    }
    let (first, others) = lines.split_at(head);
    let (left_out, last) = others.split_at(others.len() - tail);
    format!(
        "{}{DIM}      … {} lines left out, see {rest}{DIM:#}\n{}",
        indented(first),
        left_out.len(),
        indented(last)
    )
}

/// Formats a duration: `3.4s`, `2m 05s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 {
        format!("{}m {:02}s", seconds / 60, seconds % 60)
    } else {
        format!("{:.1}s", duration.as_secs_f64())
    }
}

/// Formats a duration in milliseconds.
#[must_use]
pub(super) fn format_ms(ms: u64) -> String {
    format_duration(Duration::from_millis(ms))
}

/// Formats a size with decimal units: `1.2 MB`.
#[must_use]
pub(super) fn format_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
        _ => format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10),
    }
}

/// Formats a number and a noun: `1 test`, `2 tests`.
#[must_use]
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Formats a number and a noun with an irregular plural: `1 vulnerability`, `2 vulnerabilities`.
#[must_use]
pub(super) fn count_of(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// The verdict: `passed`, `failed`, `cancelled`, or `time limit reached`.
#[must_use]
pub(super) fn verdict_word(report: &Report) -> &'static str {
    match report.verdict.reason {
        ExitCode::Success => "passed",
        ExitCode::Cancelled => "cancelled",
        ExitCode::TimedOut => "time limit reached",
        _ => "failed",
    }
}

/// What failed in a step, in a few words.
#[must_use]
pub(super) fn failure_text(record: &Record) -> String {
    match record.test_counts {
        Some(tests) if tests.failed > 0 => {
            format!("{} of {} failed", tests.failed, count(tests.run(), "test"))
        }
        _ => shown(record.error.as_deref().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_control_characters_instead_of_obeying_them() {
        assert_eq!(visible("\u{1b}[31mred\u{1b}[0m"), "␛[31mred␛[0m");
        assert_eq!(visible("a\u{202e}b\rc\u{9b}d\te"), "a�b␍c�d\te");
        assert!(matches!(visible("ä ✓ plain\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn cuts_long_lines_and_floods() {
        let line = "x".repeat(1_000_000);
        let cut = shown(&line);
        assert!(cut.ends_with("x… (1000000 characters)"), "{}", cut.len());
        let flood: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let text = excerpt(&flood, 2, 3, "test.log");
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(lines.len(), 6);
        assert!(lines[2].contains("95 lines left out, see test.log"));
        assert_eq!(lines[5], "line 99");
        assert_eq!(excerpt("a\nb\n", 1, 1, ""), "      a\n      b\n");
    }
}
