//! The engine versions that this `ci` supports.

use common::failure::Failure;
use common::pins;

/// Whether `version` has the minor version of the pinned engine. Between minor versions, the API and the reports of the engine
/// change.
pub(super) fn is_supported(version: &str) -> bool {
    let minor = |text: &str| {
        let version: semver::Version = text.parse().ok()?;
        Some((version.major, version.minor))
    };
    minor(version) == minor(pins::DAGGER)
}

/// The failure for an engine whose version `ci` does not support.
pub(super) fn unsupported(engine: &str, version: &str) -> Failure {
    let needed = pins::DAGGER;
    Failure::environment(format!(
        "the Dagger engine at {engine} has version {version}, but this ci needs {needed}"
    ))
    .hint(format!(
        "Run the image {} there, or choose another engine with --engine.",
        pins::DAGGER_IMAGE
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supports_other_patch_versions_only() {
        let pinned: semver::Version = pins::DAGGER.parse().unwrap();
        let (major, minor, patch) = (pinned.major, pinned.minor, pinned.patch);
        for supported in [
            format!("{major}.{minor}.{patch}"),
            format!("{major}.{minor}.{}", patch + 1),
            format!("{major}.{minor}.{}-261127-dev-0a1b2c", patch + 1),
        ] {
            assert!(is_supported(&supported), "{supported}");
        }
        for other in [
            format!("{major}.{}.{patch}", minor + 1),
            format!("{}.{minor}.{patch}", major + 1),
            "0.19.10".to_owned(),
            "unknown".to_owned(),
        ] {
            assert!(!is_supported(&other), "{other}");
        }
    }
}
