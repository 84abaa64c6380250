//! What a run is about and what becomes of it, as values that do nothing by themselves.

pub mod config_file;
pub mod event;
pub mod image_name;
pub mod record;
pub mod step;
