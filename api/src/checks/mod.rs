//! The checks: the kinds of targets, and how a target of each kind is probed.

mod check;
mod clients;
mod driver;
mod probe_error;
mod target;

pub use check::Check;
pub use clients::Clients;
pub use probe_error::ProbeError;
pub use target::*;
