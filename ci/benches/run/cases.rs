//! Everything that is measured, with its bounds.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A bound fails the benchmark if the figure exceeds it by more than a fifth, because figures vary from run to run.
pub const TOLERANCE: f64 = 1.2;

/// A part of the benchmark, which sets up its projects itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// A project of one file, with 10,000 more, and small commands: about three minutes
    Quick,
    /// This repository: about 45 minutes
    Repository,
    /// A service with about 300 dependencies: about half an hour
    Dependencies,
    /// Ten runs on one engine
    Many,
    /// Ten times as many crates, tests and files: about four minutes
    Growth,
    /// First runs, with an empty cache directory: about an hour
    First,
}

/// Something that `ci` is compared with, or `ci` itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// `ci`, as `cargo run` builds it.
    Ci,
    /// The same cargo commands on the host, one after another, with warm caches.
    Limit,
    /// Cargo on the host, `docker build`, Trivy, and the image polled with curl.
    Usual,
    /// `ci` with the project that lacks the 10,000 files.
    Without,
    /// The same runs of `ci`, one after another.
    Sequence,
}

impl Peer {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ci => "ci",
            Self::Limit => "limit",
            Self::Usual => "usual way",
            Self::Without => "without them",
            Self::Sequence => "one after another",
        }
    }
}

/// The unit of a case's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Milliseconds,
    Mebibytes,
}

impl Unit {
    /// A figure with its unit.
    pub fn show(self, figure: f64) -> String {
        match self {
            Self::Seconds if figure < 10.0 => format!("{figure:.2} s"),
            Self::Seconds if figure < 100.0 => format!("{figure:.1} s"),
            Self::Seconds => format!("{figure:.0} s"),
            Self::Milliseconds => format!("{figure:.0} ms"),
            Self::Mebibytes => format!("{figure:.1} MiB"),
        }
    }
}

/// The largest allowed median of `ci`: `times` the median of `of`, plus `plus`.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub of: Option<Peer>,
    pub times: f64,
    /// In the unit of the case.
    pub plus: f64,
}

const fn at_most(plus: f64) -> Bound {
    let (of, times) = (None, 0.0);
    Bound { of, times, plus }
}

const fn of(peer: Peer, times: f64) -> Bound {
    more_than(peer, times, 0.0)
}

const fn more_than(peer: Peer, times: f64, plus: f64) -> Bound {
    let of = Some(peer);
    Bound { of, times, plus }
}

/// Something that is measured.
pub struct Case {
    pub id: &'static str,
    pub what: &'static str,
    pub unit: Unit,
    pub bounds: &'static [Bound],
}

const fn case(id: &'static str, what: &'static str, bounds: &'static [Bound]) -> Case {
    let unit = Unit::Seconds;
    Case {
        id,
        what,
        unit,
        bounds,
    }
}

use Peer::{Limit, Sequence, Usual, Without};

/// All cases, in the order of the tables. "cold" means: the engine is up and has the base images, and nothing is compiled or
/// downloaded.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    case("one-file/cold", "one file, cold", &[of(Usual, 0.9)]),
    case("one-file/nothing", "one file, nothing changed", &[at_most(0.8), of(Usual, 1.0)]),
    case("one-file/documentation", "one file, documentation changed", &[]),
    case("one-file/line", "one file, one line changed", &[more_than(Limit, 1.5, 0.7)]),
    case("files/nothing", "10,000 small files, nothing changed", &[more_than(Without, 1.0, 2.0)]),
    case("files/one", "10,000 small files, one changed", &[more_than(Without, 1.0, 3.0)]),
    case("format", "badly formatted file, until the failure is shown", &[at_most(1.5)]),
    Case { id: "cpu", what: "CPU time of `ci` itself, one file, nothing changed", unit: Unit::Milliseconds, bounds: &[at_most(150.0)] },
    Case { id: "memory", what: "memory of `ci` itself, one file, nothing changed", unit: Unit::Mebibytes, bounds: &[at_most(40.0)] },
    case("doctor", "`ci doctor`", &[at_most(1.0)]),
    case("status", "`ci engine status`", &[at_most(1.0)]),
    case("repository/cold", "this repository, cold", &[of(Usual, 0.9)]),
    case("repository/nothing", "this repository, nothing changed", &[at_most(1.5)]),
    case("repository/documentation", "this repository, documentation changed", &[at_most(1.5)]),
    case("repository/line", "this repository, one line of `api` changed", &[of(Limit, 0.9), of(Usual, 0.75)]),
    case("repository/dependency", "this repository, one dependency updated", &[of(Usual, 0.9)]),
    case("dependencies/cold", "300 dependencies, cold", &[of(Usual, 0.9)]),
    case("dependencies/nothing", "300 dependencies, nothing changed", &[]),
    case("dependencies/documentation", "300 dependencies, documentation changed", &[]),
    case("dependencies/line", "300 dependencies, one line changed", &[]),
    case("dependencies/dependency", "300 dependencies, one of them updated", &[of(Usual, 0.9)]),
    case("many/warm", "ten runs at once, nothing to compile", &[of(Sequence, 0.6)]),
    case("many/cold", "ten runs at once, cold", &[of(Sequence, 1.0)]),
    case("ten/cold", "10 crates, 100 tests, 1,000 files, cold", &[]),
    case("ten/nothing", "10 crates, nothing changed", &[]),
    case("ten/documentation", "10 crates, documentation changed", &[]),
    case("ten/line", "10 crates, one line changed", &[]),
    case("hundred/cold", "100 crates, 1,000 tests, 10,000 files, cold", &[]),
    case("hundred/nothing", "100 crates, nothing changed", &[]),
    case("hundred/documentation", "100 crates, documentation changed", &[]),
    case("hundred/line", "100 crates, one line changed", &[]),
    case("first/one-file", "first run on an empty machine, one file", &[at_most(720.0)]),
    case("first/one-file-silence", "… longest time without a sign of life", &[at_most(10.0)]),
    case("first/repository", "first run on an empty machine, this repository", &[at_most(1200.0)]),
    case("first/repository-silence", "… longest time without a sign of life", &[at_most(10.0)]),
];
