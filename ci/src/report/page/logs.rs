//! The logs of the steps, as far as there is room for them.

use std::path::Path;

use super::budget::{Budget, size};
use super::words::state;
use crate::model::record::Status;
use crate::report::json::Report;
use crate::report::text::{count, visible};

/// What a log's markup needs, in bytes.
const MARKUP: usize = 600;

/// The log of a step.
pub(super) struct Log {
    pub(super) step: &'static str,
    pub(super) state: &'static str,
    /// The file in the report directory.
    pub(super) file: String,
    /// The number of lines, in words.
    pub(super) lines: String,
    pub(super) text: String,
    /// The number of lines before those that are left out.
    pub(super) head: usize,
    /// The number of lines that are only in the file.
    pub(super) left_out: usize,
}

/// Reads the logs. If there is not enough room for all of them, the longest ones are cut, those of failed steps last.
pub(super) fn read(report: &Report, directory: &Path, budget: &mut Budget) -> Vec<Log> {
    let mut logs: Vec<_> = report
        .steps
        .iter()
        .filter_map(|record| {
            let file = record.log.clone()?;
            let bytes = std::fs::read(directory.join(&file)).ok()?;
            let text = visible(&String::from_utf8_lossy(&bytes)).into_owned();
            let log = Log {
                step: record.name.name(),
                state: state(record.status),
                lines: count(text.lines().count(), "line"),
                head: 0,
                left_out: 0,
                file,
                text,
            };
            Some((record.status, log))
        })
        .collect();
    let mut order: Vec<_> = (0..logs.len()).collect();
    order.sort_by_key(|at| {
        let (status, log) = &logs[*at];
        (*status == Status::Failed, size(&log.text))
    });
    let total = order.len();
    for (done, at) in order.into_iter().enumerate() {
        let share = budget.left() / (total - done);
        let (_, log) = &mut logs[at];
        log.shorten(share.saturating_sub(MARKUP));
        budget.take_bytes(size(&log.text) + MARKUP);
    }
    logs.into_iter().map(|(_, log)| log).collect()
}

impl Log {
    /// Leaves out lines from the middle until the rest has at most `most` bytes.
    fn shorten(&mut self, most: usize) {
        if size(&self.text) <= most {
            return;
        }
        let lines: Vec<_> = self.text.lines().collect();
        let fitting = |lines: &mut dyn Iterator<Item = &&str>, most: usize| {
            let mut used = 0;
            lines
                .take_while(|line| {
                    used += size(line) + 1;
                    used <= most
                })
                .count()
        };
        // The end says more than the beginning.
        let head = fitting(&mut lines.iter(), most / 4);
        let tail = fitting(&mut lines[head..].iter().rev(), most - most / 4);
        let left_out = lines.len() - head - tail;
        let (first, last) = (&lines[..head], &lines[lines.len() - tail..]);
        let note = format!(
            "… {} left out, see {} …",
            count(left_out, "line"),
            self.file
        );
        let text = [first, &[&*note], last].concat().join("\n");
        self.left_out = left_out;
        self.head = head;
        self.text = text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_logs_are_cut_in_the_middle() {
        let text: String = (0..1000).map(|n| format!("line <{n}>\n")).collect();
        let mut log = Log {
            step: "test",
            state: "passed",
            file: "logs/test.log".to_owned(),
            lines: String::new(),
            text: text.clone(),
            head: 0,
            left_out: 0,
        };
        log.shorten(size(&text));
        assert_eq!((log.left_out, &log.text), (0, &text));
        log.shorten(2000);
        assert!(size(&log.text) < 2100, "{}", size(&log.text));
        let lines: Vec<_> = log.text.lines().collect();
        assert_eq!(lines[0], "line <0>");
        assert_eq!(lines[lines.len() - 1], "line <999>");
        assert_eq!(lines.len() - 1 + log.left_out, 1000);
        assert!(log.text.contains(" lines left out, see logs/test.log"));
    }
}
