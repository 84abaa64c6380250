//! The steps of the pipeline: their names, what each needs, and what became of each.

use serde::{Deserialize, Serialize};

use crate::cache::Passed;
use crate::failure::ExitCode;

/// A step of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// `cargo test`.
    Test,
    /// `cargo fmt --check`.
    Fmt,
    /// clippy, with warnings as errors.
    Lint,
    /// The static binary and its image.
    Build,
    /// Trivy.
    Scan,
    /// The image, started and asked for its health.
    Smoke,
    /// The push.
    Publish,
}

impl Step {
    /// Every step, in the order in which people list them.
    pub const ALL: [Self; 7] = [
        Self::Test,
        Self::Fmt,
        Self::Lint,
        Self::Build,
        Self::Scan,
        Self::Smoke,
        Self::Publish,
    ];
    /// The steps that say no.
    pub const GATES: [Self; 6] = [
        Self::Test,
        Self::Fmt,
        Self::Lint,
        Self::Build,
        Self::Scan,
        Self::Smoke,
    ];

    /// The steps that have to pass before this one starts.
    #[must_use]
    pub const fn needs(self) -> &'static [Self] {
        match self {
            Self::Test | Self::Fmt | Self::Lint | Self::Build => &[],
            Self::Scan | Self::Smoke => &[Self::Build],
            Self::Publish => &Self::GATES,
        }
    }

    /// The name in reports, and of the command that runs it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Fmt => "fmt",
            Self::Lint => "lint",
            Self::Build => "build",
            Self::Scan => "scan",
            Self::Smoke => "smoke",
            Self::Publish => "publish",
        }
    }

    /// What it does, in a few words.
    #[must_use]
    pub const fn does(self) -> &'static str {
        match self {
            Self::Test => "cargo test",
            Self::Fmt => "cargo fmt --check",
            Self::Lint => "clippy, warnings are errors",
            Self::Build => "release binary, OCI archive",
            Self::Scan => "Trivy, fixable HIGH and CRITICAL fail",
            Self::Smoke => "GET /health, 20 tries in 20 s",
            Self::Publish => "push to the registry",
        }
    }

    /// Whether its result may come from the engine's cache: the image is always started anew, and a registry always asked.
    #[must_use]
    pub const fn may_be_cached(self) -> bool {
        !matches!(self, Self::Smoke | Self::Publish)
    }

    /// These steps and all that they need, in order.
    #[must_use]
    pub fn with_needs(steps: &[Self]) -> Vec<Self> {
        let mut all = steps.to_vec();
        let mut next = 0;
        while let Some(step) = all.get(next) {
            let missing: Vec<_> = step
                .needs()
                .iter()
                .filter(|need| !all.contains(need))
                .copied()
                .collect();
            all.extend(missing);
            next += 1;
        }
        all.sort();
        all
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

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
            log: None,
            digest: None,
            error: Some(why),
            hint: None,
            code: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_runs_its_gate_and_what_it_needs() {
        assert_eq!(Step::with_needs(&[Step::Scan]), [Step::Build, Step::Scan]);
        assert_eq!(Step::with_needs(&[Step::Fmt]), [Step::Fmt]);
        assert_eq!(Step::with_needs(&[Step::Publish]), Step::ALL);
    }

    #[test]
    fn nothing_is_published_before_every_gate() {
        assert_eq!(Step::Publish.needs(), Step::GATES);
    }
}
