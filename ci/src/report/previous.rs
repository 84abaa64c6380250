//! The report of the previous run in the same directory.

use std::path::Path;

use serde::Deserialize;

use crate::model::step::Step;

/// The name of the report.
pub(super) const REPORT: &str = "report.json";
/// The name of the previous run's `report.json` while a later run is in progress, and after it.
pub(super) const PREVIOUS: &str = "previous.json";

/// The report of the previous run, as far as it is read again.
#[derive(Clone, Debug, Deserialize)]
struct Previous {
    steps: Vec<PreviousStep>,
}

/// A step of the previous run.
#[derive(Clone, Debug, Deserialize)]
struct PreviousStep {
    name: Step,
    start: Option<jiff::Timestamp>,
    duration_ms: u64,
}

impl Previous {
    /// Reads the report that `places::clear` has kept; `None` if there is none, or one of another schema.
    fn read(directory: &Path) -> Option<Self> {
        read(&directory.join(PREVIOUS))
    }

    /// The step of this name, if the run had it.
    fn step(&self, step: Step) -> Option<&PreviousStep> {
        self.steps.iter().find(|it| it.name == step)
    }
}

fn read(path: &Path) -> Option<Previous> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// When the step of the last run with this report directory ended, in seconds since the epoch; `None` if there was no such run.
#[must_use]
pub fn last_end(directory: &Path, step: Step) -> Option<i64> {
    let last = read(&directory.join(REPORT)).or_else(|| Previous::read(directory))?;
    let record = last.step(step)?;
    let duration = i64::try_from(record.duration_ms).ok()?;
    // Rounded up, because the volume knows only seconds.
    Some((record.start?.as_millisecond() + duration) / 1000 + 1)
}
