//! The steps of the pipeline. [`Step::definition`] holds everything that differs between them.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A step of the pipeline.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Deserialize,
    Serialize,
    JsonSchema,
    ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// `cargo test`.
    Test,
    /// `cargo fmt --check`.
    Fmt,
    /// `cargo clippy` with warnings as errors.
    Lint,
    /// The commands from `[[gate]]` in `ci.toml`.
    Custom,
    /// The release binary and its image.
    Build,
    /// The vulnerability scan of the image with Trivy.
    Scan,
    /// The start of the image and a poll of its health endpoint.
    Smoke,
    /// The push to the registry.
    Publish,
}

/// The steps that must pass before a step starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// No steps: the step works on the sources.
    Nothing,
    /// The build, because the step works on the image.
    Build,
    /// Every gate.
    Gates,
}

/// The properties of a step.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// The name in reports, and of the subcommand that runs the step.
    pub name: &'static str,
    /// A short description for the graph.
    pub does: &'static str,
    /// The steps that must pass before the step starts.
    pub needs: Needs,
    /// Whether the step only exists if the project configures it.
    pub optional: bool,
    /// Whether the result may come from the engine's cache.
    pub cacheable: bool,
    /// Whether the step reads the sources, which `[paths]` can limit.
    pub reads_sources: bool,
    /// Whether cargo compiles in the step, so that its target volume is worth saving for other runners.
    pub compiles: bool,
    /// Whether the step can have backing services.
    pub has_services: bool,
}

impl Step {
    /// Returns the properties of the step. To add a step, start here.
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
                has_services: true,
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
                has_services: true,
                ..on_sources
            },
            Self::Scan => Definition {
                name: "scan",
                does: "Trivy, fixable HIGH and CRITICAL fail",
                ..on_image
            },
            // A cached result would not start the image.
            Self::Smoke => Definition {
                name: "smoke",
                does: "GET /health, 20 tries in 20 s",
                cacheable: false,
                has_services: true,
                ..on_image
            },
            // A cached result would not contact the registry.
            Self::Publish => Definition {
                name: "publish",
                does: "push to the registry",
                needs: Needs::Gates,
                cacheable: false,
                ..on_image
            },
        }
    }

    /// Returns every step, in pipeline order.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// Returns the gates: every step except for publish.
    pub fn gates() -> impl Iterator<Item = Self> {
        let gates = Self::all().iter().copied();
        gates.filter(|step| step.definition().needs != Needs::Gates)
    }

    /// Returns the steps in which cargo compiles.
    pub fn compiling() -> impl Iterator<Item = Self> {
        let steps = Self::all().iter().copied();
        steps.filter(|step| step.definition().compiles)
    }

    /// Returns the steps that must pass before this one starts.
    #[must_use]
    pub fn needs(self) -> Vec<Self> {
        match self.definition().needs {
            Needs::Nothing => Vec::new(),
            Needs::Build => vec![Self::Build],
            Needs::Gates => Self::gates().collect(),
        }
    }

    /// Returns the name in reports, and of the subcommand that runs the step.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.definition().name
    }

    /// Returns the path of the step's log, relative to the report directory.
    #[must_use]
    pub fn log(self) -> String {
        format!("logs/{}.log", self.name())
    }

    /// Returns `steps` and all steps that they need, in pipeline order.
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
    fn with_needs_adds_all_required_steps() {
        assert_eq!(Step::with_needs(&[Step::Scan]), [Step::Build, Step::Scan]);
        assert_eq!(Step::with_needs(&[Step::Fmt]), [Step::Fmt]);
        assert_eq!(Step::with_needs(&[Step::Publish]), Step::all());
    }

    #[test]
    fn publish_needs_every_gate() {
        let mut all = Step::Publish.needs();
        all.push(Step::Publish);
        assert_eq!(all, Step::all());
    }

    #[test]
    fn steps_have_the_same_name_in_settings_and_reports() {
        for step in Step::all() {
            let json = serde_json::to_value(step).unwrap();
            assert_eq!(json, step.name());
            assert_eq!(serde_json::from_value::<Step>(json).unwrap(), *step);
        }
    }
}
