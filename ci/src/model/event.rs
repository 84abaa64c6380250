//! What a run was started by, and whose caches it works in.

use serde::{Deserialize, Serialize};

/// What a run was started by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A push to main: the only one that publishes.
    Push,
    /// A pull request.
    PullRequest,
    /// Anything else: a laptop, another branch, a tag, a schedule.
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
    /// Whose caches a run works in that was started by this.
    #[must_use]
    pub const fn domain(self) -> Domain {
        match self {
            Self::Push => Domain::Main,
            Self::PullRequest => Domain::Pr,
            Self::Local => Domain::Local,
        }
    }
}

/// Whose a cache is: what a stranger's code has written must not reach what main publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// Pushes to main, which publish.
    Main,
    /// Pull requests.
    Pr,
    /// Everybody else.
    Local,
}

impl Domain {
    /// Whether a run of this domain may use what one of `other` has left: its own, and main's.
    #[must_use]
    pub fn reads(self, other: Self) -> bool {
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
    fn the_caches_of_main_are_everybodys_to_read_and_nobody_elses_are() {
        use Domain::{Local, Main, Pr};
        for (one, reads) in [
            (Main, vec![Main]),
            (Pr, vec![Main, Pr]),
            (Local, vec![Main, Local]),
        ] {
            let all = [Main, Pr, Local];
            let read: Vec<_> = all.into_iter().filter(|other| one.reads(*other)).collect();
            assert_eq!(read, reads, "{one}");
        }
    }
}
