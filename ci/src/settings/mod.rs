//! The settings of a run: command line, environment and `ci.toml`, merged and validated.

pub mod access;
pub mod cargo;
mod command_line;
mod merged;
pub mod tables;

pub use command_line::{
    Acceptance, CacheCommand, Cli, Command, Drawing, EngineCommand, Format, Options,
};
#[cfg(test)]
pub(crate) use merged::keys;
pub use merged::{Invocation, Settings, cache_dir, schema};
