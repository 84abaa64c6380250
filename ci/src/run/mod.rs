//! One run on an engine: what its steps share, and how each is started, watched, ended and recorded.

pub mod context;
pub mod execution;
pub mod stopper;
pub mod toolbox;
mod volumes;
