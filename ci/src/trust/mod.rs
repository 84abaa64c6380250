//! Whether a run is allowed to publish, and with what its evidence was made.

pub mod authority;
pub mod kind;
