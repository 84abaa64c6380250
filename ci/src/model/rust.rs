//! The Rust toolchain of a run: `ci`'s own, or the one that the repository asks for.

use common::pins;

/// The variable with which `ci verify` asks for the toolchain of the published image.
pub(crate) const VARIABLE: &str = "LAB_CI_RUST_TOOLCHAIN";
/// The internal parameter of the provenance that records the toolchain.
pub(crate) const INTERNAL: &str = "rust";
/// The components that the steps need, and the smallest profile lacks.
pub(crate) const COMPONENTS: [&str; 2] = ["clippy", "rustfmt"];

/// The Rust toolchain of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rust {
    /// The exact name for rustup: `1.80.0` or `nightly-2026-11-27`.
    pub name: String,
    /// Why it is used: `ci`, or the file that names it.
    pub from: String,
    /// Components beside those that the steps need.
    pub components: Vec<String>,
    /// Targets beside the host's.
    pub targets: Vec<String>,
}

impl Rust {
    /// Whether the toolchain's image contains it.
    #[must_use]
    pub fn is_in_the_image(&self) -> bool {
        self.name == pins::RUST && self.components.is_empty() && self.targets.is_empty()
    }

    /// The command that installs it.
    #[must_use]
    pub fn install(&self) -> Vec<&str> {
        let mut command = vec!["rustup", "toolchain", "install", &self.name];
        command.extend(["--profile", "minimal", "--no-self-update"]);
        for component in COMPONENTS
            .iter()
            .copied()
            .chain(self.components.iter().map(|it| &**it))
        {
            command.extend(["--component", component]);
        }
        for target in &self.targets {
            command.extend(["--target", target]);
        }
        command
    }

    /// Everything that distinguishes it from other toolchains.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{} {:?} {:?}", self.name, self.components, self.targets)
    }
}
