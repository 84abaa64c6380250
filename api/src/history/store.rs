//! Stores roll-ups on disk: buffers samples in memory, and writes them on a separate thread.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{
    clocks::Clocks,
    disk::Disk,
    fault::Fault,
    outage::{self, Outage},
    rollup::{Resolution, Rollup},
    sample::Sample,
    waiting::Waiting,
};

/// The time between writes, and so the maximum data loss after a kill or power failure.
const INTERVAL: Duration = Duration::from_secs(10);

/// The maximum number of buffered outages while the disk fails.
const MAX_OUTAGES: usize = 1024;

/// How long to wait for a lock that is held by a process that is shutting down.
const HANDOVER: Duration = Duration::from_secs(1);

/// How long the wall clock must agree with the monotonic clock before old roll-ups are deleted, and the time between deletions.
/// Devices without a battery start with a wrong clock, and correct it within a minute or two.
const STEADY: Duration = Duration::from_secs(10 * 60);

/// How long a shutdown waits for the disk.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the history is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreState {
    /// In memory only, because no directory is configured.
    Memory,
    /// In memory and on disk.
    Disk,
    /// In memory only for now, because writing fails; it is retried.
    Failing {
        /// When writing started to fail.
        since: SystemTime,
        /// The first error.
        reason: String,
    },
}

/// The directory of the history is locked by another process or not writable.
#[derive(Debug, thiserror::Error)]
#[error("cannot store the history in {}: {reason}", directory.display())]
pub struct OpenError {
    /// The configured directory.
    pub directory: PathBuf,
    /// Why the directory cannot be used.
    pub reason: String,
}

/// The history on disk. Methods that block on disk access say so.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    /// Requests writes; dropping the sender ends the thread.
    thread: Option<Sender<Sender<bool>>>,
    /// Disconnects when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

struct Shared {
    directory: PathBuf,
    /// The checks, by index. Names are only added.
    names: RwLock<Vec<String>>,
    /// A random number that identifies this process, because sample numbers restart with each process.
    run: u64,
    waiting: Mutex<Waiting>,
    /// Outages that are not written yet, each with the index of its check.
    outages: Mutex<Vec<(usize, Outage)>>,
    disk: RwLock<Option<Disk>>,
    /// Set when reading failed, so that the file is reopened.
    suspect: AtomicBool,
    failing: Mutex<Option<(SystemTime, String)>>,
    /// When old roll-ups were last deleted, or when the clock last jumped.
    steady: Mutex<Clocks>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store of the checks `names` in `directory`, which is created if missing, and starts the writing thread.
    ///
    /// # Errors
    /// When the directory is locked by another process or not writable. A full disk is not an error, because writing is retried.
    pub fn open(directory: &Path, names: Vec<String>) -> Result<Self, OpenError> {
        let problem = |reason: String| OpenError {
            directory: directory.to_owned(),
            reason,
        };
        let shared = Arc::new(Shared::new(directory, names));
        let start = Instant::now();
        loop {
            match shared.reopen() {
                Err(Fault::Locked) if start.elapsed() < HANDOVER => {
                    thread::sleep(HANDOVER / 20);
                    continue;
                }
                Err(fault) if fault.is_disk_full() => shared.fail(&fault),
                opened => opened.map_err(|fault| problem(fault.to_string()))?,
            }
            break;
        }
        let (requests, requested) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let writer = shared.clone();
        thread::Builder::new()
            .name("history".into())
            .spawn(move || {
                writer.write_until_dropped(&requested);
                drop(end);
            })
            .map_err(|error| problem(error.to_string()))?;
        Ok(Self {
            shared,
            thread: Some(requests),
            ended: Mutex::new(ended),
        })
    }

    /// Adds checks; their indices follow those of the known ones.
    pub(crate) fn register(&self, names: impl Iterator<Item = String>) {
        let known = self.shared.names.write();
        known.unwrap_or_else(PoisonError::into_inner).extend(names);
    }

