//! The settings of cargo in the repository that matter to how the service is linked: `.cargo/config.toml`.
//!
//! [Cargo](https://doc.rust-lang.org/cargo/reference/config.html#buildrustflags) takes flags for the compiler from exactly one of
//! several places. `ci` adds its own at the place that the repository uses, so that `build` compiles with the same flags as `test`.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use cargo_platform::{Cfg, Platform};
use serde::Deserialize;

use common::failure::{Failure, OrFail};

/// The settings of all files that apply to a workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CargoConfig {
    /// The flags of `[build]`.
    build: Vec<String>,
    /// `build.target`, of which there may be several.
    build_targets: Vec<String>,
    /// The flags of each `[target.…]`, by its key: a triple or a `cfg(…)`.
    targets: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    build: Build,
    target: BTreeMap<String, Target>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Build {
    rustflags: Option<Words>,
    target: Option<Words>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Target {
    rustflags: Option<Words>,
}

/// A list, or a string that is split at spaces.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

impl Words {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::One(text) => text.split_whitespace().map(ToOwned::to_owned).collect(),
            Self::Many(list) => list,
        }
    }
}

impl CargoConfig {
    /// Reads the files of the workspace in `folder` and of its parents in `sources`.
    ///
    /// # Errors
    /// When a file is invalid (exit code 2) or cannot be read (exit code 3).
    pub fn read(sources: &Path, folder: &Path) -> Result<Self, Failure> {
        let mut all = Self::default();
        // Lists are joined, with those of the nearest file last.
        let folders: Vec<_> = folder.ancestors().collect();
        for folder in folders.into_iter().rev() {
            // The name without an extension is the older one, and takes precedence.
            let names = ["config", "config.toml"].map(|name| folder.join(".cargo").join(name));
            let Some(name) = names.iter().find(|name| sources.join(name).is_file()) else {
                continue;
            };
            let text = std::fs::read_to_string(sources.join(name))
                .or_environment(format!("cannot read {}", name.display()))?;
            let file: File = toml::from_str(&text).map_err(|error| {
                Failure::usage(format!("{} is invalid", name.display()))
                    .output(error.to_string())
                    .hint("Run `cargo config get` or `cargo metadata` for details.")
            })?;
            all.add(file);
        }
        Ok(all)
    }

    fn add(&mut self, file: File) {
        self.build.extend(
            file.build
                .rustflags
                .map(Words::into_list)
                .unwrap_or_default(),
        );
        if let Some(target) = file.build.target {
            self.build_targets = target.into_list();
        }
        for (key, target) in file.target {
            if let Some(flags) = target.rustflags {
                self.targets
                    .entry(key)
                    .or_default()
                    .extend(flags.into_list());
            }
        }
    }

    /// Checks that tests and lint are for the image's target, too.
    ///
    /// # Errors
    /// When the repository names another target (exit code 2).
    pub fn require_target(&self, target: &str) -> Result<(), Failure> {
        match self.build_targets.iter().find(|other| *other != target) {
            Some(other) => Err(Failure::usage(format!(
                "build.target in .cargo/config.toml is {other}, but the image needs a binary for {target}"
            ))
            .hint("Remove build.target: cargo test and the image must be for the same target.")),
            None => Ok(()),
        }
    }

    /// The environment variable that adds flags for `target` to those of the repository.
    ///
    /// # Errors
    /// When the repository's flags contradict a static binary (exit code 2).
    pub fn variable_for_static(&self, target: &str) -> Result<String, Failure> {
        let mut applying = self
            .targets
            .iter()
            .filter(|(key, _)| applies(key, target))
            .flat_map(|(_, flags)| flags)
            .peekable();
        // The flags of a target hide those of `[build]`.
        let of_target = applying.peek().is_some() || self.build.is_empty();
        let contradicts = |flag: &String| flag.contains("-crt-static");
        let flags = applying.chain(self.build.iter().filter(|_| !of_target));
        if let Some(flag) = flags.into_iter().find(|flag| contradicts(flag)) {
            return Err(Failure::usage(format!(
                "the flag {flag} in .cargo/config.toml contradicts the static binary that an image from scratch needs"
            ))
            .hint("Remove the flag, or set image.libc = \"dynamic\" and image.base in ci.toml."));
        }
        Ok(if of_target {
            let target = target.to_uppercase().replace(['-', '.'], "_");
            format!("CARGO_TARGET_{target}_RUSTFLAGS")
        } else {
            "CARGO_BUILD_RUSTFLAGS".to_owned()
        })
    }
}

