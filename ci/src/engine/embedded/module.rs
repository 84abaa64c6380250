//! The Go modules that the embedded engine is built from, and what a machine lacks for it.

use std::path::PathBuf;

use common::failure::Failure;
use common::pins;
use common::progress::Progress;
use common::provision::{self, GoModule, Package, Requirement};

/// The engine, its client and its helpers.
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
    usually: "three to five minutes, the first time only",
};

/// Only the client, for an engine that runs elsewhere.
const CLI: GoModule = GoModule {
    name: "dagger-cli",
    packages: &["github.com/dagger/dagger/cmd/dagger"],
    usually: "two to three minutes, the first time only",
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

/// What the engine needs of the distribution.
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

/// What this machine lacks for an embedded engine.
#[must_use]
pub fn missing() -> Vec<Requirement> {
    let mut missing = Vec::new();
    if !cfg!(target_os = "linux") {
        missing.push(Requirement {
            what: "Linux".to_owned(),
            remedy: provision::CHOICES.to_owned(),
        });
        return missing;
    }
    if !provision::is_root() {
        missing.push(Requirement {
            what: "root (the engine makes namespaces and networks)".to_owned(),
            remedy: format!("run as root, with sudo. {}", provision::CHOICES),
        });
    }
    missing.extend(provision::missing_packages(&PACKAGES));
    missing.extend(provision::missing_go(&ENGINE));
    missing
}

/// Whether its programs are built.
#[must_use]
pub fn is_built() -> bool {
    ENGINE.is_built()
}

/// The Dagger client alone, built where it is not there yet: for an engine elsewhere, on a machine that cannot download
/// the published client.
///
/// # Errors
/// When it cannot be built.
pub async fn cli(narrator: &dyn Progress) -> Result<PathBuf, Failure> {
    match built_cli() {
        Some(cli) => Ok(cli),
        None => Ok(provision::go_tools(&CLI, narrator).await?.join("dagger")),
    }
}

/// The Dagger client that was built here before, alone or with the engine.
#[must_use]
pub fn built_cli() -> Option<PathBuf> {
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
    fn the_module_builds_the_pinned_version() {
        for module in ["dagger.io/dagger", "github.com/dagger/dagger"] {
            let line = format!("\t{module} v{}\n", pins::DAGGER);
            assert!(FILES[0].1.contains(&line), "{line}");
        }
    }
}
