//! The current state of every check, its statistics of the last day, and its state changes.

mod entries;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use entries::{Entries, Entry};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    changes::{Change, Changes},
    checks::{Check, Expiry, ProbeError},
    history::{
        Outage, Recent, Resolution, Ring, Rollup, Sample, Store, StoreState, Summary, day_before,
        milliseconds,
    },
    state::{State, Stored, StoredResult, Streaks},
    time::{optional_rfc3339, rfc3339},
};

/// The number of outages per check that are kept in memory.
const MAX_OUTAGES: usize = 20;

/// How long statistics of the last day are shown without being updated.
const MINUTE: Duration = Duration::from_secs(60);

/// All checks with their results.
#[derive(Debug)]
pub struct Board {
    entries: Entries<Record>,
    generation: AtomicU64,
    changes: Changes,
    store: Option<Store>,
}

#[derive(Debug)]
struct Record {
    state: State,
    since: SystemTime,
    streaks: Streaks,
    expiry: Option<Expiry>,
    /// The current outage, which may have begun before the service started.
    outage: Option<Outage>,
    /// The last outages, oldest first, if there is no store.
    past_outages: VecDeque<Outage>,
    last: Option<Last>,
    probes: u64,
    failures: u64,
    /// The generation of the board with the last change of what is shown.
    generation: u64,
    recent: Recent,
    /// The statistics of the last day and when they were computed, if there is no later result.
    day: Option<(SystemTime, Day)>,
    /// Whether the stored state was read. It is not replaced before, which matters if the disk is full at the start.
    restored: bool,
}

/// Statistics of the last 24 hours.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Day {
    /// The statistics.
    #[serde(flatten)]
    pub summary: Summary,
    /// When the first result of the last 24 hours was, to the minute, if results do not cover the whole time; otherwise `null`.
    #[serde(serialize_with = "optional_rfc3339")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub known_since: Option<SystemTime>,
}

/// The result of the last probe.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Last {
    /// When the probe started.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub time: SystemTime,
    /// How long the probe took, including failed probes.
    pub latency_ms: f64,
    /// Why the probe failed; `null` if it succeeded.
    pub error: Option<String>,
    /// Why the check is degraded although the probe succeeded; `null` if there is no reason.
    pub warning: Option<String>,
}

impl Last {
    /// Why the check is down or degraded.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.error.as_deref().or(self.warning.as_deref())
    }
}

/// The state of one check.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Status {
    /// The index of the check on the board, which is not its place in the configuration.
    #[serde(skip)]
    pub index: usize,
    /// The name of the check, unique in the service.
    pub name: String,
    /// The name for people: `display-name`, or the name if it is not set.
    pub display_name: String,
    /// The kind of the target, such as `http` or `dns`.
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// The `componentType` of the target in the health document.
    #[serde(skip)]
    pub component_type: &'static str,
    /// What is probed, with secrets masked; `null` if it is hidden.
    pub target: Option<String>,
    /// The group in which the status page shows the check; `null` if there is none.
    pub group: Option<String>,
    /// Whether the service reports an outage while this check is down.
    pub critical: bool,
    /// The time from the start of one probe to the start of the next.
    pub interval_seconds: f64,
    /// The state, after the configured number of consecutive successes or failures.
    pub state: State,
    /// When the check entered this state.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub since: SystemTime,
    /// The result of the last probe; `null` before the first one.
    pub last: Option<Last>,
    /// When the certificates of the target expire; `null` if it has none.
    #[serde(serialize_with = "optional_rfc3339")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub certificate_expiry: Option<SystemTime>,
    /// Statistics of the last 24 hours. Latencies have an error of at most 5 % if there are more than 1,500 results, or results of
    /// before a restart.
    pub day: Day,
    /// The number of probes since the service started.
    #[serde(skip)]
    pub probes: u64,
    /// The number of failed probes since the service started.
    #[serde(skip)]
    pub failures: u64,
    /// The generation of the board with the last result.
    #[serde(skip)]
    pub generation: u64,
}

impl Board {
    /// Creates a board without results; the names of `checks` must be unique.
    #[must_use]
    pub fn new(checks: Vec<Check>) -> Self {
        let now = SystemTime::now();
        Self {
            entries: Entries::new(checks, || Record::new(now)),
            generation: AtomicU64::new(0),
            changes: Changes::new(now),
            store: None,
        }
    }

