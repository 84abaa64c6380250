//! Code that `ci` and the tests of the workspace share. It does not depend on the pipeline.

pub mod digest;
pub mod failure;
pub mod file_tree;
pub mod pins;
pub mod progress;
pub mod provision;
