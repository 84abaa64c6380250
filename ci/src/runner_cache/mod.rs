//! The caches of an ephemeral runner: a directory that is restored into an empty engine before a run and saved after it.
//!
//! `store.rs` manages the directory and `pack.rs` a packed part. `contents.rs` selects the files of a part, `passes.rs` caches
//! passed steps, `tools.rs` cargo-auditable. `run/volumes.rs` transfers parts to and from the engine.
//!
//! Existing cache stores know no trust domains: here a pull request reads what main has saved, and never the other way round.

pub(crate) mod cache;
pub(crate) mod contents;
pub(crate) mod key;
mod pack;
mod passes;
pub(crate) mod place;
pub(crate) mod store;
pub(crate) mod tools;
