//! The words and styles that several parts of the page use.

use crate::model::record::{Record, Status};
use crate::report::text::{count, shown};

/// What else is known about a step, in a few words.
pub(super) fn note(record: &Record) -> String {
    let mut notes = Vec::new();
    match &record.reused {
        Some(passed) => notes.push(format!("reused from {:.7}", passed.commit)),
        None if record.cached => notes.push("cached".to_owned()),
        None => {}
    }
    if let Some(tests) = record.test_counts {
        notes.push(match tests.failed {
            0 => count(tests.run(), "test"),
            failed => format!("{failed} of {} failed", count(tests.run(), "test")),
        });
    }
    notes.extend(record.parts.iter().map(|part| shown(&part.name)));
    notes.join(" · ")
}

/// The name of a state in the page's style.
pub(super) fn state(status: Status) -> &'static str {
    match status {
        Status::Passed => "passed",
        Status::Failed => "failed",
        Status::Skipped => "skipped",
        Status::Cancelled => "cancelled",
    }
}
