//! The pipeline program, in layers: each imports only what stands above it. `ci/docs/architecture.md` has the table.
//!
//! Below them all is the crate `common`: failures, pins, progress, and what a machine is provided with.

pub mod model;

pub mod source;

pub mod trust;

pub mod image;

pub mod standin;

pub mod engine;

pub mod settings;

pub mod runner_cache;

pub mod report;

pub mod run;

pub mod steps;

pub mod pipeline;

pub mod commands;

pub mod app;
