//! Code that `ci` and the tests of the workspace share. It does not depend on the pipeline.

// An item that only this crate uses is `pub(crate)`, and needs no documentation for others.
#![warn(unreachable_pub)]

pub mod digest;
pub mod failure;
pub mod file_tree;
pub mod pins;
pub mod progress;
pub mod provision;
pub mod scratch;
