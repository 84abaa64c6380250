//! The board: what is known of every check, now and of the last day, and where it changed.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    changes::{Change, Changes},
    checks::{Check, Trouble},
    history::{Ring, Sample, Store, StoreState, Summary, milliseconds},
    state::State,
    time::rfc3339,
};

/// The window of the figures that are shown beside a state.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Every check of the service.
#[derive(Debug)]
pub struct Board {
    entries: Box<[Entry]>,
    names: HashMap<String, usize>,
    generation: AtomicU64,
    changes: Changes,
    store: Option<Store>,
}

#[derive(Debug)]
struct Entry {
    check: Check,
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    state: State,
    since: SystemTime,
    /// Answers in a row that speak against `state`.
    against: u32,
    last: Option<Last>,
    asked: u64,
    failed: u64,
    ring: Ring,
    day: Summary,
}

/// The newest answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Last {
    /// When it was asked for.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub time: SystemTime,
    /// How long it took, or how long it was waited for.
    pub latency_ms: f64,
    /// Why it was not as expected.
    pub error: Option<String>,
}

/// What the board says of one check.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    /// The check's name.
    pub name: String,
    /// The kind of its target.
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// The `componentType` of the target in the health document.
    #[serde(skip)]
    pub component_type: &'static str,
    /// What is asked; without secrets.
    pub target: String,
    /// Whether its loss is an outage.
    pub critical: bool,
    /// From one question to the next.
    pub interval_seconds: f64,
    /// What the answers say.
    pub state: State,
    /// Since when they say so.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub since: SystemTime,
    /// The newest answer.
    pub last: Option<Last>,
    /// How it did in the last 24 hours, as far as is known.
    pub day: Summary,
    /// How often it was asked since the service started.
    #[serde(skip)]
    pub asked: u64,
    /// How many of these answers were not as expected.
    #[serde(skip)]
    pub failed: u64,
}

impl Board {
    /// A board of checks that nothing is known of; their names differ.
    #[must_use]
    pub fn new(checks: Vec<Check>) -> Self {
        let names = checks
            .iter()
            .enumerate()
            .map(|(index, check)| (check.name.clone(), index))
            .collect();
        let now = SystemTime::now();
        Self {
            entries: checks
                .into_iter()
                .map(|check| Entry {
                    check,
                    record: Mutex::new(Record {
                        state: State::Pending,
                        since: now,
                        against: 0,
                        last: None,
                        asked: 0,
                        failed: 0,
                        day: Ring::default().summary(now),
                        ring: Ring::default(),
                    }),
                })
                .collect(),
            names,
            generation: AtomicU64::new(0),
            changes: Changes::new(now),
            store: None,
        }
    }

    /// The board with its history on the disk, too; what `store` knows of the last day is known again. Waits for the disk.
    #[must_use]
    pub fn with_store(mut self, store: Store) -> Self {
        let day = day_before(SystemTime::now());
        for (entry, samples) in self.entries.iter().zip(store.newest()) {
            let mut record = lock(&entry.record);
            record.ring.restore(samples);
            record.day = record.ring.summary(day);
        }
        self.store = Some(store);
        self
    }

    /// What keeps the history on the disk, where something does.
    #[must_use]
    pub const fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Where the history is kept.
    #[must_use]
    pub fn store_state(&self) -> StoreState {
        self.store.as_ref().map_or(StoreState::Memory, Store::state)
    }

    /// The checks, in the order of the configuration.
    pub fn checks(&self) -> impl ExactSizeIterator<Item = &Check> {
        self.entries.iter().map(|entry| &entry.check)
    }

    /// The place of the check of this name in that order.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Grows whenever something that the board says is another; a rendering is good as long as it stays.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Where states changed.
    #[must_use]
    pub const fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Notes what the check at `index` said when it was asked at `at`, and how long that took.
    pub fn record(
        &self,
        index: usize,
        at: SystemTime,
        took: Duration,
        answer: Result<(), Trouble>,
    ) {
        let Some(Entry { check, record }) = self.entries.get(index) else {
            return;
        };
        let mut record = lock(record);
        // First: whoever is told of the change finds it.
        self.generation.fetch_add(1, Ordering::Release);
        let sample = Sample::new(at, answer.is_ok().then_some(took));
        record.ring.push(sample);
        record.day = record.ring.summary(day_before(at));
        if let Some(store) = &self.store {
            store.add(index, sample);
        }
        record.asked += 1;
        record.failed += u64::from(answer.is_err());
        let (said, enough) = match answer {
            Ok(()) => (State::Up, check.successes),
            Err(_) => (State::Down, check.failures),
        };
        let error = answer.err().map(|trouble| trouble.to_string());
        record.last = Some(Last {
            time: at,
            latency_ms: milliseconds(took),
            error: error.clone(),
        });
        record.against = if said == record.state {
            0
        } else {
            record.against + 1
        };
        // The first success is believed at once: there is nothing that it could flap against.
        let first = record.state == State::Pending && said == State::Up;
        if said != record.state && (first || record.against >= enough.get()) {
            let change = Change {
                check: check.name.clone(),
                from: record.state,
                to: said,
                time: at,
                error,
            };
            record.state = said;
            record.since = at;
            record.against = 0;
            self.changes.add(&change);
        }
    }