/// Whether the table `[target.KEY]` applies to a Linux target with the GNU C library.
fn applies(key: &str, target: &str) -> bool {
    let arch = target.split('-').next().unwrap_or_default();
    let known = [
        "unix".to_owned(),
        "panic=\"unwind\"".to_owned(),
        "target_os=\"linux\"".to_owned(),
        "target_family=\"unix\"".to_owned(),
        "target_env=\"gnu\"".to_owned(),
        "target_vendor=\"unknown\"".to_owned(),
        "target_endian=\"little\"".to_owned(),
        "target_pointer_width=\"64\"".to_owned(),
        format!("target_arch=\"{arch}\""),
    ];
    let known: Vec<Cfg> = known
        .iter()
        .filter_map(|cfg| Cfg::from_str(cfg).ok())
        .collect();
    Platform::from_str(key).is_ok_and(|platform| platform.matches(target, &known))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "x86_64-unknown-linux-gnu";

    fn variable(files: &[&str]) -> Result<String, Failure> {
        let mut all = CargoConfig::default();
        for file in files {
            all.add(toml::from_str(file).unwrap());
        }
        all.variable_for_static(TARGET)
    }

    #[test]
    fn adds_flags_where_the_repository_has_its_own() {
        let of_target = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";
        for (files, expected) in [
            (&[][..], of_target),
            (
                &["[build]\nrustflags = [\"--cfg\", \"a\"]"],
                "CARGO_BUILD_RUSTFLAGS",
            ),
            (
                &["[build]\nrustflags = \"--cfg a\"", "[build]\njobs = 2"],
                "CARGO_BUILD_RUSTFLAGS",
            ),
            (
                &["[target.x86_64-unknown-linux-gnu]\nrustflags = [\"--cfg\", \"a\"]"],
                of_target,
            ),
            (
                &[
                    "[target.'cfg(target_os = \"linux\")']\nrustflags = [\"-Cx\"]\n[build]\nrustflags = [\"-Cy\"]",
                ],
                of_target,
            ),
            (
                &["[target.'cfg(windows)']\nrustflags = [\"-Cx\"]\n[build]\nrustflags = [\"-Cy\"]"],
                "CARGO_BUILD_RUSTFLAGS",
            ),
            (
                &["[target.x86_64-unknown-linux-gnu]\nlinker = \"clang\""],
                of_target,
            ),
        ] {
            assert_eq!(variable(files).unwrap(), expected, "{files:?}");
        }
    }

    #[test]
    fn rejects_what_contradicts_a_static_binary() {
        let file = "[build]\nrustflags = [\"-C\", \"target-feature=-crt-static\"]";
        assert!(variable(&[file]).is_err());
    }

    #[test]
    fn rejects_other_targets_than_that_of_the_image() {
        for (file, is_right) in [
            ("[build]\njobs = 1", true),
            ("[build]\ntarget = \"x86_64-unknown-linux-gnu\"", true),
            ("[build]\ntarget = \"wasm32-unknown-unknown\"", false),
            (
                "[build]\ntarget = [\"x86_64-unknown-linux-gnu\", \"x86_64-unknown-linux-musl\"]",
                false,
            ),
        ] {
            let mut all = CargoConfig::default();
            all.add(toml::from_str(file).unwrap());
            assert_eq!(all.require_target(TARGET).is_ok(), is_right, "{file}");
        }
    }
}
