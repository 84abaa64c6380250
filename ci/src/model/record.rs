//! The results of a run and its steps, as they appear in the report.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cause::{Cause, TestCase, TestCounts};
use super::event::Domain;
use super::finding::Finding;
use super::image_name::Reference;
use super::inputs::Why;
use super::step::Step;
use super::time::Time;
use common::failure::ExitCode;

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The step succeeded.
    Passed,
    /// The step started and failed.
    Failed,
    /// The step did not start.
    Skipped,
    /// The step was stopped before it finished.
    Cancelled,
}

/// The report entry of a step.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Record {
    pub(crate) name: Step,
    pub(crate) status: Status,
    /// The start time; absent if the step was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub start: Option<jiff::Timestamp>,
    pub(crate) duration_ms: u64,
    /// Whether all container output came from the engine's cache, or the whole result from the runner cache.
    pub cached: bool,
    /// The earlier run that passed with the same inputs, if the result came from the runner cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reused: Option<PriorPass>,
    /// Why the step ran, if its result did not come from a cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// The named parts of the step, such as the commands of `custom`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<StepPart>,
    /// The path of the step's container output, relative to the report directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// The digest of the image that the step built or used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Why the step failed or was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The suggested fix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The causes of the failure that the output names, in its order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// How many tests ran, if the step ran tests.
    #[serde(rename = "tests", skip_serializing_if = "Option::is_none")]
    pub test_counts: Option<TestCounts>,
    /// All vulnerabilities that the scan found, the worst first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// The tests.
    #[serde(skip)]
    pub tests: Vec<TestCase>,
    /// The exit code of the failure.
    #[serde(skip)]
    pub code: Option<ExitCode>,
}

/// A named part of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct StepPart {
    pub(crate) name: String,
    pub(crate) status: Status,
    pub(crate) duration_ms: u64,
}

impl Record {
    /// Creates the report entry of a step that has passed and reported nothing.
    #[must_use]
    pub fn new(step: Step) -> Self {
        Self {
            name: step,
            status: Status::Passed,
            start: None,
            duration_ms: 0,
            cached: false,
            reused: None,
            why: None,
            parts: Vec::new(),
            log: None,
            digest: None,
            error: None,
            hint: None,
            causes: Vec::new(),
            test_counts: None,
            findings: Vec::new(),
            tests: Vec::new(),
            code: None,
        }
    }

    /// Creates the report entry of a step that did not start.
    #[must_use]
    pub fn skipped(step: Step, why: String) -> Self {
        Self {
            status: Status::Skipped,
            error: Some(why),
            ..Self::new(step)
        }
    }
}

/// A pass in an earlier run, from the runner cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PriorPass {
    /// The full SHA of the commit of that run.
    pub commit: String,
    /// The time of that run.
    #[schemars(with = "Time")]
    pub time: jiff::Timestamp,
    /// The container output of that run.
    #[serde(skip)]
    pub log: String,
}

/// A stand-in that replaced an image or database which could not be downloaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct StandInNote {
    /// The original, as the pins name it.
    pub name: String,
    /// The stand-in.
    pub used: String,
}

impl StandInNote {
    /// Creates the note about a stand-in for the image `name` that was provisioned on this machine.
    #[must_use]
    pub fn provisioned_here(name: &str, digest: &str) -> Self {
        Self {
            name: name.to_owned(),
            used: format!("provisioned on this machine, {digest}"),
        }
    }
}

/// Whether a run pushed an artifact to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The run pushed the artifact.
    Pushed,
    /// The artifact already existed with the same digest.
    AlreadyThere,
}

/// A published image.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Published {
    /// The name with the tag.
    #[schemars(with = "String")]
    pub image: Reference,
    /// The digest, as read back from the registry.
    pub digest: String,
    pub(crate) outcome: Outcome,
    /// The attestations of the image.
    pub referrers: Vec<AttachedArtifact>,
}

/// An attestation in the registry, attached to the image as an OCI referrer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AttachedArtifact {
    /// The `artifactType` of the manifest.
    pub artifact_type: String,
    /// The digest of the manifest.
    pub digest: String,
    pub(crate) outcome: Outcome,
}

impl AttachedArtifact {
    /// Returns whether the artifact was in the registry before this run.
    #[must_use]
    pub fn existed_before(&self) -> bool {
        self.outcome == Outcome::AlreadyThere
    }
}

/// The report entry about the runner cache.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CacheReport {
    /// The path of the cache directory.
    pub folder: String,
    /// The trust domain of the caches.
    pub domain: Domain,
    /// Whether the run only restored caches. Only runs of main write the caches of main.
    pub read_only: bool,
    /// The parts that were restored into the engine.
    pub restored: Vec<CachedPart>,
    /// The parts that were ignored, with the reason.
    pub ignored: Vec<IgnoredPart>,
    /// The steps that passed before with the same inputs and were not repeated.
    pub passed_before: Vec<Step>,
    /// The parts that were saved to the cache directory.
    pub saved: Vec<CachedPart>,
    /// The parts that did not change and were not saved again.
    pub unchanged: Vec<String>,
    /// The parts that exceeded the size limit of the cache.
    pub left_out: Vec<String>,
    /// The size of removed stale files, in bytes.
    pub pruned_bytes: u64,
    /// The size of the cache directory after the run, in bytes.
    pub bytes: u64,
    /// The duration of saving, in milliseconds.
    pub save_ms: u64,
    /// The failures to restore or save that an invalid cache did not cause.
    pub failures: Vec<String>,
    /// How much faster the steps with cargo were than in the cold run, in milliseconds.
    pub gained_ms: Option<u64>,
    /// The cold run that `gained_ms` refers to.
    pub measured_by: Option<ColdRun>,
}

/// A part of the cache that was restored or saved.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CachedPart {
    /// The name of the part.
    pub part: String,
    /// The compressed size, in bytes.
    pub bytes: u64,
    /// The uncompressed size, in bytes.
    pub unpacked_bytes: u64,
}

/// A part of the cache that was not used.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct IgnoredPart {
    /// The name of the part.
    pub part: String,
    /// Why the part was not used.
    pub reason: String,
}

/// A run without caches, to which the duration of later runs is compared.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ColdRun {
    /// The name of the image repository.
    pub of: String,
    /// The full SHA of the commit.
    pub commit: String,
    /// The time from the start of the first step with cargo to the end of the last one, in milliseconds.
    pub duration_ms: u64,
}