    /// Buffers a new sample of the check at `index`.
    pub fn add(&self, index: usize, sample: Sample) {
        self.buffer(index, sample, None);
    }

    /// Buffers a new sample of the check at `index`, and the state of the check after it as JSON; both are written together.
    pub(crate) fn add_with_state(&self, index: usize, sample: Sample, state: String) {
        self.buffer(index, sample, Some(state));
    }

    fn buffer(&self, index: usize, sample: Sample, state: Option<String>) {
        if let Ok(index) = u32::try_from(index) {
            lock(&self.shared.waiting).add(index, sample, state);
        }
    }

    /// Buffers an outage of the check at `index`; it replaces one with the same start.
    pub(crate) fn add_outage(&self, index: usize, outage: Outage) {
        let mut outages = lock(&self.shared.outages);
        // Only while the disk fails.
        if outages.len() == MAX_OUTAGES {
            outages.remove(0);
        }
        outages.push((index, outage));
    }

    /// The outages of the check at `index`, oldest first; `None` if the disk fails. Blocks on disk access.
    pub(crate) fn outages(&self, index: usize) -> Option<Vec<Outage>> {
        let name = self.shared.names().get(index)?.clone();
        let waiting = lock(&self.shared.outages).clone();
        let stored = self.shared.try_read(|disk| disk.outages(&name))?;
        let waiting = waiting.into_iter().filter(|(of, _)| *of == index);
        let all = stored.into_iter().chain(waiting.map(|(_, outage)| outage));
        let by_start: BTreeMap<_, _> = all
            .map(|outage| (outage::seconds(outage.start), outage))
            .collect();
        Some(by_start.into_values().collect())
    }

    /// The current state; never [`StoreState::Memory`].
    #[must_use]
    pub fn state(&self) -> StoreState {
        match &*lock(&self.shared.failing) {
            None => StoreState::Disk,
            Some((since, reason)) => StoreState::Failing {
                since: *since,
                reason: reason.clone(),
            },
        }
    }

    /// Writes the buffered samples, and returns whether that succeeded. Blocks on disk access for at most five seconds.
    pub fn flush(&self) -> bool {
        let (done, written) = mpsc::channel();
        self.thread
            .as_ref()
            .is_some_and(|thread| thread.send(done).is_ok())
            && written.recv_timeout(SHUTDOWN_TIMEOUT).unwrap_or(false)
    }

    /// The roll-ups of the check at `index`, from the one that starts at `from` to the one that contains `to`, with the samples
    /// that are not written yet. Returns `None` if the disk fails. Blocks on disk access.
    pub(crate) fn read(
        &self,
        index: usize,
        resolution: Resolution,
        (from, to): (u32, u32),
    ) -> Option<BTreeMap<u32, Rollup>> {
        let name = &self.shared.names().get(index)?.clone();
        // Before reading the disk. Samples that are written in between are in both, and are filtered by their number.
        let waiting: Vec<(u64, Sample)> = lock(&self.shared.waiting)
            .numbered()
            .filter(|(_, of, sample)| {
                *of as usize == index && (from..=to).contains(&sample.seconds)
            })
            .map(|(number, _, sample)| (number, sample))
            .collect();
        let (mut rollups, written) = self
            .shared
            .try_read(|disk| disk.read(name, resolution, (from, to), self.shared.run))?;
        let unwritten = waiting.into_iter().filter(|(number, _)| *number > written);
        resolution.group(unwritten.map(|(_, sample)| sample), &mut rollups);
        Some(rollups)
    }

    /// The stored state of each check as JSON, if there is one. Returns `None` if the disk fails. Blocks on disk access.
    pub(crate) fn states(&self) -> Option<Vec<Option<String>>> {
        // Copied, so that a slow disk does not hold the lock.
        let names = self.shared.names().clone();
        self.shared.try_read(|disk| disk.states(&names))
    }

