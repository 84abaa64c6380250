//! The Go modules from which the embedded engine is built, and the requirements that a machine does not meet.

use std::path::PathBuf;

use common::failure::Failure;
use common::pins;
use common::progress::Progress;
use common::provision::{self, GoModule, Package, Requirement};

/// The engine, its CLI and its helper programs.
pub(super) const ENGINE: GoModule = GoModule {
    name: "dagger-engine",
    version: pins::DAGGER,
    files: FILES,
    packages: &[
        "github.com/dagger/dagger/cmd/dagger",
        "github.com/dagger/dagger/cmd/dnsname",
        "github.com/dagger/dagger/cmd/engine",
        "github.com/dagger/dagger/cmd/init",
    ],
    ldflags: "-s -w -X github.com/dagger/dagger/engine.Version=vVERSION -X github.com/dagger/dagger/engine.Tag=vVERSION",
    env: &[],
    build_time: "three to five minutes, the first time only",
};

/// Only the CLI, for an engine on another machine.
const CLI: GoModule = GoModule {
    name: "dagger-cli",
    packages: &["github.com/dagger/dagger/cmd/dagger"],
    build_time: "two to three minutes, the first time only",
    ..ENGINE
};

const FILES: &[(&str, &str)] = &[
    ("go.mod", include_str!("gomod/go.mod")),
    ("go.sum", include_str!("gomod/go.sum")),
    ("distconsts/go.mod", include_str!("gomod/distconsts/go.mod")),
    (
        "distconsts/consts.go",
        include_str!("gomod/distconsts/consts.go"),
    ),
];

/// The distribution's packages that the engine needs.
pub(super) const PACKAGES: [Package; 9] = [
    provision::RUNC,
    provision::CNI_PLUGINS,
    provision::IPTABLES,
    provision::IPROUTE,
    provision::DNSMASQ,
    provision::PIGZ,
    provision::GIT,
    provision::TINI,
    provision::UTIL_LINUX,
];

/// Lists the requirements of the embedded engine that this machine does not meet.
#[must_use]
pub(crate) fn missing() -> Vec<Requirement> {
    let mut missing = Vec::new();
    if !cfg!(target_os = "linux") {
        missing.push(Requirement {
            what: "Linux".to_owned(),
            fix: provision::ALTERNATIVES.to_owned(),
        });
        return missing;
    }
    if !provision::is_root() {
        missing.push(Requirement {
            what: "root (the engine creates namespaces and networks)".to_owned(),
            fix: format!("run as root, with sudo. {}", provision::ALTERNATIVES),
        });
    }
    missing.extend(provision::missing_packages(&PACKAGES));
    missing.extend(provision::missing_go(&ENGINE));
    missing
}

/// Whether the engine's programs are built.
#[must_use]
pub(crate) fn is_built() -> bool {
    ENGINE.is_built()
}

/// Returns the Dagger CLI, and builds it if necessary: for an engine on another machine, if the released CLI cannot be
/// downloaded.
///
/// # Errors
/// When the build fails.
pub(crate) async fn cli(progress: &dyn Progress) -> Result<PathBuf, Failure> {
    match built_cli() {
        Some(cli) => Ok(cli),
        None => Ok(provision::build_go_tools(&CLI, progress)
            .await?
            .join("dagger")),
    }
}

/// The Dagger CLI that was built on this machine before, alone or with the engine.
#[must_use]
pub(crate) fn built_cli() -> Option<PathBuf> {
    [ENGINE, CLI]
        .iter()
        .filter_map(|module| module.bin().ok())
        .map(|bin| bin.join("dagger"))
        .find(|cli| cli.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_module_has_the_pinned_version() {
        for module in ["dagger.io/dagger", "github.com/dagger/dagger"] {
            let required = format!("{module} v{}", pins::DAGGER);
            let mut lines = FILES[0].1.lines().map(str::trim);
            assert!(
                lines.any(|line| line.strip_suffix(" // indirect").unwrap_or(line) == required),
                "{required}"
            );
        }
    }
}
