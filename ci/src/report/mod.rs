//! Prints progress and results, and writes the report. No other module prints.

mod code_quality;
mod console;
mod ending;
mod github;
mod json;
mod junit;
mod page;
mod places;
mod previous;
mod profile;
mod redaction;
#[cfg(any(test, feature = "e2e"))]
pub mod samples;
mod screen;
mod spans;
mod summary;
mod terminal;
#[cfg(test)]
mod tests;
mod text;
mod written;

pub use console::{Reporter, confirm, data, failure, help};
pub use github::write_github_outputs;
pub use json::{EngineReport, Prepared, Program, Report, RustReport, SCHEMA, Verdict};
pub use places::{clear, prepare};
pub use previous::{Previous, last_end};
pub use profile::Profile;
pub use spans::Spans;
pub use terminal::attach;
pub use text::format_duration;
pub use written::write;
