//! Reads the results of the project's own gates.
//!
//! The script prints `gate NAME` before each gate, and `gate NAME passed in N ms` or `gate NAME failed with exit code N after
//! N ms` after it.

use super::paths::detail;
use crate::model::cause::{Cause, CauseKind};
use crate::model::record::{Status, StepPart};

/// The gates so far.
#[derive(Debug, Default)]
pub(super) struct Gates {
    /// The output of the gate that is running.
    lines: Vec<String>,
    causes: Vec<Cause>,
    parts: Vec<StepPart>,
}

/// The last lines of a failed gate's output that are kept.
const TAIL: usize = 30;

impl Gates {
    pub(super) fn line(&mut self, line: &str) {
        // The output of a gate may end without a line feed.
        let Some((before, rest)) = line.rsplit_once("gate ") else {
            self.lines.push(line.to_owned());
            return;
        };
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let is_result = rest.starts_with("passed in ") || rest.starts_with("failed with ");
        if !before.is_empty() {
            self.lines
                .push(if is_result { before } else { line }.to_owned());
            if !is_result {
                return;
            }
        }
        if rest.is_empty() {
            self.lines.clear();
        } else if let Some(time) = rest.strip_prefix("passed in ") {
            self.record(name, Status::Passed, time);
        } else if let Some((code, time)) = rest
            .strip_prefix("failed with exit code ")
            .and_then(|rest| rest.split_once(" after "))
        {
            self.record(name, Status::Failed, time);
            let first = self.lines.len().saturating_sub(TAIL);
            self.causes.push(Cause {
                kind: CauseKind::Gate,
                title: format!("gate {name}, exit code {code}"),
                location: None,
                detail: detail(&self.lines[first..]),
            });
        } else {
            self.lines.push(line.to_owned());
        }
    }

    pub(super) fn finish(self) -> (Vec<Cause>, Vec<StepPart>) {
        (self.causes, self.parts)
    }

    fn record(&mut self, name: &str, status: Status, time: &str) {
        self.parts.push(StepPart {
            name: name.to_owned(),
            status,
            duration_ms: time.trim_end_matches(" ms").parse().unwrap_or_default(),
        });
    }
}
