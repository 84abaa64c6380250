//! The sources of a run: the commit, the packages, and the files that each step reads.

pub mod cargo_config;
pub mod checkout;
pub(crate) mod git;
mod kept;
mod lfs;
pub mod paths;
pub mod project;
pub mod snapshot;
pub mod sources;
pub mod submodules;
pub mod toolchain;
