//! Prints progress and results, and writes the report. No other module prints.

mod console;
mod ending;
mod github;
mod json;
mod places;
mod profile;
mod screen;
mod summary;
mod terminal;
#[cfg(test)]
mod tests;
mod text;

pub use console::{Reporter, confirm, data, failure, help};
pub use github::write_github_outputs;
pub use json::{EngineReport, Prepared, Report, RustReport, SCHEMA, Verdict, last_end};
pub use places::prepare;
pub use profile::Profile;
pub use summary::summary;
pub use terminal::attach;
pub use text::format_duration;
