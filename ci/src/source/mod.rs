//! The sources that a run is about: which commit, which packages, and which files each step sees.

pub mod checkout;
pub mod paths;
pub mod project;
pub mod sources;
