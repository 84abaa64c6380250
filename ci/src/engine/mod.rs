//! Which Dagger engine a run uses, and the session with it.

pub mod choice;
mod cli;
pub mod embedded;
pub mod find;
pub mod graphql;
pub mod runtime;
pub mod session;
pub mod telemetry;
