//! The results: medians, ratios and bounds, as a table, JSON, Markdown and a plot in `target/bench`. They stay there until they are
//! measured again, so that parts can be measured one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cases::{Bound, CASES, Case, Peer, TOLERANCE, Unit};
use crate::plot;

/// The name of the files in `target/bench`.
const NAME: &str = "run";
/// The largest load average of a machine that nothing else uses.
pub const IDLE: f64 = 1.0;

/// All known results.
pub struct Results {
    folder: PathBuf,
    stored: Stored,
    /// The cases that were measured now.
    measured: BTreeSet<&'static str>,
    machine: String,
    commit: String,
    load: f64,
}

#[derive(Default, Deserialize, Serialize)]
struct Stored {
    cases: BTreeMap<String, Measured>,
}

/// The figures of a case, one for each round.
#[derive(Clone, Default, Deserialize, Serialize)]
pub struct Measured {
    measured: String,
    machine: String,
    /// The commit of `ci`.
    commit: String,
    /// The load average before the benchmark: above one, other programs have slowed it down.
    #[serde(default)]
    load: f64,
    pub peers: BTreeMap<Peer, Vec<f64>>,
    /// The same for the steps of `ci` and the commands of the peers, in seconds.
    parts: BTreeMap<String, Vec<f64>>,
    /// The medians, for readers of the file.
    #[serde(default, skip_deserializing)]
    medians: BTreeMap<Peer, f64>,
    /// The median of `ci` divided by that of another peer, for readers of the file.
    #[serde(default, skip_deserializing)]
    ratios: BTreeMap<String, f64>,
    #[serde(default, skip_deserializing)]
    bounds: Vec<Verdict>,
}

/// A bound, compared with the median.
#[derive(Clone, Serialize)]
struct Verdict {
    bound: String,
    at_most: f64,
    met: bool,
    /// Whether it is missed by more than the tolerance.
    fails: bool,
}

/// One round of a case.
#[derive(Default)]
pub struct Round {
    pub peers: Vec<(Peer, f64)>,
    /// Steps and commands, in seconds.
    pub parts: Vec<(String, f64)>,
}

impl Round {
    /// A round in which only `ci` is measured.
    pub fn of(figure: f64) -> Self {
        Self {
            peers: vec![(Peer::Ci, figure)],
            parts: Vec::new(),
        }
    }

    /// The round with the figure of another peer.
    pub fn and(mut self, peer: Peer, figure: f64) -> Self {
        self.peers.push((peer, figure));
        self
    }
}

/// The median of some figures.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

impl Measured {
    pub fn median(&self, peer: Peer) -> Option<f64> {
        self.peers.get(&peer).map(|figures| median(figures))
    }

    fn ratio(&self, peer: Peer) -> Option<f64> {
        Some(self.median(Peer::Ci)? / self.median(peer)?)
    }

    fn verdict(&self, bound: &Bound, unit: Unit) -> Verdict {
        let ci = self.median(Peer::Ci).unwrap();
        let (at_most, text) = match bound.of {
            None => (bound.plus, unit.show(bound.plus)),
            Some(peer) => {
                let at_most = bound.times * self.median(peer).unwrap() + bound.plus;
                let times = match bound.times {
                    1.0 => String::new(),
                    times => format!("{times} × "),
                };
                let plus = match bound.plus {
                    0.0 => String::new(),
                    plus => format!(" + {plus} s"),
                };
                let name = peer.name();
                (
                    at_most,
                    format!("{times}{name}{plus} = {}", unit.show(at_most)),
                )
            }
        };
        Verdict {
            bound: format!("≤ {text}"),
            at_most,
            met: ci <= at_most,
            fails: ci > at_most * TOLERANCE,
        }
    }

    /// Computes everything that follows from the figures.
    fn complete(&mut self, case: &Case) {
        let peers: Vec<Peer> = self.peers.keys().copied().collect();
        self.medians = peers
            .iter()
            .filter_map(|peer| Some((*peer, self.median(*peer)?)))
            .collect();
        self.ratios = peers
            .iter()
            .filter(|peer| **peer != Peer::Ci)
            .filter_map(|peer| Some((format!("ci / {}", peer.name()), self.ratio(*peer)?)))
            .collect();
        let bounds = case.bounds.iter();
        self.bounds = bounds.map(|it| self.verdict(it, case.unit)).collect();
    }
}

