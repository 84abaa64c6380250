//! One run on an engine: the state that its steps share, and the execution of each step.

pub(crate) mod context;
pub mod execution;
pub(crate) mod history;
mod network;
mod step_output;
pub(crate) mod stopper;
pub(crate) mod toolbox;
pub mod turns;
mod volumes;
