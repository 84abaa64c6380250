//! What the result of a step depends on, and why a step ran instead of reusing an earlier result.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::time::Time;

/// At most this many files are named.
const FILES: usize = 3;

/// The inputs of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Inputs {
    /// The digest of each file, by its path.
    pub files: Arc<BTreeMap<String, String>>,
    /// The other inputs, by their names in the plural or with an article: `the toolchain`.
    pub others: BTreeMap<String, String>,
    /// The engine, which is no input, but has the cache.
    pub engine: String,
}

impl Inputs {
    /// Adds an input.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.others.insert(name.to_owned(), value.to_string());
        self
    }

    /// What is different from the inputs of an earlier pass.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let changed = differences(&self.files, &before.files);
        if let Some(more) = changed.len().checked_sub(1) {
            let first: Vec<_> = changed.into_iter().take(FILES).cloned().collect();
            reasons.push(Reason::Files {
                more: more + 1 - first.len(),
                first,
            });
        }
        for name in differences(&self.others, &before.others) {
            reasons.push(Reason::Input { name: name.clone() });
        }
        if reasons.is_empty() {
            reasons.push(if self.engine == before.engine {
                Reason::NotCached
            } else {
                Reason::OtherEngine
            });
        }
        reasons
    }
}

/// The keys that only one of the maps has, or whose values differ.
fn differences<'a>(
    one: &'a BTreeMap<String, String>,
    other: &'a BTreeMap<String, String>,
) -> Vec<&'a String> {
    let changed = one
        .iter()
        .filter(|(key, value)| other.get(*key) != Some(*value));
    let removed = other.iter().filter(|(key, _)| !one.contains_key(*key));
    let mut keys: Vec<_> = changed.chain(removed).map(|(key, _)| key).collect();
    keys.sort_unstable();
    keys
}

/// Why a step ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Why {
    /// The last run in which the step passed, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<LastPass>,
    /// What changed since then, or why else no earlier result was used.
    pub reasons: Vec<Reason>,
}

/// The last run in which a step passed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct LastPass {
    /// The full SHA of the commit of that run.
    pub commit: String,
    /// The start of the step in that run.
    #[schemars(with = "Time")]
    pub time: jiff::Timestamp,
}

/// A reason why a step ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// The step runs always, because its result depends on more than its inputs.
    Always,
    /// No earlier pass is known.
    First,
    /// Files were changed, added or removed.
    Files {
        /// The first of them, by path.
        first: Vec<String>,
        /// The number of the others.
        more: usize,
    },
    /// Another input changed.
    Input {
        /// The input, such as `the toolchain`.
        name: String,
    },
    /// Nothing changed, but another engine ran the step, which has a cache of its own.
    OtherEngine,
    /// Nothing changed, but the engine's cache does not have the result.
    NotCached,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reasons: Vec<_> = self.reasons.iter().map(ToString::to_string).collect();
        f.write_str(&reasons.join(", "))?;
        let changed = |it: &Reason| matches!(it, Reason::Files { .. } | Reason::Input { .. });
        match &self.since {
            Some(last) if self.reasons.iter().any(changed) => {
                write!(f, " changed since commit {:.7}", last.commit)
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Always => f.write_str("it always runs"),
            Self::First => f.write_str("no earlier pass is known"),
            Self::Files { first, more } => {
                f.write_str(&first.join(", "))?;
                match more {
                    0 => Ok(()),
                    1 => f.write_str(" and 1 more file"),
                    more => write!(f, " and {more} more files"),
                }
            }
            Self::Input { name } => f.write_str(name),
            Self::OtherEngine => f.write_str("another engine has a cache of its own"),
            Self::NotCached => f.write_str("the engine's cache does not have the result"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(files: &[(&str, &str)], toolchain: &str) -> Inputs {
        let files = files.iter();
        let files = files.map(|(path, digest)| ((*path).to_owned(), (*digest).to_owned()));
        Inputs {
            files: Arc::new(files.collect()),
            engine: "embedded".to_owned(),
            ..Inputs::default()
        }
        .with("the toolchain", toolchain)
    }

    fn text(now: &Inputs, before: &Inputs) -> String {
        let commit = "4f2a91c000000000000000000000000000000000".to_owned();
        let time = jiff::Timestamp::UNIX_EPOCH;
        Why {
            since: Some(LastPass { commit, time }),
            reasons: now.changes_since(before),
        }
        .to_string()
    }

    #[test]
    fn names_the_first_files_and_the_other_inputs() {
        let before = inputs(&[("a", "1"), ("b", "1"), ("c", "1")], "1.95");
        assert_eq!(
            text(
                &inputs(&[("a", "1"), ("b", "2"), ("d", "1")], "1.95"),
                &before
            ),
            "b, c, d changed since commit 4f2a91c"
        );
        assert_eq!(
            text(&inputs(&[("e", "1"), ("f", "1")], "1.96"), &before),
            "a, b, c and 2 more files, the toolchain changed since commit 4f2a91c"
        );
        assert_eq!(
            text(&before, &before),
            "the engine's cache does not have the result"
        );
        let other = Inputs {
            engine: "docker".to_owned(),
            ..before.clone()
        };
        assert_eq!(
            text(&other, &before),
            "another engine has a cache of its own"
        );
    }
}
