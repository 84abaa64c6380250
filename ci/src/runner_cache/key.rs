//! By what a gate's outcome is known again.

use sha2::{Digest, Sha256};

use crate::model::step::Step;

/// The digest of all that an outcome depends on.
#[derive(Clone, Debug)]
pub struct Key {
    pub(super) step: Step,
    sum: Sha256,
}

impl Key {
    /// The beginning of one.
    #[must_use]
    pub fn of(step: Step) -> Self {
        Self {
            step,
            sum: Sha256::new(),
        }
        .with("step", step)
    }

    /// With something more that the outcome depends on.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        let value = value.to_string();
        // The lengths keep two lists from looking like one.
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
    fn a_key_changes_with_everything_that_is_in_it() {
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
