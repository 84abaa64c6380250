//! The engine's cache volumes that are restored and saved.

use super::store::Part;
use crate::model::step::Step;

/// A cache volume that is restored and saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Cargo's home.
    Cargo,
    /// The working directory of a step's cargo.
    Work(Step),
    /// The scanner's cache with the vulnerability database.
    Database,
}

impl Place {
    /// All volumes, except those of steps that compile nothing.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Cargo];
        all.extend(Step::compiling().map(Self::Work));
        all.push(Self::Database);
        all
    }

    /// The parts of the cache that the volume contains.
    #[must_use]
    pub fn parts(self) -> Vec<Part> {
        match self {
            Self::Cargo => vec![Part::Cargo],
            Self::Work(step) => vec![Part::Dependencies(step), Part::Workspace(step)],
            Self::Database => vec![Part::Database],
        }
    }

    /// The entries at the top of the volume, in the order in which they are moved there. The volume is complete with the last
    /// one.
    #[must_use]
    pub const fn tops(self) -> &'static [&'static str] {
        match self {
            Self::Cargo => &["git", "registry"],
            Self::Work(_) => &["used", "links", "target", "src"],
            Self::Database => &["db"],
        }
    }

    /// The lock file for exclusive access to the volume.
    #[must_use]
    pub const fn lock(self) -> &'static str {
        match self {
            // Cargo's own lock.
            Self::Cargo => ".package-cache",
            Self::Work(_) | Self::Database => "lock",
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cargo => f.write_str("cargo"),
            Self::Work(step) => step.fmt(f),
            Self::Database => f.write_str("database"),
        }
    }
}
