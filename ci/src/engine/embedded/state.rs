//! What there is of the embedded engine on this machine, and what became of it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

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

/// What [`down`](super::down) did.
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

/// What [`prune`](super::prune) did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// What is gone.
    pub freed: Vec<Kept>,
    /// What somebody is using, one line each.
    pub in_use: Vec<String>,
}
