//! The steps of the pipeline: all that differs from one to another is in [`Step::definition`].

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A step of the pipeline.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// `cargo test`.
    Test,
    /// `cargo fmt --check`.
    Fmt,
    /// clippy, with warnings as errors.
    Lint,
    /// The project's own commands.
    Custom,
    /// The static binary and its image.
    Build,
    /// Trivy.
    Scan,
    /// The image, started and asked for its health.
    Smoke,
    /// The push.
    Publish,
}

/// The steps that have to pass before another one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// None: it works on the sources.
    Nothing,
    /// The image.
    Build,
    /// Every gate.
    Gates,
}

/// What a step is.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// The name in reports, and of the command that runs it.
    pub name: &'static str,
    /// What it does, in a few words.
    pub does: &'static str,
    /// The steps that have to pass before it starts.
    pub needs: Needs,
    /// Whether only a project that configures it has it.
    pub optional: bool,
    /// Whether its result may come from the engine's cache.
    pub cacheable: bool,
    /// Whether it is given the sources, which `[paths]` can narrow.
    pub reads_sources: bool,
    /// Whether cargo compiles in it, in a volume that is worth carrying to another runner.
    pub compiles: bool,
    /// Whether it can have backing services beside it.
    pub has_services: bool,
}

impl Step {
    /// What it is. A new step starts here.
    #[must_use]
    pub const fn definition(self) -> Definition {
        let on_sources = Definition {
            name: "",
            does: "",
            needs: Needs::Nothing,
            optional: false,
            cacheable: true,
            reads_sources: true,
            compiles: true,
            has_services: false,
        };
        let on_image = Definition {
            needs: Needs::Build,
            reads_sources: false,
            compiles: false,
            ..on_sources
        };
        match self {
            Self::Test => Definition {
                name: "test",
                does: "cargo test",
                has_services: true,
                ..on_sources
            },
            Self::Fmt => Definition {
                name: "fmt",
                does: "cargo fmt --check",
                compiles: false,
                ..on_sources
            },
            Self::Lint => Definition {
                name: "lint",
                does: "clippy, warnings are errors",
                ..on_sources
            },
            Self::Custom => Definition {
                name: "custom",
                does: "the commands of [[gate]] in ci.toml",
                optional: true,
                ..on_sources
            },
            Self::Build => Definition {
                name: "build",
                does: "release binary, OCI archive",
                ..on_sources
            },
            Self::Scan => Definition {
                name: "scan",
                does: "Trivy, fixable HIGH and CRITICAL fail",
                ..on_image
            },
            // The image is always started anew.
            Self::Smoke => Definition {
                name: "smoke",
                does: "GET /health, 20 tries in 20 s",
                cacheable: false,
                has_services: true,
                ..on_image
            },
            // A registry is always asked.
            Self::Publish => Definition {
                name: "publish",
                does: "push to the registry",
                needs: Needs::Gates,
                cacheable: false,
                ..on_image
            },
        }
    }

    /// Every step, in the order in which people list them.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// The steps that say no: all but the publish.
    pub fn gates() -> impl Iterator<Item = Self> {
        let gates = Self::all().iter().copied();
        gates.filter(|step| step.definition().needs != Needs::Gates)
    }

    /// The steps that have to pass before this one starts.
    #[must_use]
    pub fn needs(self) -> Vec<Self> {
        match self.definition().needs {
            Needs::Nothing => Vec::new(),
            Needs::Build => vec![Self::Build],
            Needs::Gates => Self::gates().collect(),
        }
    }

    /// The name in reports, and of the command that runs it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.definition().name
    }

    /// These steps and all that they need, in order.
    #[must_use]
    pub fn with_needs(steps: &[Self]) -> Vec<Self> {
        let mut all = steps.to_vec();
        let mut next = 0;
        while let Some(step) = all.get(next) {
            let mut missing = step.needs();
            missing.retain(|need| !all.contains(need));
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
        assert_eq!(Step::with_needs(&[Step::Publish]), Step::all());
    }

    #[test]
    fn nothing_is_published_before_every_gate() {
        let mut all = Step::Publish.needs();
        all.push(Step::Publish);
        assert_eq!(all, Step::all());
    }

    #[test]
    fn a_step_is_called_the_same_in_settings_and_reports() {
        for step in Step::all() {
            let json = serde_json::to_value(step).unwrap();
            assert_eq!(json, step.name());
            assert_eq!(serde_json::from_value::<Step>(json).unwrap(), *step);
        }
    }
}
