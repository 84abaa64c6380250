//! The caches of a throw-away runner: what its engine would have to make anew is carried in a folder from one run to the next.
//!
//! `store.rs` is the folder, `pack.rs` a packed part of it, `contents.rs` what is worth to be one, `passes.rs` what has passed before,
//! `tools.rs` cargo-auditable. The way into and out of the engine is `run/volumes.rs`.

pub mod cache;
pub mod contents;
pub mod key;
mod pack;
mod passes;
pub mod place;
pub mod store;
pub mod tools;
