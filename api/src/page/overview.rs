//! The status page: the overall state, and a row for each check.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::SystemTime,
};

use askama::Template;

use super::{
    SCRIPT, STYLE, age, bars::Bars, breakable, display_time, latency, machine_time, may_be_cut,
    missing, percent,
};
use crate::{
    board::{Board, Status},
    history::Ring,
    state::State,
};

/// The maximum number of down checks that the headline names.
const MAX_NAMED: usize = 5;

/// The number of checks from which on the page has a filter.
const MIN_FILTERED: usize = 8;

/// Which rows a page contains.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// All rows.
    All,
    /// The rows that have changed since the page with this token. A token of another process selects all rows.
    Since(&'a str),
    /// The rows of the checks with these names, separated by commas.
    Only(&'a str),
}

/// Renders the status page of `board`, which is valid until the generation of the board changes. Links start with `base`.
///
/// # Errors
/// When the template fails, which is not expected.
pub fn render(
    board: &Board,
    base: &str,
    (title, environment): (&str, &str),
    scope: Scope<'_>,
) -> askama::Result<String> {
    // Before the rows, so that a row that changes in between is sent again.
    let generation = board.generation();
    let since = match scope {
        Scope::Since(token) => board.changes().number(token),
        Scope::All | Scope::Only(_) => None,
    };
    let wanted = |status: &Status| match scope {
        Scope::Only(names) => names.split(',').any(|name| name == status.name),
        Scope::Since(_) | Scope::All => since.is_none_or(|since| status.generation > since),
    };
    let now = SystemTime::now();
    let statuses = board.statuses();
    let rows: Vec<Row> = statuses
        .iter()
        .enumerate()
        .filter(|(_, status)| wanted(status))
        .map(|(place, status)| Row {
            bars: board
                .with_samples(status.index, |ring| Bars::new(ring, now))
                .unwrap_or_else(|| Bars::new(&Ring::default(), now)),
            known_for: (status.day.known_since).map_or_else(String::new, |since| age(now, since)),
            status,
            order: order(place, status),
        })
        .collect();
    let is_partial = since.is_some() || matches!(scope, Scope::Only(_));
    Page {
        // The open page already has them.
        style: if is_partial { "" } else { STYLE },
        script: if is_partial { "" } else { SCRIPT },
        base,
        title,
        environment,
        overall: Overall::of(&statuses),
        token: board.changes().id(generation),
        checks: names_hash(&statuses),
        is_partial,
        groups: group(rows, &statuses),
        statuses: &statuses,
        now,
    }
    .render()
}

/// The place of a check on the page: the worst state first, then in the order of the configuration.
fn order(place: usize, status: &Status) -> usize {
    let rank = match (status.state, status.critical) {
        (State::Down, true) => 0,
        (State::Down, false) => 1,
        (State::Degraded, _) => 2,
        (State::Pending, _) => 3,
        (State::Up, _) => 4,
    };
    // There are at most 1000 checks.
    rank * 1000 + place
}

/// Sorts `rows` into groups. Groups without rows are included, because their tallies may have changed.
fn group<'a>(rows: Vec<Row<'a>>, statuses: &'a [Status]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut places: HashMap<Option<&str>, usize> = HashMap::new();
    for (place, status) in statuses.iter().enumerate() {
        let name = status.group.as_deref();
        let group = *places.entry(name).or_insert_with(|| {
            groups.push(Group {
                name,
                rows: Vec::new(),
                statuses: Vec::new(),
                order: usize::MAX,
            });
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(group) {
            group.statuses.push(status);
            group.order = group.order.min(order(place, status));
        }
    }
    for row in rows {
        let place = places.get(&row.status.group.as_deref());
        if let Some(group) = place.and_then(|place| groups.get_mut(*place)) {
            group.rows.push(row);
        }
    }
    for group in &mut groups {
        group.rows.sort_by_key(|row| row.order);
    }
    groups.sort_by_key(|group| group.order);
    groups
}

/// A number that changes when other checks are configured, or in another order.
fn names_hash(statuses: &[Status]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for status in statuses {
        (&status.name, &status.group).hash(&mut hasher);
    }
    hasher.finish()
}

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    style: &'static str,
    script: &'static str,
    base: &'a str,
    title: &'a str,
    environment: &'a str,
    overall: Overall,
    /// The value of `since` for the next update.
    token: String,
    checks: u64,
    /// Whether the page contains only some rows.
    is_partial: bool,
    groups: Vec<Group<'a>>,
    statuses: &'a [Status],
    now: SystemTime,
}

/// The checks of one group.
struct Group<'a> {
    /// `None` for checks without a group.
    name: Option<&'a str>,
    rows: Vec<Row<'a>>,
    statuses: Vec<&'a Status>,
    order: usize,
}

