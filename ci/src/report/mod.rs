//! The only place that prints, and that writes the report.

mod console;
mod json;
mod summary;

pub use console::{Reporter, ask, data, failure, format_duration, help};
pub use json::{EngineReport, Prepared, Report, SCHEMA, Verdict};
pub use summary::summary;
