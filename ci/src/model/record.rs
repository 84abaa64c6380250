//! What became of a run, part by part: the lines of its report.

use serde::{Deserialize, Serialize};

use super::event::Domain;
use super::image_name::Reference;
use super::step::Step;
use common::failure::ExitCode;

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It did not start.
    Skipped,
    /// It was ended before its end.
    Cancelled,
}

/// A step's line in the report.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Its name.
    pub name: Step,
    /// What became of it.
    pub status: Status,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<jiff::Timestamp>,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// Whether it was taken from a cache: all that ran in containers from the engine's, or the whole of it from the runner's.
    pub cached: bool,
    /// The run in which it passed with the same inputs, where it was taken from the runner's cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reused: Option<Passed>,
    /// What it consists of, where its parts have names of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<StepPart>,
    /// What its containers wrote: the path below the report directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// The digest of the image that it saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Why it failed or was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The exit code that its failure asks for.
    #[serde(skip)]
    pub code: Option<ExitCode>,
}

/// A part of a step, by its own name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepPart {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub status: Status,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

impl Record {
    /// The line of a step that did not start.
    #[must_use]
    pub fn skipped(step: Step, why: String) -> Self {
        Self {
            name: step,
            status: Status::Skipped,
            start: None,
            duration_ms: 0,
            cached: false,
            reused: None,
            parts: Vec::new(),
            log: None,
            digest: None,
            error: Some(why),
            hint: None,
            code: None,
        }
    }
}

/// A pass that was remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// The commit whose run it was.
    pub commit: String,
    /// When it was.
    pub time: jiff::Timestamp,
    /// What was written then.
    #[serde(skip)]
    pub log: String,
}

/// Something that could not be reached, and what was taken in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StandInNote {
    /// What the pins name.
    pub name: String,
    /// What was taken.
    pub used: String,
}

impl StandInNote {
    /// The note about a stand-in that this machine has made for the image `name`.
    #[must_use]
    pub fn made_here(name: &str, digest: &str) -> Self {
        Self {
            name: name.to_owned(),
            used: format!("made on this machine, {digest}"),
        }
    }
}

/// How something got to where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was pushed.
    Pushed,
    /// It was there already.
    AlreadyThere,
}

/// A published image.
#[derive(Clone, Debug, Serialize)]
pub struct Published {
    /// Its name.
    pub image: Reference,
    /// Its digest, as read back from the registry.
    pub digest: String,
    /// How it got there.
    pub outcome: Outcome,
    /// Its papers.
    pub referrers: Vec<Attached>,
}

/// A paper as it is, or was put, in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// Its `artifactType`.
    pub artifact_type: String,
    /// The digest of its manifest.
    pub digest: String,
    /// How it got there.
    pub outcome: Outcome,
}

impl Attached {
    /// Whether it was there before this run.
    #[must_use]
    pub fn was_there(&self) -> bool {
        self.outcome == Outcome::AlreadyThere
    }
}

/// What a run did with the caches that it was given: a part of the report.
#[derive(Clone, Debug, Serialize)]
pub struct CacheReport {
    /// The folder.
    pub folder: String,
    /// Whose caches they are.
    pub domain: Domain,
    /// Whether they were only read: main's are written by main alone.
    pub read_only: bool,
    /// What was brought into the engine.
    pub restored: Vec<Carried>,
    /// What was there and not used, and why.
    pub ignored: Vec<Ignored>,
    /// The steps that have passed before with the same inputs, and were not done again.
    pub passed_before: Vec<Step>,
    /// What was put into the folder.
    pub saved: Vec<Carried>,
    /// What is in the folder as it was.
    pub unchanged: Vec<String>,
    /// What did not fit.
    pub left_out: Vec<String>,
    /// How many bytes of stale parts are gone.
    pub pruned_bytes: u64,
    /// All that is in the folder now, in bytes.
    pub bytes: u64,
    /// How long the saving took, in milliseconds.
    pub save_ms: u64,
    /// What could not be brought or kept for a reason that is not the cache's own.
    pub failures: Vec<String>,
    /// How much sooner cargo's steps were done than when nothing was there, in milliseconds.
    pub gained_ms: Option<u64>,
    /// The run that this is measured by, where there was one.
    pub measured_by: Option<Cold>,
}

/// A part that was carried.
#[derive(Clone, Debug, Serialize)]
pub struct Carried {
    /// Which.
    pub part: String,
    /// How much that was, packed, in bytes.
    pub bytes: u64,
    /// And how much unpacked.
    pub unpacked_bytes: u64,
}

/// A part that was not used.
#[derive(Clone, Debug, Serialize)]
pub struct Ignored {
    /// Which.
    pub part: String,
    /// Why.
    pub reason: String,
}

/// How long the steps took when nothing was there: what a later run is measured by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cold {
    /// The repository.
    pub of: String,
    /// The commit.
    pub commit: String,
    /// From the first step's begin to the last one's end, of those that cargo works for.
    pub duration_ms: u64,
}
