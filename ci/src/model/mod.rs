//! Plain data types for the inputs and results of a run.

pub mod cause;
pub mod config_file;
pub mod event;
pub mod finding;
pub mod image_name;
pub mod inputs;
pub(crate) mod lockfile;
pub mod record;
pub mod rust;
pub mod step;
pub(crate) mod time;
