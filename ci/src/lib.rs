//! The pipeline program, in layers: each module imports only modules listed above it. `ci/docs/architecture.md` has the table.

// An item that only this crate uses is `pub(crate)`, and needs no documentation for others.
#![warn(unreachable_pub)]
//!
//! The crate `common` is below all of them: failures, pinned versions, progress, and provisioning of a machine.

pub mod model;

pub(crate) mod output;

pub mod source;

pub mod trust;

pub mod image;

pub(crate) mod standin;

pub mod engine;

pub mod settings;

pub(crate) mod runner_cache;

pub mod report;

pub mod run;

pub mod steps;

pub mod pipeline;

pub mod commands;

pub mod app;
