//! The report of a run, `report.json`.

use std::path::Path;

use serde::Serialize;

use crate::model::event::Event;
use crate::model::record::{CacheReport, Published, Record, StandInNote};
use crate::model::step::Step;
use common::failure::{ExitCode, Failure, OrFail};

/// The version of the report's schema, increased with each incompatible change.
pub const SCHEMA: u32 = 1;

/// How the run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether every requested step passed.
    pub passed: bool,
    /// The exit code.
    pub exit_code: u8,
    /// The name of the exit code.
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

/// The engine of the run.
#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    /// `session`, the container runtime's name, `embedded`, or a URL.
    pub name: String,
    /// The version of Dagger.
    pub version: String,
}

/// The Rust toolchain of the run.
#[derive(Clone, Debug, Serialize)]
pub struct RustReport {
    /// The exact name, such as `1.95.0` or `nightly-2026-11-27`.
    pub toolchain: String,
    /// `ci`, or the path of the toolchain file that asks for it.
    pub from: String,
}

/// Something that was provisioned, once for this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Prepared {
    /// A description, as in the progress messages.
    pub what: String,
    /// The start of provisioning.
    pub start: jiff::Timestamp,
    /// The duration of provisioning, in milliseconds.
    pub duration_ms: u64,
}

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
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
    /// The stand-ins that replaced unreachable images and services.
    pub stand_ins: Vec<StandInNote>,
    /// The start of the run.
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

    /// Writes `report.json` to `directory`, atomically.
    ///
    /// # Errors
    /// When the file cannot be written (exit code 3).
    pub fn write(&self, directory: &Path, redact: impl Fn(&str) -> String) -> Result<(), Failure> {
        let path = directory.join("report.json");
        let cannot = || format!("cannot write {}", path.display());
        let text = self.text(redact)?;
        std::fs::create_dir_all(directory).or_environment(cannot())?;
        let mut file = tempfile::Builder::new()
            .permissions_if_unix()
            .tempfile_in(directory)
            .or_environment(cannot())?;
        std::io::Write::write_all(&mut file, text.as_bytes()).or_environment(cannot())?;
        file.persist(&path).or_environment(cannot())?;
        Ok(())
    }
}

/// When the step of the last run with this report directory ended, in seconds since the epoch; `None` if there was no such run.
#[must_use]
pub fn last_end(directory: &Path, step: Step) -> Option<i64> {
    let text = std::fs::read_to_string(directory.join("report.json")).ok()?;
    let report: serde_json::Value = serde_json::from_str(&text).ok()?;
    let record = report["steps"]
        .as_array()?
        .iter()
        .find(|record| record["name"] == step.name())?;
    let start: jiff::Timestamp = record["start"].as_str()?.parse().ok()?;
    let duration = i64::try_from(record["duration_ms"].as_u64()?).ok()?;
    // Rounded up, because the volume knows only seconds.
    Some((start.as_millisecond() + duration) / 1000 + 1)
}

/// Makes a report readable by everybody; temporary files are only readable by their owner.
trait ReadableByAll {
    fn permissions_if_unix(&mut self) -> &mut Self;
}

impl ReadableByAll for tempfile::Builder<'_, '_> {
    #[cfg(unix)]
    fn permissions_if_unix(&mut self) -> &mut Self {
        use std::os::unix::fs::PermissionsExt;
        self.permissions(std::fs::Permissions::from_mode(0o644))
    }

    #[cfg(not(unix))]
    fn permissions_if_unix(&mut self) -> &mut Self {
        self
    }
}