    /// Calls `visit` with each minute of the day before `now` that is on disk, newest first: the index of the check, the start of
    /// the minute, and the roll-up. Blocks on disk access.
    pub(crate) fn visit_day(&self, now: SystemTime, visit: impl FnMut(usize, u32, &Rollup)) {
        let names = self.shared.names().clone();
        self.shared
            .try_read(|disk| disk.visit_day(&names, now, visit));
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.thread = None;
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(SHUTDOWN_TIMEOUT);
    }
}

impl Shared {
    /// The shared state before the file is opened.
    fn new(directory: &Path, names: Vec<String>) -> Self {
        Self {
            directory: directory.to_owned(),
            names: RwLock::new(names),
            run: fastrand::u64(..),
            waiting: Mutex::default(),
            outages: Mutex::default(),
            disk: RwLock::default(),
            suspect: AtomicBool::new(false),
            failing: Mutex::default(),
            steady: Mutex::new(Clocks::now()),
        }
    }

    fn names(&self) -> RwLockReadGuard<'_, Vec<String>> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of the thread: writes periodically, on request, and finally when the sender is dropped.
    fn write_until_dropped(&self, requests: &Receiver<Sender<bool>>) {
        loop {
            let request = requests.recv_timeout(INTERVAL);
            let written = self.write(Clocks::now());
            match request {
                // Sending fails if the caller has stopped waiting.
                Ok(done) => drop(done.send(written)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        close(&mut self.disk.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes the buffered samples, and returns whether that succeeded.
    fn write(&self, now: Clocks) -> bool {
        let written = self.try_write(now).inspect_err(|fault| {
            self.fail(fault);
            // After an error redb rejects all operations, and the transaction may have been written nevertheless.
            if let Err(fault) = self.reopen() {
                self.fail(&fault);
            }
        });
        written.is_ok()
    }

    fn try_write(&self, now: Clocks) -> Result<(), Fault> {
        let closed = self
            .disk
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none();
        if self.suspect.swap(false, Ordering::Relaxed) || closed {
            self.reopen()?;
        }
        let (waiting, states): (Vec<_>, _) = {
            let waiting = lock(&self.waiting);
            (waiting.numbered().collect(), waiting.states())
        };
        let failing = lock(&self.failing).is_some();
        let number = match waiting.last() {
            Some((number, ..)) => *number,
            // Writes an empty transaction to find out whether the disk works again.
            None if failing => lock(&self.waiting).before,
            None => return Ok(()),
        };
        // Copied, so that a slow disk does not hold the lock.
        let names = self.names().clone();
        let name = |index: u32| names.get(index as usize).map(String::as_str);
        let samples = waiting
            .iter()
            .filter_map(|(_, index, sample)| Some((name(*index)?, *sample)));
        let states = states
            .iter()
            .filter_map(|(index, state)| Some((name(*index)?, (state.seconds, &*state.json))));
        let disk = self.disk.read().unwrap_or_else(PoisonError::into_inner);
        let Some(disk) = &*disk else {
            return Ok(());
        };
        disk.write(samples, states, (self.run, number))?;
        self.write_outages(disk, &names)?;
        let mut waiting = lock(&self.waiting);
        waiting.forget(number);
        let lost = std::mem::take(&mut waiting.lost);
        drop(waiting);
        if lock(&self.failing).take().is_some() {
            tracing::info!(lost, "writing the history to disk again");
        }
        if self.may_prune(now) {
            disk.prune(now.wall)?;
        }
        Ok(())
    }

    /// Writes the buffered outages, and keeps them if that fails.
    fn write_outages(&self, disk: &Disk, names: &[String]) -> Result<(), Fault> {
        let outages = lock(&self.outages).clone();
        if outages.is_empty() {
            return Ok(());
        }
        disk.write_outages(
            outages
                .iter()
                .filter_map(|(index, outage)| Some((names.get(*index)?.as_str(), outage))),
        )?;
        // Others may have been added since.
        lock(&self.outages).retain(|added| !outages.contains(added));
        Ok(())
    }

    /// Whether old roll-ups can be deleted now, because the clock has not jumped for [`STEADY`].
    fn may_prune(&self, now: Clocks) -> bool {
        let mut steady = lock(&self.steady);
        let elapsed = now.since(*steady);
        if elapsed.is_some_and(|elapsed| elapsed < STEADY) {
            return false;
        }
        *steady = now;
        elapsed.is_some()
    }

    /// Closes the file and opens it again.
    fn reopen(&self) -> Result<(), Fault> {
        let mut disk = self.disk.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first, because the file is locked.
        close(&mut disk);
        let opened = Disk::open(&self.directory)?;
        let written = opened.written(self.run)?;
        *disk = Some(opened);
        lock(&self.waiting).forget(written);
        Ok(())
    }

    /// Records that writing fails, and logs only the first error.
    fn fail(&self, fault: &Fault) {
        let mut failing = lock(&self.failing);
        if failing.is_none() {
            let reason = fault.to_string();
            tracing::error!(
                directory = %self.directory.display(),
                reason,
                "cannot write the history to disk, keeping it in memory until writing succeeds"
            );
            *failing = Some((SystemTime::now(), reason));
        }
    }

    /// Reads from the disk; returns `None` if it fails.
    fn try_read<T>(&self, look: impl FnOnce(&Disk) -> Result<T, Fault>) -> Option<T> {
        let disk = self.disk.read().unwrap_or_else(PoisonError::into_inner);
        look(disk.as_ref()?)
            .inspect_err(|fault| {
                self.suspect.store(true, Ordering::Relaxed);
                self.fail(fault);
            })
            .ok()
    }
}

fn close(disk: &mut Option<Disk>) {
    // Errors were already reported when writing failed.
    let _ = disk.take().map(Disk::close);
}

/// Ignores poisoning, because no code panics while the data is inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::btree_map::Entry;

    use tempfile::tempdir;

    use super::*;
    use crate::history::waiting::MAX_PENDING;

    fn open(directory: &Path) -> Store {
        Store::open(directory, vec!["cache".into(), "database".into()]).unwrap()
    }

    /// The number of samples of the check at `index` in the store.
    fn count(store: &Store, index: usize) -> Option<u64> {
        let rollups = store.read(
            index,
            Resolution::Day,
            (yesterday(), yesterday() + 2 * Resolution::Day.seconds()),
        )?;
        Some(
            rollups
                .values()
                .map(|rollup| rollup.summary().samples)
                .sum(),
        )
    }

    /// The start of yesterday in UTC.
    fn yesterday() -> u32 {
        let now = Sample::new(SystemTime::now(), None).seconds;
        Resolution::Day.start(now) - Resolution::Day.seconds()
    }

    fn sample(seconds: u32) -> Sample {
        Sample {
            seconds: yesterday() + seconds,
            latency: 1000,
        }
    }

    #[test]
    fn samples_are_visible_at_once_and_after_reopening() {
        let directory = tempdir().unwrap();
        let path = directory.path().join("missing").join("too");
        for round in 0..3 {
            let store = open(&path);
            assert_eq!(count(&store, 0), Some(round * 30));
            for second in 0..30 {
                store.add(0, sample(second));
                if second == 15 {
                    store.flush();
                }
            }
            // Half of them are written, the others are only buffered.
            assert_eq!(count(&store, 0), Some(round * 30 + 30));
            assert_eq!(count(&store, 1), Some(0));
            assert_eq!(store.state(), StoreState::Disk);
        }
    }

    #[test]
    fn loses_and_repeats_no_sample_during_concurrent_writes() {
        let directory = tempdir().unwrap();
        let store = open(directory.path());
        thread::scope(|scope| {
            let adding = scope.spawn(|| {
                for _ in 0..2000 {
                    store.add(0, sample(1));
                    store.add(1, sample(1));
                    thread::yield_now();
                }
            });
            scope.spawn(|| {
                while count(&store, 1) != Some(2000) {
                    store.flush();
                }
            });
            let mut before = 0;
            while !adding.is_finished() {
                let now = count(&store, 0).unwrap();
                assert!((before..=2000).contains(&now), "{now} after {before}");
                before = now;
            }
        });
        assert_eq!(count(&store, 0), Some(2000));
    }

    #[test]
    fn outages_are_visible_at_once_and_after_reopening() {
        let directory = tempdir().unwrap();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(yesterday().into());
        let outage = |after: u64, end: Option<u64>| Outage {
            start: start + Duration::from_secs(after),
            end: end.map(|end| start + Duration::from_secs(end)),
            error: "connection refused".into(),
        };
        let (first, second) = (outage(10, Some(20)), outage(30, None));
        {
            let store = open(directory.path());
            assert_eq!(store.outages(0), Some(vec![]));
            store.add_outage(0, outage(10, None));
            store.add(0, sample(1));
            store.flush();
            store.add_outage(0, first.clone());
            store.add_outage(0, second.clone());
            assert_eq!(store.outages(0), Some(vec![first.clone(), second.clone()]));
            store.add(0, sample(2));
        }
        let store = open(directory.path());
        assert_eq!(store.outages(0), Some(vec![first, second]));
        assert_eq!(store.outages(1), Some(vec![]));
    }

    #[test]
    fn rejects_a_directory_that_is_in_use() {
        let directory = tempdir().unwrap();
        let first = open(directory.path());
        let error = Store::open(directory.path(), Vec::new()).unwrap_err();
        let error = error.to_string();
        let start = format!(
            "cannot store the history in {}: ",
            directory.path().display()
        );
        assert!(error.starts_with(&start), "{error}");
        assert!(error.contains("another replica"), "{error}");
        drop(first);
        open(directory.path());
    }

    #[test]
    fn rejects_a_path_that_cannot_be_a_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path().to_owned(), file.path().join("below")] {
            assert_eq!(Store::open(&path, Vec::new()).unwrap_err().directory, path);
        }
    }

    #[test]
    fn buffers_a_limited_number_of_samples_while_the_disk_fails() {
        let directory = tempdir().unwrap();
        let path = directory.path().join("data");
        let store = open(&path);
        store.add(0, sample(1));
        store.flush();
        // Replaces the directory by a file.
        close(&mut store.shared.disk.write().unwrap());
        let elsewhere = directory.path().join("elsewhere");
        std::fs::rename(&path, &elsewhere).unwrap();
        std::fs::write(&path, "in the way").unwrap();
        for second in 0..MAX_PENDING + 100 {
            store.add(0, sample(u32::try_from(second).unwrap()));
        }
        store.flush();
        assert!(matches!(store.state(), StoreState::Failing { .. }));
        assert_eq!(count(&store, 0), None);
        assert_eq!(lock(&store.shared.waiting).samples.len(), MAX_PENDING);
        assert_eq!(lock(&store.shared.waiting).lost, 100);

        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&elsewhere, &path).unwrap();
        store.flush();
        assert_eq!(store.state(), StoreState::Disk);
        assert_eq!(count(&store, 0), Some(MAX_PENDING as u64 + 1));
        assert_eq!(lock(&store.shared.waiting).samples.len(), 0);
    }

    #[test]
    fn does_not_repeat_samples_of_a_write_that_only_seemed_to_fail() {
        let directory = tempdir().unwrap();
        let store = open(directory.path());
        for second in 0..10 {
            store.add(0, sample(second));
        }
        {
            let disk = store.shared.disk.read().unwrap();
            let samples = (0..7).map(|second| ("cache", sample(second)));
            let done = (store.shared.run, 7);
            disk.as_ref().unwrap().write(samples, [], done).unwrap();
        }
        assert_eq!(count(&store, 0), Some(10));
        store.shared.suspect.store(true, Ordering::Relaxed);
        store.flush();
        assert_eq!(count(&store, 0), Some(10));
    }

    const MINUTE: u32 = Resolution::Minute.seconds();
    const HOUR: u32 = Resolution::Hour.seconds();
    const DAY: u32 = Resolution::Day.seconds();

    /// The right time at which the tests of wrong clocks begin.
    const START: u32 = 1_800_000_000;

    /// A store that is written only by the test, with the clocks of the test.
    fn open_without_thread(directory: &Path) -> Store {
        let shared = Shared::new(directory, vec!["cache".into()]);
        shared.reopen().unwrap();
        Store {
            shared: Arc::new(shared),
            thread: None,
            ended: Mutex::new(mpsc::channel().1),
        }
    }

    /// A service whose clock can be wrong. The time is in seconds since the epoch.
    struct Machine {
        directory: tempfile::TempDir,
        store: Store,
        /// When the machine was switched on.
        boot: Instant,
        right: u32,
        ahead: i64,
        samples: Vec<Sample>,
    }

    impl Machine {
        /// A service that has recorded an hour of each of the last `days` days, and every minute of the last day.
        fn with_history(days: u32) -> Self {
            let hours = (1..=days * 24).map(|hours| START - hours * HOUR);
            let minutes = (1..=24 * 60).map(|minutes| START - minutes * MINUTE);
            let samples: Vec<_> = hours
                .chain(minutes)
                .map(|seconds| Sample {
                    seconds,
                    latency: 1000,
                })
                .collect();
            let directory = tempdir().unwrap();
            let file = directory.path().join("history.redb");
            // Written once for each number of days, because it takes long.
            static WRITTEN: Mutex<BTreeMap<u32, Vec<u8>>> = Mutex::new(BTreeMap::new());
            match lock(&WRITTEN).entry(days) {
                Entry::Occupied(written) => std::fs::write(&file, written.get()).unwrap(),
                Entry::Vacant(unwritten) => {
                    let disk = Disk::open(directory.path()).unwrap();
                    let named = samples.iter().map(|sample| ("cache", *sample));
                    disk.write(named, [], (1, 1)).unwrap();
                    disk.close().unwrap();
                    unwritten.insert(std::fs::read(&file).unwrap());
                }
            }
            let machine = Self {
                store: open_without_thread(directory.path()),
                directory,
                boot: Instant::now(),
                right: START,
                ahead: 0,
                samples,
            };
            machine.reset_clocks();
            machine
        }

        fn clocks(&self) -> Clocks {
            let wall = u64::try_from(i64::from(self.right) + self.ahead).unwrap();
            Clocks {
                wall: SystemTime::UNIX_EPOCH + Duration::from_secs(wall),
                monotonic: self.boot + Duration::from_secs((self.right - START).into()),
            }
        }

        fn reset_clocks(&self) {
            *lock(&self.store.shared.steady) = self.clocks();
        }

        fn restart(mut self) -> Self {
            // Closed first, because the file is locked.
            drop(self.store);
            self.store = open_without_thread(self.directory.path());
            self.reset_clocks();
            self
        }

        /// Records one sample per minute, and writes each.
        fn run(&mut self, minutes: u32) {
            self.run_and_write_every(1, minutes);
        }

        fn run_and_write_every(&mut self, interval: u32, minutes: u32) {
            for minute in 1..=minutes {
                self.right += MINUTE;
                let sample = Sample::new(self.clocks().wall, Some(Duration::from_millis(1)));
                self.samples.push(sample);
                self.store.add(0, sample);
                if minute % interval == 0 {
                    assert!(self.store.shared.write(self.clocks()));
                }
            }
        }

        fn all(&self, resolution: Resolution) -> BTreeMap<u32, Rollup> {
            let disk = self.store.shared.disk.read().unwrap();
            disk.as_ref().unwrap().all("cache", resolution)
        }

        /// Asserts that all samples of the documented windows and all later ones are stored exactly once, and that those of the
        /// windows are read.
        fn assert_complete(&self, what: &str) {
            for (resolution, window) in [
                (Resolution::Minute, DAY),
                (Resolution::Hour, 15 * DAY),
                (Resolution::Day, 366 * DAY),
            ] {
                let from = resolution.start(self.right - window);
                let mut expected = BTreeMap::new();
                resolution.group(self.samples.iter().copied(), &mut expected);
                let mut expected = expected.split_off(&from);
                let stored = self.all(resolution).split_off(&from);
                assert!(stored == expected, "{what}: {resolution:?}");
                expected.retain(|start, _| *start <= self.right);
                let read = self.store.read(0, resolution, (from, self.right)).unwrap();
                assert!(read == expected, "{what}: {resolution:?}");
            }
        }
    }

    #[test]
    fn a_clock_that_is_ahead_deletes_nothing_and_counts_each_sample_once() {
        survives_a_wrong_clock(1);
    }

    #[test]
    fn a_clock_that_is_behind_deletes_nothing_and_counts_each_sample_once() {
        survives_a_wrong_clock(-1);
    }

    #[track_caller]
    fn survives_a_wrong_clock(direction: i64) {
        for ahead in [400 * DAY, 10 * DAY, HOUR] {
            let ahead = direction * i64::from(ahead);
            for restart in [true, false] {
                let what = format!("{ahead} s ahead, restart: {restart}");
                let mut machine = Machine::with_history(367);
                machine.assert_complete(&what);
                for ahead in [ahead, 0] {
                    machine.ahead = ahead;
                    if restart {
                        machine = machine.restart();
                    }
                    // Long enough that old roll-ups are deleted.
                    machine.run(25);
                }
                machine.assert_complete(&what);
            }
        }
    }

    #[test]
    fn a_clock_that_is_wrong_after_every_start_deletes_nothing() {
        let mut machine = Machine::with_history(367);
        for day in 0..200 {
            machine.ahead = i64::from((400 + day) * DAY);
            machine.run(2);
            machine.ahead = 0;
            machine.run(1);
        }
        assert_eq!(machine.all(Resolution::Day).len(), 368 + 200);
        machine.run(25);
        machine.assert_complete("right again");
    }

    #[test]
    fn old_roll_ups_are_deleted_once_the_clock_is_steady() {
        let mut machine = Machine::with_history(500);
        machine.run(9);
        assert_eq!(machine.all(Resolution::Day).len(), 501);
        // Two jumps in a row, after each of which it takes ten minutes.
        machine.ahead = i64::from(DAY);
        machine.run(9);
        machine.ahead = 0;
        machine.run(9);
        assert_eq!(machine.all(Resolution::Day).len(), 502);
        machine.run(2);
        // The day of the jump is not yet counted.
        assert_eq!(machine.all(Resolution::Day).len(), 400 + 1);
        assert_eq!(machine.all(Resolution::Hour).len(), 400 + 1);
        assert_eq!(machine.all(Resolution::Minute).len(), 1500 + 9);
        machine.assert_complete("right again");
    }

    #[test]
    fn roll_ups_of_minutes_and_hours_are_deleted_as_time_passes() {
        let mut machine = Machine::with_history(20);
        machine.run_and_write_every(10, 30 * 60);
        let oldest = |resolution| *machine.all(resolution).keys().next().unwrap();
        assert!(oldest(Resolution::Minute) >= machine.right - 1520 * MINUTE);
        assert!(oldest(Resolution::Hour) >= machine.right - 402 * HOUR);
        assert_eq!(
            oldest(Resolution::Day),
            Resolution::Day.start(START - 20 * DAY)
        );
        machine.assert_complete("after 30 hours");
    }
}