impl Results {
    /// Reads the results of earlier measurements.
    pub fn open(folder: PathBuf, commit: String) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(NAME).with_extension("json");
        let mut stored = std::fs::read_to_string(path).map_or_else(
            |_| Stored::default(),
            // The file of another version of this program is replaced.
            |text| serde_json::from_str(&text).unwrap_or_default(),
        );
        stored.cases.retain(|id, measured| {
            let case = CASES.iter().find(|case| case.id == id);
            if let Some(case) = case {
                measured.complete(case);
            }
            case.is_some()
        });
        Self {
            folder,
            stored,
            measured: BTreeSet::new(),
            machine: machine(),
            commit,
            load: load_average(),
        }
    }

    /// The load average before the benchmark.
    pub fn load(&self) -> f64 {
        self.load
    }

    /// Stores the rounds of a case.
    pub fn add(&mut self, id: &'static str, rounds: Vec<Round>) {
        let case = CASES.iter().find(|case| case.id == id).unwrap();
        let mut measured = Measured {
            measured: jiff::Timestamp::now().strftime("%F %R UTC").to_string(),
            machine: self.machine.clone(),
            commit: self.commit.clone(),
            load: self.load,
            ..Measured::default()
        };
        for round in rounds {
            for (peer, figure) in round.peers {
                measured.peers.entry(peer).or_default().push(figure);
            }
            for (part, figure) in round.parts {
                measured.parts.entry(part).or_default().push(figure);
            }
        }
        measured.complete(case);
        self.stored.cases.insert(id.to_owned(), measured);
        self.measured.insert(id);
        // At once, so that an interruption loses nothing.
        let json = serde_json::to_string_pretty(&self.stored).unwrap() + "\n";
        let path = self.folder.join(NAME).with_extension("json");
        std::fs::write(path, json).unwrap();
        plot::draw(&self.folder.join(NAME).with_extension("svg"), &self.known());
    }

    fn known(&self) -> Vec<(&'static Case, &Measured)> {
        CASES
            .iter()
            .filter_map(|case| Some((case, self.stored.cases.get(case.id)?)))
            .collect()
    }

    /// The median of an earlier case.
    pub fn figure(&self, id: &str, peer: Peer) -> f64 {
        self.stored.cases[id].median(peer).unwrap()
    }

    /// Whether a bound of a case that was measured now is missed by more than the tolerance.
    pub fn fails(&self) -> bool {
        self.known().iter().any(|(case, measured)| {
            self.measured.contains(case.id) && measured.bounds.iter().any(|bound| bound.fails)
        })
    }

    /// The table of what was measured now, for a terminal.
    pub fn table(&self) -> String {
        let mut text = format!("{}\n`ci` of commit {}\n\n", self.machine, self.commit);
        let known = self.known().into_iter();
        let now: Vec<_> = known
            .filter(|(case, _)| self.measured.contains(case.id))
            .map(|(case, measured)| row(case, measured))
            .collect();
        for cells in std::iter::once(HEADER.map(str::to_owned)).chain(now) {
            let [what, ci, limit, usual, by_limit, by_usual, bounds] = cells;
            let line = format!(
                "{what:<51}{ci:>9}{limit:>9}{usual:>10}{by_limit:>11}{by_usual:>15}  {bounds}"
            );
            writeln!(text, "{}", line.trim_end()).unwrap();
        }
        let files = self.folder.join(NAME);
        write!(text, "\n{}.json, {0}.svg", files.display()).unwrap();
        text
    }

    /// The table of all known results, for the documentation.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for cells in [HEADER, ["---"; 7]] {
            writeln!(text, "| {} |", cells.join(" | ")).unwrap();
        }
        let mut origins = BTreeSet::new();
        for (case, measured) in self.known() {
            writeln!(text, "| {} |", row(case, measured).join(" | ")).unwrap();
            origins.insert((&measured.machine, &measured.commit));
        }
        for (machine, commit) in origins {
            write!(
                text,
                "\nMeasured on {machine}, with `ci` of commit {commit}."
            )
            .unwrap();
        }
        text
    }
}

const HEADER: [&str; 7] = [
    "case",
    "ci",
    "limit",
    "usual way",
    "ci / limit",
    "ci / usual way",
    "bounds for ci",
];

fn row(case: &Case, measured: &Measured) -> [String; 7] {
    let figure = |peer| {
        measured
            .median(peer)
            .map_or_else(String::new, |figure| case.unit.show(figure))
    };
    let ratio = |peer| {
        measured
            .ratio(peer)
            .map_or_else(String::new, |ratio| format!("{ratio:.2}"))
    };
    // The peers without a column.
    let others = [Peer::Without, Peer::Sequence]
        .into_iter()
        .filter_map(|peer| {
            let figure = case.unit.show(measured.median(peer)?);
            let ratio = measured.ratio(peer)?;
            let name = peer.name();
            Some(format!("{name}: {figure}, ci / {name} = {ratio:.2}"))
        });
    let bounds: Vec<_> = others
        .chain(measured.bounds.iter().map(|it| {
            let verdict = match (it.met, it.fails) {
                (true, _) => "met",
                (false, false) => "missed by less than a fifth",
                (false, true) => "MISSED",
            };
            format!("{}: {verdict}", it.bound)
        }))
        .collect();
    [
        case.what.to_owned(),
        figure(Peer::Ci),
        figure(Peer::Limit),
        figure(Peer::Usual),
        ratio(Peer::Limit),
        ratio(Peer::Usual),
        bounds.join("; "),
    ]
}

fn load_average() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let recent = load.split(' ').next().unwrap_or_default();
    recent.parse().unwrap_or_default()
}

/// The CPU, cores, memory and kernel of this machine.
fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let mut lines = text.lines();
        let found = lines.find_map(|line| line.strip_prefix(name)?.split_once(':'));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".into());
    let cores = std::thread::available_parallelism().unwrap();
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kibibytes: f64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cpu}, {cores} cores, {:.0} GiB, Linux {}",
        kibibytes / 1024.0 / 1024.0,
        kernel.trim()
    )
}
