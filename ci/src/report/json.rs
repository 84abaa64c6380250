//! `report.json`.

use std::path::Path;

use serde::Serialize;

use crate::model::event::Event;
use crate::model::record::{CacheReport, Published, Record, StandInNote};
use common::failure::{ExitCode, Failure, OrFail};

/// The version of the report's schema; it grows when a reader of the old one would be wrong about the new.
pub const SCHEMA: u32 = 1;

/// How the run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether every wanted step passed.
    pub passed: bool,
    /// The exit code.
    pub exit_code: u8,
    /// The exit code's name.
    pub reason: ExitCode,
}

impl Verdict {
    /// The verdict of a run that ends with this code.
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
    /// Its version.
    pub version: String,
}

/// Something that was made before it could be used, once for this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Prepared {
    /// What it was.
    pub what: String,
    /// When that began.
    pub start: jiff::Timestamp,
    /// How long that took, in milliseconds.
    pub duration_ms: u64,
}

/// Everything about a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// How it ended.
    pub verdict: Verdict,
    /// The full SHA of HEAD.
    pub commit: String,
    /// Whether nothing was changed against it.
    pub clean: bool,
    /// The tag: the short SHA, and `-dirty` where something was.
    pub tag: String,
    /// What the image is called, or would be.
    pub image: String,
    /// The image's digest, where it was built.
    pub digest: Option<String>,
    /// The event that counted.
    pub event: Event,
    /// The image's platform, where an engine was found: `linux/amd64`.
    pub platform: Option<String>,
    /// The engine, where one was found.
    pub engine: Option<EngineReport>,
    /// What this machine had to make or install first, part by part; parts may have been made at the same time.
    pub prepared: Vec<Prepared>,
    /// What could not be reached, and what was taken in its place.
    pub stand_ins: Vec<StandInNote>,
    /// When the run began.
    pub start: jiff::Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// The steps.
    pub steps: Vec<Record>,
    /// What was published, if anything.
    pub publish: Option<Published>,
    /// What was carried from and to other runners, where there was a folder for it.
    pub cache: Option<CacheReport>,
    /// What went wrong outside of the steps.
    pub error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Report {
    /// The JSON text, without `secret` in it wherever it came from.
    ///
    /// # Errors
    /// When it cannot be put into JSON.
    pub fn text(&self, redact: impl Fn(&str) -> String) -> Result<String, Failure> {
        let text = serde_json::to_string_pretty(self)
            .or_environment("the report cannot be written as JSON")?;
        Ok(redact(&text) + "\n")
    }

    /// Writes `report.json` into `directory`, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
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

/// Temporary files are their owner's alone; a report is for everybody.
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
