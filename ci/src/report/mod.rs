//! Prints progress and results, and writes the report. No other module prints.

mod console;
mod github;
mod json;
mod summary;

pub use console::{Reporter, confirm, data, failure, format_duration, help};
pub use github::write_github_outputs;
pub use json::{EngineReport, Prepared, Report, SCHEMA, Verdict};
pub use summary::summary;
