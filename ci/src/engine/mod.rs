//! Selects a Dagger engine and opens the session with it.

pub(crate) mod choice;
mod cli;
pub mod disk;
pub(crate) mod embedded;
pub(crate) mod find;
pub(crate) mod graphql;
pub(crate) mod http;
pub(crate) mod runtime;
pub mod session;
pub mod telemetry;
mod version;