/// A check in the table of the page.
struct Row<'a> {
    status: &'a Status,
    /// For how long results are known, if that is less than a day.
    known_for: String,
    bars: Bars,
    order: usize,
}

/// The overall state of all checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overall {
    /// No checks are configured.
    Empty,
    /// No check is down or degraded, but some have no result yet.
    Pending,
    /// All checks are up.
    Operational,
    /// Some checks are down or degraded, but no critical one is down.
    Degraded,
    /// A critical check is down.
    Outage,
}

impl Overall {
    fn of(statuses: &[Status]) -> Self {
        let any = |is: fn(&Status) -> bool| statuses.iter().any(is);
        if statuses.is_empty() {
            Self::Empty
        } else if any(|status| status.state == State::Down && status.critical) {
            Self::Outage
        } else if any(|status| matches!(status.state, State::Down | State::Degraded)) {
            Self::Degraded
        } else if any(|status| status.state == State::Pending) {
            Self::Pending
        } else {
            Self::Operational
        }
    }

    const fn headline(self) -> &'static str {
        match self {
            Self::Empty => "No checks configured",
            Self::Pending => "Waiting for first results",
            Self::Operational => "All systems operational",
            Self::Degraded => "Degraded",
            Self::Outage => "Outage",
        }
    }

    /// The ID of the symbol, which is also the CSS class of the colour.
    const fn symbol(self) -> &'static str {
        match self {
            Self::Empty | Self::Pending => "pending",
            Self::Operational => "up",
            Self::Degraded => "degraded",
            Self::Outage => "down",
        }
    }

    /// The colour of the favicon, which is readable on light and dark browser tabs.
    const fn colour(self) -> &'static str {
        match self {
            Self::Empty | Self::Pending => "6e7781",
            Self::Operational => "1f883d",
            Self::Degraded => "bf8700",
            Self::Outage => "cf222e",
        }
    }
}

impl Page<'_> {
    /// The checks in `state`.
    fn checks_in(&self, state: State) -> Vec<&Status> {
        self.statuses
            .iter()
            .filter(|status| status.state == state)
            .collect()
    }

    const fn has_filter(&self) -> bool {
        self.statuses.len() >= MIN_FILTERED
    }

    fn has_groups(&self) -> bool {
        self.statuses.iter().any(|status| status.group.is_some())
    }
}

impl Group<'_> {
    /// The part of an ID in the page.
    fn id(&self) -> &str {
        self.name.unwrap_or("-")
    }

    /// The symbol of the worst state.
    fn symbol(&self) -> &'static str {
        let any = |state| self.statuses.iter().any(|status| status.state == state);
        [State::Down, State::Degraded, State::Pending]
            .into_iter()
            .find(|state| any(*state))
            .map_or("up", super::symbol)
    }

    fn tally(&self) -> String {
        let count = |state| self.statuses.iter().filter(|it| it.state == state).count();
        let total = self.statuses.len();
        let mut tally = format!("{total} {}", if total == 1 { "check" } else { "checks" });
        for (count, word) in [
            (count(State::Down), "down"),
            (count(State::Degraded), "degraded"),
            (count(State::Pending), "pending"),
        ] {
            if count > 0 {
                tally += &format!(", {count} {word}");
            }
        }
        tally
    }
}

impl Row<'_> {
    const fn symbol(&self) -> &'static str {
        super::symbol(self.status.state)
    }

    const fn word(&self) -> &'static str {
        super::word(self.status.state)
    }

    fn uptime(&self) -> String {
        percent(&self.status.day.summary).unwrap_or_else(missing)
    }

    fn p50(&self) -> String {
        (self.status.day.summary.latency_ms).map_or_else(missing, |it| latency(it.p50))
    }

    fn p95(&self) -> String {
        (self.status.day.summary.latency_ms).map_or_else(missing, |it| latency(it.p95))
    }
}