    /// What is known of every check, in the order of the configuration.
    #[must_use]
    pub fn statuses(&self) -> Vec<Status> {
        self.entries.iter().map(Entry::status).collect()
    }

    /// What is known of the check at `index`.
    #[must_use]
    pub fn status(&self, index: usize) -> Option<Status> {
        self.entries.get(index).map(Entry::status)
    }

    /// Gives the newest samples of the check at `index` to `look`.
    pub fn with_samples<T>(&self, index: usize, look: impl FnOnce(&Ring) -> T) -> Option<T> {
        self.entries
            .get(index)
            .map(|entry| look(&lock(&entry.record).ring))
    }
}

impl Entry {
    fn status(&self) -> Status {
        let record = lock(&self.record);
        Status {
            name: self.check.name.clone(),
            kind: self.check.target.kind().name(),
            component_type: self.check.target.component_type(),
            target: self.check.target.to_string(),
            critical: self.check.critical,
            interval_seconds: self.check.interval.as_secs_f64(),
            state: record.state,
            since: record.since,
            last: record.last.clone(),
            day: record.day,
            asked: record.asked,
            failed: record.failed,
        }
    }
}

fn day_before(time: SystemTime) -> SystemTime {
    time.checked_sub(DAY).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What a panic elsewhere left behind is whole: nothing panics while it is changed half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::checks::{Target, tcp};

    fn check(failures: u32, successes: u32) -> Check {
        Check {
            name: "cache".into(),
            target: Target::Tcp(tcp::Target {
                host: "127.0.0.1".into(),
                port: 1,
            }),
            critical: true,
            interval: Duration::from_secs(10),
            jitter: Duration::ZERO,
            timeout: Duration::from_secs(1),
            failures: NonZeroU32::new(failures).unwrap(),
            successes: NonZeroU32::new(successes).unwrap(),
        }
    }

    /// The states after each of these answers: `+` as expected, `-` not.
    fn states(board: &Board, answers: &str) -> String {
        let mut states = String::new();
        for answer in answers.chars() {
            let answer = match answer {
                '+' => Ok(()),
                _ => Err(Trouble("refused".into())),
            };
            board.record(0, SystemTime::now(), Duration::from_millis(2), answer);
            states.push(match board.status(0).unwrap().state {
                State::Pending => 'p',
                State::Up => 'u',
                State::Down => 'd',
            });
        }
        states
    }

    #[test]
    fn a_state_changes_only_after_as_many_answers_in_a_row_as_its_threshold_says() {
        for (failures, successes, answers, expected) in [
            (1, 1, "+-+-", "udud"),
            (3, 2, "+--+---+-++", "uuuuuuddddu"),
            // The first success is believed, the first failure is not.
            (3, 2, "--+", "ppu"),
            (3, 2, "---+-++", "ppddddu"),
        ] {
            let board = Board::new(vec![check(failures, successes)]);
            assert_eq!(
                states(&board, answers),
                expected,
                "{failures} {successes} {answers}"
            );
        }
    }

    #[test]
    fn what_is_said_of_a_check_is_what_its_answers_were() {
        let board = Board::new(vec![check(2, 1)]);
        assert_eq!(board.status(0).unwrap().day.uptime, None);
        states(&board, "++-+");
        let status = board.status(0).unwrap();
        assert_eq!((status.asked, status.failed), (4, 1));
        assert_eq!(status.day.uptime, Some(0.75));
        assert_eq!(status.day.latency_ms.unwrap().p50, 2.0);
        assert_eq!(status.last.unwrap().error, None);
        states(&board, "-");
        assert_eq!(
            board.status(0).unwrap().last.unwrap().error.as_deref(),
            Some("refused")
        );
    }

    #[test]
    fn each_change_is_told_once_and_kept_for_those_who_come_back() {
        let board = Board::new(vec![check(1, 1)]);
        let (missed, mut coming) = board.changes().listen(None);
        assert!(missed.is_empty());
        states(&board, "++-");
        let first = coming.try_recv().unwrap();
        assert_eq!(first.number, 1);
        assert!(
            first.data.contains(r#""from":"pending","to":"up""#),
            "{}",
            first.data
        );
        assert_eq!(coming.try_recv().unwrap().number, 2);
        assert!(coming.try_recv().is_err());

        let back = |last: &str| {
            let (missed, _) = board.changes().listen(Some(last));
            missed.iter().map(|event| event.number).collect::<Vec<_>>()
        };
        assert_eq!(back(&board.changes().id(0)), [1, 2]);
        assert_eq!(back(&board.changes().id(1)), [2]);
        for elsewhere in ["1-1", "", "1", "-", "x-y", "18446744073709551616-0"] {
            assert_eq!(back(elsewhere), [0; 0], "{elsewhere}");
        }
    }

    #[test]
    fn the_generation_grows_with_each_answer() {
        let board = Board::new(vec![check(1, 1)]);
        let before = board.generation();
        states(&board, "+");
        assert!(board.generation() > before);
        board.record(7, SystemTime::now(), Duration::ZERO, Ok(()));
        assert_eq!(board.status(7).map(|it| it.name), None);
    }
}
