//! The checks: the kinds of targets, and how a target of each kind is probed.

mod check;
mod clients;
mod driver;
mod target;
mod trouble;

pub use check::Check;
pub use clients::Clients;
pub use target::*;
pub use trouble::Trouble;
