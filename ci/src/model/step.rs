//! The steps of the pipeline: their names, and what each needs.

use serde::{Deserialize, Serialize};

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
