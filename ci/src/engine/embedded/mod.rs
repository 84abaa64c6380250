//! The embedded engine: a Dagger engine built from its Go modules, run on a Linux host without a container runtime.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::failure::Failure;
use crate::narrator::Narrator;
use crate::pins;
use crate::provision::{self, GoModule, Package, Requirement};

#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod inventory;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod process;

#[cfg(target_os = "linux")]
pub use host::{down, prune, status, up};

/// The engine, its client and its helpers.
const ENGINE: GoModule = GoModule {
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
const PACKAGES: [Package; 9] = [
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

/// An embedded engine that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Where clients reach it: `unix://…/engine.sock`.
    pub runner_host: String,
    /// The client of the same version.
    pub cli: PathBuf,
    /// The engine's version: `v0.19.10`.
    pub version: String,
    /// Whether this call has started it.
    pub started_now: bool,
}

/// What [`down`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DownReport {
    /// How many engines were ended.
    pub stopped: usize,
    /// How many of them had to be killed.
    pub killed: usize,
    /// What was left on the host and is gone now, one line each.
    pub removed: Vec<String>,
}

/// What there is of the embedded engine on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The version that this `ci` uses.
    pub version: String,
    /// The process that holds the engine's namespaces, where one is alive.
    pub pid: Option<i32>,
    /// Whether it answers.
    pub healthy: bool,
    /// Where clients reach it, where it answers.
    pub runner_host: Option<String>,
    /// For how long it has been running.
    pub uptime: Option<Duration>,
    /// The disk space that its state takes.
    pub state_bytes: u64,
    /// Its cache, where it answers.
    pub cache: Option<Cache>,
    /// All that lies in the cache directory: engines of all versions, programs, stand-ins, unfinished work.
    pub kept: Vec<Kept>,
    /// Whether its programs are built.
    pub built: bool,
    /// Everything that belongs to it lies here.
    pub folder: PathBuf,
    /// What it says of itself.
    pub log: PathBuf,
}

/// An engine's cache, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// How many entries there are.
    pub entries: u64,
    /// What they take on the disk.
    pub bytes: u64,
}

/// Something in the cache directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Its path below the cache directory.
    pub name: String,
    /// What it takes on the disk.
    pub bytes: u64,
}

/// What [`prune`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// What is gone.
    pub freed: Vec<Kept>,
    /// What somebody is using, one line each.
    pub in_use: Vec<String>,
}

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
pub async fn cli(narrator: &dyn Narrator) -> Result<PathBuf, Failure> {
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

#[cfg(not(target_os = "linux"))]
fn only_linux() -> Failure {
    Failure::environment("the embedded engine runs on Linux only").hint(
        "Start a container runtime (Docker, Podman, nerdctl); or name an engine elsewhere with --engine URL; or run ci as \
         root on a Linux host.",
    )
}

/// Starts the embedded engine, or finds the one that is running.
///
/// # Errors
/// Always: this is not Linux.
#[cfg(not(target_os = "linux"))]
pub async fn up(_: provision::Consent<'_>, _: &dyn Narrator) -> Result<Running, Failure> {
    Err(only_linux())
}

/// Ends the embedded engine.
///
/// # Errors
/// Always: this is not Linux.
#[cfg(not(target_os = "linux"))]
pub async fn down(_: &dyn Narrator) -> Result<DownReport, Failure> {
    Err(only_linux())
}

/// Frees what can be made again.
///
/// # Errors
/// Always: this is not Linux.
#[cfg(not(target_os = "linux"))]
pub async fn prune(_: &dyn Narrator) -> Result<Pruned, Failure> {
    Err(only_linux())
}

/// What there is of the embedded engine on this machine.
///
/// # Errors
/// Always: this is not Linux.
#[cfg(not(target_os = "linux"))]
pub async fn status() -> Result<Status, Failure> {
    Err(only_linux())
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
