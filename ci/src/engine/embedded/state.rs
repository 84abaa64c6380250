//! The state of the embedded engine, and the results of its commands.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// A running embedded engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    /// The engine's URL: `unix://…/engine.sock`.
    pub runner_host: String,
    /// The CLI of the same version.
    pub cli: PathBuf,
    /// For example `v0.21.8`.
    pub version: String,
    /// Whether this call started the engine.
    pub started_now: bool,
}

/// The result of [`down`](super::down).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct DownReport {
    /// The number of engines that were stopped.
    pub stopped: usize,
    /// The number of them that did not exit by themselves and were killed.
    pub killed: usize,
    /// The remains that were removed from the host, one line each.
    pub removed: Vec<String>,
}

/// The state of the embedded engine on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Status {
    /// The engine version that this `ci` uses.
    pub version: String,
    /// The process that holds the engine's namespaces, if it is alive.
    pub pid: Option<i32>,
    /// Whether the engine answers.
    pub healthy: bool,
    /// The engine's URL, if it answers.
    pub runner_host: Option<String>,
    pub uptime: Option<Duration>,
    /// The largest size of the engine's cache, in bytes.
    pub limit_bytes: u64,
    /// The size of the engine's cache, if it answers.
    pub cache: Option<Cache>,
    /// The contents of the cache directory: engines of all versions, programs, stand-ins, unfinished work.
    pub kept: Vec<Kept>,
    /// Whether the engine's programs are built.
    pub built: bool,
    /// The directory with everything that belongs to the engine.
    pub folder: PathBuf,
    /// The engine's log file.
    pub log: PathBuf,
}

/// The size of an engine's cache, as the engine reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cache {
    pub entries: u64,
    /// The disk usage.
    pub bytes: u64,
}

/// An entry of the cache directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Kept {
    /// The path relative to the cache directory.
    pub name: String,
    /// The disk usage; absent for engines, whose caches have hundreds of thousands of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// An entry of the cache directory that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Freed {
    /// The path relative to the cache directory.
    pub name: String,
    /// The freed disk space.
    pub bytes: u64,
}

/// The result of [`prune`](super::prune).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Pruned {
    /// The entries that were removed.
    pub freed: Vec<Freed>,
    /// The entries that are in use and stay, one line each.
    pub in_use: Vec<String>,
}
