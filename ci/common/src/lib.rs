//! What `ci` and the tests of the workspace share. Nothing here knows of a pipeline.

pub mod digest;
pub mod failure;
pub mod file_tree;
pub mod pins;
pub mod progress;
pub mod provision;
