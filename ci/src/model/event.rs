//! The event that started a run, and the cache domain that follows from it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The event that started a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A push to main: the only event that publishes.
    Push,
    /// A pull request.
    PullRequest,
    /// Anything else: a local run, another branch, a tag, a schedule.
    Local,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Push => "push",
            Self::PullRequest => "pull-request",
            Self::Local => "local",
        })
    }
}

impl Event {
    /// Returns the cache domain of a run that this event started.
    #[must_use]
    pub const fn domain(self) -> Domain {
        match self {
            Self::Push => Domain::Main,
            Self::PullRequest => Domain::Pr,
            Self::Local => Domain::Local,
        }
    }
}

/// The trust domain of a cache. It keeps files that untrusted code has written out of the images that main publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// Pushes to main, which publish.
    Main,
    /// Pull requests.
    Pr,
    /// Everything else.
    Local,
}

impl Domain {
    /// Returns whether a run of this domain can use caches of `other`: those of its own domain and of main.
    #[must_use]
    pub fn can_read(self, other: Self) -> bool {
        other == self || other == Self::Main
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::Pr => "pr",
            Self::Local => "local",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_domain_reads_its_own_caches_and_those_of_main() {
        use Domain::{Local, Main, Pr};
        for (one, reads) in [
            (Main, vec![Main]),
            (Pr, vec![Main, Pr]),
            (Local, vec![Main, Local]),
        ] {
            let all = [Main, Pr, Local];
            let read: Vec<_> = all
                .into_iter()
                .filter(|other| one.can_read(*other))
                .collect();
            assert_eq!(read, reads, "{one}");
        }
    }
}