    /// Also writes results to `store`, and restores the states and the last day from it. Blocks on disk access.
    #[must_use]
    pub fn with_store(mut self, store: Store) -> Self {
        let lists = self.entries.lists();
        self.store = Some(store);
        self.restore(lists.all(), 0);
        self
    }

    /// Replaces the checks by `checks`, whose names must be unique. A check keeps its results by its name; the state and the last day
    /// of a new one are restored from the store. Blocks on disk access.
    pub fn configure(&self, checks: Vec<Check>) {
        let before = self.entries.lists();
        let known = before.all().len();
        let now = SystemTime::now();
        let lists = self.entries.with(checks, || Record::new(now));
        if let Some(store) = &self.store {
            let new = lists.all().iter().skip(known);
            store.register(new.map(|entry| entry.check.name.clone()));
        }
        self.restore(lists.all(), known);
        for (old, new) in before.all().iter().zip(lists.all()) {
            if (&old.check.target, &old.check.tls) != (&new.check.target, &new.check.tls) {
                // The new target may have other certificates, or none.
                lock(&new.record).expiry = None;
            }
        }
        let changed: Vec<_> = (lists.all().iter().enumerate())
            .filter(|(index, entry)| {
                let before = before.all().get(*index);
                before.is_none_or(|before| !Arc::ptr_eq(before, entry))
            })
            .map(|(_, entry)| entry.clone())
            .collect();
        self.entries.replace(lists);
        for entry in changed {
            self.mark_changed(&mut lock(&entry.record));
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Starts a new generation, with which `record` is shown anew.
    fn mark_changed(&self, record: &mut Record) {
        record.generation = self.generation.fetch_add(1, Ordering::Release) + 1;
    }

    /// Restores the state and the last day of the `entries` from the index `first` on, if there is a store.
    fn restore(&self, entries: &[Arc<Entry<Record>>], first: usize) {
        let Some(store) = &self.store else {
            return;
        };
        store.visit_day(SystemTime::now(), |index, start, rollup| {
            if let Some(entry) = entries.get(index).filter(|_| index >= first) {
                lock(&entry.record).recent.restore(start, rollup);
            }
        });
        restore_states(store, entries);
    }

    /// Whether the states are those before the restart. Otherwise the disk has failed since the start.
    #[must_use]
    pub fn is_restored(&self) -> bool {
        self.store.is_some()
            && (self.entries.lists().all().iter()).all(|entry| lock(&entry.record).restored)
    }

    /// The store on disk, if one is configured.
    #[must_use]
    pub const fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Where the history is stored.
    #[must_use]
    pub fn store_state(&self) -> StoreState {
        self.store.as_ref().map_or(StoreState::Memory, Store::state)
    }

    /// The checks with their indices, in the order of the configuration.
    #[must_use]
    pub fn checks(&self) -> Vec<(usize, Arc<Check>)> {
        let entries = self.entries.configured().into_iter();
        entries
            .map(|(index, entry)| (index, entry.check.clone()))
            .collect()
    }

    /// The index of the check called `name`. It stays the index of this name when the configuration is reloaded.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        self.entries.find(name)
    }

    /// A number that grows with every change of the board, so that renderings can be cached.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The log of state changes.
    #[must_use]
    pub const fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Records when the certificates expire that the target of the check at `index` presented. Call it before recording the result
    /// of the same probe.
    pub fn record_expiry(&self, index: usize, expiry: Expiry) {
        if let Some(entry) = self.entries.get(index) {
            lock(&entry.record).expiry = Some(expiry);
        }
    }

    /// Records the result of a probe of the check at `index` that started at `at`.
    pub fn record(
        &self,
        index: usize,
        at: SystemTime,
        took: Duration,
        result: Result<(), ProbeError>,
    ) {
        let Some(entry) = self.entries.get(index) else {
            return;
        };
        let check = &entry.check;
        let mut record = lock(&entry.record);
        // Before the change is sent: a client that fetches the page because of it must not get the old rendering.
        self.mark_changed(&mut record);
        let sample = Sample::new(at, result.is_ok().then_some(took));
        record.recent.push(sample);
        record.day = None;
        record.probes += 1;
        record.failures += u64::from(result.is_err());
        let warning = result
            .is_ok()
            .then(|| check.warning(at, took, record.expiry.as_ref()))
            .flatten();
        let observed = match (&result, &warning) {
            (Err(_), _) => State::Down,
            (Ok(()), Some(_)) => State::Degraded,
            (Ok(()), None) => State::Up,
        };
        let error = result.err().map(|error| error.to_string());
        record.last = Some(Last {
            time: at,
            latency_ms: milliseconds(took),
            error: error.clone(),
            warning: warning.clone(),
        });
        record.streaks.add(observed);
        let state = (record.streaks).next(record.state, check.failures, check.successes);
        if state != record.state {
            let change = Change {
                check: check.name.clone(),
                display_name: check.display_name().to_owned(),
                from: record.state,
                to: state,
                time: at,
                error,
                warning,
            };
            record.state = state;
            record.since = at;
            self.changes.add(&change);
            self.record_outage(index, &mut record, change);
        }
        if let Some(store) = &self.store {
            match record.to_json().filter(|_| record.restored) {
                Some(state) => store.add_with_state(index, sample, state),
                None => store.add(index, sample),
            }
        }
    }

    /// Reads the last day from the store again, because the clock has jumped, so that another day is the last one, or because the
    /// disk has failed since the start. Blocks on disk access.
    pub fn reload(&self, now: SystemTime) {
        let Some(store) = &self.store else {
            return;
        };
        let lists = self.entries.lists();
        restore_states(store, lists.all());
        for (index, entry) in lists.all().iter().enumerate() {
            loop {
                let before = lock(&entry.record).probes;
                let Some(minutes) = store.read(index, Resolution::Minute, day_before(now)) else {
                    return;
                };
                let mut record = lock(&entry.record);
                // Otherwise there is a result that may not have been read.
                if record.probes == before {
                    record.recent.replace_minutes(&minutes);
                    record.day = None;
                    self.mark_changed(&mut record);
                    break;
                }
            }
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The roll-ups of the check at `index` from the one that starts at `from` to the one that contains `to`: from the disk if
    /// there is one that works, otherwise from memory. Blocks on disk access. Returns `None` if there is no such check.
    pub(crate) fn rollups(
        &self,
        index: usize,
        resolution: Resolution,
        (from, to): (u32, u32),
    ) -> Option<BTreeMap<u32, Rollup>> {
        let entry = self.entries.get(index)?;
        let stored = self
            .store
            .as_ref()
            .and_then(|store| store.read(index, resolution, (from, to)));
        Some(stored.unwrap_or_else(|| lock(&entry.record).recent.read(resolution, (from, to))))
    }

    /// The time of the first result in a window that starts at `from`, if results of the check at `index` do not cover the window.
    pub(crate) fn known_since(
        &self,
        index: usize,
        from: u32,
        first: Option<u32>,
    ) -> Option<SystemTime> {
        known_since(&self.entries.get(index)?.check, from, first)
    }

    /// Records that an outage has begun or ended with `change`. An outage continues if the service was restarted meanwhile.
    fn record_outage(&self, index: usize, record: &mut Record, change: Change) {
        let outage = match (change.to, record.outage.take()) {
            (State::Down, None) => Outage {
                start: change.time,
                end: None,
                error: change.error.unwrap_or_default(),
            },
            (State::Up | State::Degraded, Some(outage)) => Outage {
                end: Some(change.time),
                ..outage
            },
            (_, unchanged) => {
                record.outage = unchanged;
                return;
            }
        };
        if outage.end.is_none() {
            record.outage = Some(outage.clone());
        }
        if let Some(store) = &self.store {
            store.add_outage(index, outage);
        } else if outage.end.is_some() {
            if record.past_outages.len() == MAX_OUTAGES {
                record.past_outages.pop_front();
            }
            record.past_outages.push_back(outage);
        }
    }

    /// The known outages of the check at `index`, newest first. Blocks on disk access.
    #[must_use]
    pub fn outages(&self, index: usize) -> Vec<Outage> {
        let Some(entry) = self.entries.get(index) else {
            return Vec::new();
        };
        let (current, past) = {
            let record = lock(&entry.record);
            (record.outage.clone(), record.past_outages.clone())
        };
        let stored = self.store.as_ref().and_then(|store| store.outages(index));
        let mut outages = stored.unwrap_or_else(|| past.into_iter().chain(current).collect());
        outages.reverse();
        outages
    }

    /// The status of every check, in the order of the configuration.
    #[must_use]
    pub fn statuses(&self) -> Vec<Status> {
        let now = SystemTime::now();
        let entries = self.entries.configured();
        entries
            .iter()
            .map(|(index, entry)| entry.status(*index, now))
            .collect()
    }

    /// The status of the check at `index`.
    #[must_use]
    pub fn status(&self, index: usize) -> Option<Status> {
        let entry = self.entries.get(index)?;
        Some(entry.status(index, SystemTime::now()))
    }

    /// Calls `look` with the newest samples of the check at `index`.
    pub fn with_samples<T>(&self, index: usize, look: impl FnOnce(&Ring) -> T) -> Option<T> {
        self.entries
            .get(index)
            .map(|entry| look(lock(&entry.record).recent.ring()))
    }
}

impl Record {
    /// A record without results.
    fn new(now: SystemTime) -> Self {
        Self {
            state: State::Pending,
            since: now,
            streaks: Streaks::default(),
            expiry: None,
            outage: None,
            past_outages: VecDeque::new(),
            last: None,
            probes: 0,
            failures: 0,
            generation: 0,
            recent: Recent::default(),
            day: None,
            restored: false,
        }
    }

    /// The statistics of the last day.
    fn day(&mut self, now: SystemTime, check: &Check) -> Day {
        let age = |computed| now.duration_since(computed).ok();
        if let Some((computed, day)) = self.day
            && age(computed).is_some_and(|age| age < MINUTE)
        {
            return day;
        }
        let (summary, first) = self.recent.day(now);
        let day = Day {
            summary,
            known_since: known_since(check, day_before(now).0, first),
        };
        self.day = Some((now, day));
        day
    }

    /// Continues with the state before a restart, unless it has changed since then.
    fn restore(&mut self, stored: Stored) {
        let state = stored.state();
        if self.state == State::Pending {
            self.streaks.follow(stored.streaks, self.probes);
            self.state = state;
            self.since = stored.since;
        } else if self.state == state {
            self.since = stored.since;
        }
        let last = stored.last.map(|last| Last {
            time: last.time,
            latency_ms: last.latency_ms,
            error: last.error,
            warning: last.warning,
        });
        self.last = self.last.take().or(last);
    }

    /// Continues with the `last` stored outage. Returns it if it has to be corrected, because only one of state and outage was
    /// written before a kill, or because an earlier version stored none.
    fn restore_outage(&mut self, last: Option<Outage>) -> Option<Outage> {
        let open = last.filter(|outage| outage.end.is_none());
        match (self.state, open) {
            (State::Down, None) => {
                let error = self.last.as_ref().and_then(|last| last.error.clone());
                self.outage = Some(Outage {
                    start: self.since,
                    end: None,
                    error: error.unwrap_or_default(),
                });
                self.outage.clone()
            }
            (State::Up | State::Degraded, Some(open)) => {
                self.outage = None;
                Some(Outage {
                    end: Some(self.since.max(open.start)),
                    ..open
                })
            }
            (_, open) => {
                self.outage = open;
                None
            }
        }
    }

    /// The state to restore after a restart.
    fn to_json(&self) -> Option<String> {
        let last = self.last.clone().map(|last| StoredResult {
            time: last.time,
            latency_ms: last.latency_ms,
            error: last.error,
            warning: last.warning,
        });
        Stored::to_json(self.state, self.since, self.streaks, last)
    }
}

/// Continues with the stored states of `entries`, which begin at the index 0, once they can be read.
fn restore_states(store: &Store, entries: &[Arc<Entry<Record>>]) {
    if entries.iter().all(|entry| lock(&entry.record).restored) {
        return;
    }
    let Some(states) = store.states() else {
        return;
    };
    for (index, (entry, json)) in entries.iter().zip(states).enumerate() {
        let outage = store.outages(index).and_then(|mut outages| outages.pop());
        let mut record = lock(&entry.record);
        if std::mem::replace(&mut record.restored, true) {
            continue;
        }
        match json.as_deref().map(serde_json::from_str) {
            Some(Ok(stored)) => record.restore(stored),
            Some(Err(error)) => {
                tracing::warn!(check = entry.check.name, %error, "cannot restore the state");
            }
            None => {}
        }
        if let Some(outage) = record.restore_outage(outage) {
            store.add_outage(index, outage);
        }
    }
}

impl Entry<Record> {
    fn status(&self, index: usize, now: SystemTime) -> Status {
        let mut record = lock(&self.record);
        let day = record.day(now, &self.check);
        Status {
            index,
            name: self.check.name.clone(),
            display_name: self.check.display_name().to_owned(),
            kind: self.check.target.kind().name(),
            component_type: self.check.target.component_type(),
            target: (!self.check.hide_target).then(|| self.check.target.to_string()),
            group: self.check.group.clone(),
            critical: self.check.critical,
            interval_seconds: self.check.interval.as_secs_f64(),
            state: record.state,
            since: record.since,
            last: record.last.clone(),
            certificate_expiry: record.expiry.as_ref().map(|expiry| expiry.time),
            day,
            probes: record.probes,
            failures: record.failures,
            generation: record.generation,
        }
    }
}

/// The time of the first result in a window that starts at `from`, if results of `check` do not cover the window. Times are in
/// seconds since the epoch.
fn known_since(check: &Check, from: u32, first: Option<u32>) -> Option<SystemTime> {
    let time = |seconds: u32| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into());
    let first = time(first?);
    // Until then, a check that was always probed has a result.
    let expected = check
        .interval
        .saturating_add(check.jitter)
        .saturating_add(MINUTE);
    (first > time(from).checked_add(expected)?).then_some(first)
}

/// Ignores poisoning, because no code panics while the data is inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::checks::{Target, TlsOptions, tcp};

    fn check(failures: u32, successes: u32) -> Check {
        Check {
            name: "cache".into(),
            display_name: None,
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
            degraded_above: None,
            tls: TlsOptions::default(),
            group: None,
            hide_target: false,
        }
    }

    /// Records these results: `+` is a success, `-` a failure.
    fn record(board: &Board, results: &str) {
        for result in results.chars() {
            let result = match result {
                '+' => Ok(()),
                _ => Err(ProbeError("refused".into())),
            };
            board.record(0, SystemTime::now(), Duration::from_millis(2), result);
        }
    }

    #[test]
    fn status_reflects_the_recorded_results() {
        let board = Board::new(vec![check(2, 1)]);
        assert_eq!(board.status(0).unwrap().day.summary.uptime, None);
        record(&board, "++-+");
        let status = board.status(0).unwrap();
        assert_eq!((status.probes, status.failures), (4, 1));
        assert_eq!(status.day.summary.uptime, Some(0.75));
        assert_eq!(status.day.summary.latency_ms.unwrap().p50, 2.0);
        assert_eq!(status.last.unwrap().error, None);
        record(&board, "-");
        assert_eq!(
            board.status(0).unwrap().last.unwrap().error.as_deref(),
            Some("refused")
        );
    }

    #[test]
    fn sends_each_change_once_and_replays_it_after_a_reconnect() {
        let board = Board::new(vec![check(1, 1)]);
        let (missed, mut receiver) = board.changes().listen(None);
        assert!(missed.is_empty());
        record(&board, "++-");
        let first = receiver.try_recv().unwrap();
        assert_eq!(first.number, 1);
        assert!(
            first.data.contains(r#""from":"pending","to":"up""#),
            "{}",
            first.data
        );
        assert_eq!(receiver.try_recv().unwrap().number, 2);
        assert!(receiver.try_recv().is_err());

        let replay = |last: &str| {
            let (missed, _) = board.changes().listen(Some(last));
            missed.iter().map(|event| event.number).collect::<Vec<_>>()
        };
        assert_eq!(replay(&board.changes().id(0)), [1, 2]);
        assert_eq!(replay(&board.changes().id(1)), [2]);
        for unknown in ["1-1", "", "1", "-", "x-y", "18446744073709551616-0"] {
            assert_eq!(replay(unknown), [0; 0], "{unknown}");
        }
    }

    #[test]
    fn generation_grows_with_each_result() {
        let board = Board::new(vec![check(1, 1)]);
        let before = board.generation();
        record(&board, "+");
        assert!(board.generation() > before);
        board.record(7, SystemTime::now(), Duration::ZERO, Ok(()));
        assert_eq!(board.status(7).map(|it| it.name), None);
    }

    #[test]
    fn reload_forgets_the_certificates_of_a_target_that_has_changed() {
        let board = Board::new(vec![check(1, 1)]);
        let time = SystemTime::now();
        board.record_expiry(0, Expiry { time, issuer: None });
        record(&board, "-");
        for (port, expiry) in [(1, Some(time)), (2, None)] {
            let mut check = check(2, 2);
            check.target = Target::Tcp(tcp::Target {
                host: "127.0.0.1".into(),
                port,
            });
            board.configure(vec![check]);
            let status = board.status(0).unwrap();
            assert_eq!(status.certificate_expiry, expiry);
            assert_eq!(status.state, State::Down);
        }
    }
}
