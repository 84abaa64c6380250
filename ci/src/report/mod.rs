//! The only place that prints, and that writes the report.

mod console;
mod github;
mod json;
mod summary;

pub use console::{Reporter, ask, data, failure, format_duration, help};
pub use github::tell_github;
pub use json::{EngineReport, Prepared, Report, SCHEMA, Verdict};
pub use summary::summary;
