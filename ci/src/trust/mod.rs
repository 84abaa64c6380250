//! The permission to publish, and the kind of evidence that a run produces.

pub mod authority;
pub mod kind;
