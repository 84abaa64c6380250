//! The volumes of the engine that are worth carrying.

use super::store::Part;
use crate::model::step::Step;

/// A volume that is worth carrying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Cargo's home.
    Cargo,
    /// Where a step's cargo works.
    Work(Step),
    /// The scanner's cache, with its database.
    Database,
}

impl Place {
    /// All of them, but for the volumes in which nothing is compiled.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let compile = Step::all().iter();
        let compile = compile.filter(|step| step.definition().compiles);
        let mut all = vec![Self::Cargo];
        all.extend(compile.map(|step| Self::Work(*step)));
        all.push(Self::Database);
        all
    }

    /// The parts of the cache that are in it.
    #[must_use]
    pub fn parts(self) -> Vec<Part> {
        match self {
            Self::Cargo => vec![Part::Cargo],
            Self::Work(step) => vec![Part::Dependencies(step), Part::Workspace(step)],
            Self::Database => vec![Part::Database],
        }
    }

    /// What is at the top of the volume, each in its turn: with the last one it is whole.
    #[must_use]
    pub const fn tops(self) -> &'static [&'static str] {
        match self {
            Self::Cargo => &["git", "registry"],
            Self::Work(_) => &["used", "links", "target", "src"],
            Self::Database => &["db"],
        }
    }

    /// What keeps two who work in it apart.
    #[must_use]
    pub const fn lock(self) -> &'static str {
        match self {
            // Cargo's own.
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
