//! The configuration: settings from the environment and one TOML file, validated before anything is started.

mod checks;
mod environment;
mod file;
mod load;
mod problem;
mod settings;
mod source;
mod tls;
mod values;
mod variables;

pub use problem::{Place, Problem, Problems};
pub use settings::{Build, Settings};
pub use source::Source;
pub use variables::Variables;
