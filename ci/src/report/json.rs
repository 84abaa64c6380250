//! The report of a run, `report.json`.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;

use crate::model::event::Event;
use crate::model::record::{CacheReport, Published, Record, StandInNote};
use crate::model::time::Time;
use common::failure::{ExitCode, Failure, OrFail};

/// The version of the report's schema, increased with each incompatible change.
pub const SCHEMA: u32 = 1;

/// How the run ended.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Verdict {
    /// Whether every requested step passed.
    pub passed: bool,
    /// The exit code.
    pub exit_code: u8,
    /// The name of the exit code.
    #[schemars(schema_with = "reasons")]
    pub reason: ExitCode,
}

impl Verdict {
    /// The verdict of a run with this exit code.
    #[must_use]
    pub fn of(code: ExitCode) -> Self {
        Self {
            passed: code == ExitCode::Success,
            exit_code: code as u8,
            reason: code,
        }
    }
}

fn reasons(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ExitCode::ALL })
}

/// The program that ran.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Program {
    /// The version of `ci`.
    pub version: String,
    /// The full SHA of the commit of its sources, with `-dirty` if they differ from it; absent if the sources are no longer there.
    pub commit: Option<String>,
}

/// The engine of the run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct EngineReport {
    /// `session`, the container runtime's name, `embedded`, or a URL.
    pub name: String,
    /// The version of Dagger.
    pub version: String,
}

/// The Rust toolchain of the run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RustReport {
    /// The exact name, such as `1.95.0` or `nightly-2026-11-27`.
    pub toolchain: String,
    /// `ci`, or the path of the toolchain file that asks for it.
    pub from: String,
}

/// Something that was provisioned, once for this machine.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Prepared {
    /// A description, as in the progress messages.
    pub what: String,
    /// The start of provisioning.
    #[schemars(with = "Time")]
    pub start: jiff::Timestamp,
    /// The duration of provisioning, in milliseconds.
    pub duration_ms: u64,
}

/// The report of a run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    /// The version of this schema.
    pub schema: u32,
    /// The program that ran.
    pub ci: Program,
    /// The result of the run.
    pub verdict: Verdict,
    /// The full SHA of HEAD.
    pub commit: String,
    /// Whether the working tree has no uncommitted changes.
    pub clean: bool,
    /// The image's tag: the short SHA, with `-dirty` if there are uncommitted changes.
    pub tag: String,
    /// The image's name with its tag, whether or not the image was built or published.
    pub image: String,
    /// The image's digest, if the image was built.
    pub digest: Option<String>,
    /// The event that decided what the run was allowed to do.
    pub event: Event,
    /// The image's platform, such as `linux/amd64`; absent without an engine.
    pub platform: Option<String>,
    /// The engine, if one was found.
    pub engine: Option<EngineReport>,
    /// The Rust toolchain, if an engine was found.
    pub rust: Option<RustReport>,
    /// Everything that was provisioned on this machine; the times may overlap.
    pub prepared: Vec<Prepared>,
    /// What `ci.toml` keeps from the gates, as keys with their values; absent if the gates check everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// The stand-ins that replaced unreachable images and services.
    pub stand_ins: Vec<StandInNote>,
    /// The start of the run.
    #[schemars(with = "Time")]
    pub start: jiff::Timestamp,
    /// The duration of the run, in milliseconds.
    pub duration_ms: u64,
    /// The results of the steps.
    pub steps: Vec<Record>,
    /// The published image, if the run published one.
    pub publish: Option<Published>,
    /// The caches that were restored and saved, if the run had a cache directory.
    pub cache: Option<CacheReport>,
    /// An error outside of the steps.
    pub error: Option<String>,
    /// A suggested fix for the error.
    pub hint: Option<String>,
}

impl Report {
    /// Serializes the report to JSON, filtered by `redact`.
    ///
    /// # Errors
    /// When the report cannot be serialized (exit code 3).
    pub fn text(&self, redact: impl Fn(&str) -> String) -> Result<String, Failure> {
        let text =
            serde_json::to_string_pretty(self).or_environment("cannot serialize the report")?;
        Ok(redact(&text) + "\n")
    }

    /// The JSON Schema of `report.json`, formatted as in the documentation.
    ///
    /// # Errors
    /// When the schema cannot be serialized (exit code 3).
    pub fn schema() -> Result<String, Failure> {
        let settings = SchemaSettings::draft2020_12().for_serialize();
        let schema = settings.into_generator().into_root_schema_for::<Self>();
        let text =
            serde_json::to_string_pretty(&schema).or_environment("cannot serialize the schema")?;
        Ok(text + "\n")
    }
}
