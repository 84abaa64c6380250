//! The embedded engine: a Dagger engine built from its Go modules, run on a Linux host without a container runtime.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod inventory;
mod module;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod process;
mod state;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{down, is_running, prune, status, up};
#[cfg(target_os = "linux")]
pub(crate) use host::{down, is_running, prune, status, up};
pub(crate) use module::{built_cli, cli, is_built, missing};
pub(crate) use state::{Freed, Kept, Status};
