//! The cache key of a step's outcome.

use sha2::{Digest, Sha256};

use crate::model::step::Step;

/// A digest of all inputs of a step's outcome.
#[derive(Clone, Debug)]
pub struct Key {
    pub(super) step: Step,
    sum: Sha256,
}

impl Key {
    #[must_use]
    pub fn of(step: Step) -> Self {
        Self {
            step,
            sum: Sha256::new(),
        }
        .with("step", step)
    }

    /// Adds an input.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        let value = value.to_string();
        // Length prefixes keep different lists from having the same digest.
        for part in [name, &value] {
            self.sum.update((part.len() as u64).to_le_bytes());
            self.sum.update(part);
        }
        self
    }

    pub(super) fn hex(&self) -> String {
        hex::encode(self.sum.clone().finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_changes_with_each_input() {
        let key = |step, env: &str, script: &str| {
            Key::of(step).with("env", env).with("script", script).hex()
        };
        let one = key(Step::Test, "a", "b");
        assert_eq!(one, key(Step::Test, "a", "b"));
        for other in [
            key(Step::Lint, "a", "b"),
            key(Step::Test, "x", "b"),
            key(Step::Test, "a", "x"),
            key(Step::Test, "ab", ""),
            key(Step::Test, "", "ab"),
        ] {
            assert_ne!(one, other);
        }
    }
}
