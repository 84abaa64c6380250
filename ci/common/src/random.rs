//! Random numbers, as far as names that nobody else has are concerned.

use std::hash::{BuildHasher, RandomState};

/// A number that nobody can guess: the standard library seeds each hasher by the system's random numbers.
#[must_use]
pub fn number() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
