//! The report of the previous run in the same directory: what a run is compared with.

use std::path::Path;

use serde::Deserialize;

use crate::model::cause::CauseKind;
use crate::model::record::Status;
use crate::model::step::Step;

/// The name of the report.
pub(super) const REPORT: &str = "report.json";
/// The name of the previous run's `report.json` while a later run is in progress, and after it.
pub(super) const PREVIOUS: &str = "previous.json";

/// The report of the previous run, as far as later runs are compared with it.
#[derive(Clone, Debug, Deserialize)]
pub struct Previous {
    pub(super) verdict: PreviousVerdict,
    pub(super) commit: String,
    pub(super) duration_ms: u64,
    pub(super) steps: Vec<PreviousStep>,
}

/// The verdict of the previous run.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PreviousVerdict {
    pub(super) passed: bool,
}

/// A step of the previous run.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PreviousStep {
    pub(super) name: Step,
    pub(super) status: Status,
    start: Option<jiff::Timestamp>,
    pub(super) duration_ms: u64,
    pub(super) cached: bool,
    #[serde(default)]
    pub(super) causes: Vec<PreviousCause>,
    #[serde(default)]
    pub(super) findings: Vec<PreviousFinding>,
}

/// A cause of a failure in the previous run.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PreviousCause {
    pub(super) kind: CauseKind,
    pub(super) title: String,
}

/// A vulnerability that the previous run found.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PreviousFinding {
    pub(super) id: String,
    pub(super) package: String,
}

impl Previous {
    /// Reads the report that `places::clear` has kept; `None` if there is none, or one of another schema.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        read(&directory.join(PREVIOUS))
    }

    /// The step of this name, if the run had it.
    pub(super) fn step(&self, step: Step) -> Option<&PreviousStep> {
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
