//! Keeps the roll-ups on the disk: takes samples in memory, and writes them on a thread of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{
    disk::{Disk, Fault},
    rollup::{Resolution, Rollup},
    sample::Sample,
};

/// How often is written: what a loss of power or a kill may take.
const INTERVAL: Duration = Duration::from_secs(10);

/// How many samples wait at most for a disk that fails: 20 checks at 10 s for over two hours, in 192 KiB.
const WAITING: usize = 16 * 1024;

/// How long a process may take to let go that is about to end.
const HANDOVER: Duration = Duration::from_secs(1);

/// How long the end of the service waits for the disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the history is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreState {
    /// In memory alone, as configured.
    Memory,
    /// On the disk, too.
    Disk,
    /// In memory for now: the disk fails, and is tried again and again.
    Failing {
        /// Since when.
        since: SystemTime,
        /// Why, when it began.
        reason: String,
    },
}

/// The directory of the history is held by another process or cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the history in {}: {reason}", directory.display())]
pub struct OpenError {
    /// The directory.
    pub directory: PathBuf,
    /// Why it cannot be used.
    pub reason: String,
}

/// The history on the disk. Nothing that it is asked on a worker's thread waits for the disk.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    /// Asks the thread to write; it ends with this.
    thread: Option<Sender<Sender<bool>>>,
    /// Nothing comes; it ends with the thread.
    ended: Mutex<Receiver<()>>,
}

struct Shared {
    directory: PathBuf,
    /// The checks, in the order of the configuration.
    names: Vec<String>,
    /// Tells the numbers of this process's samples from those of an earlier one.
    run: u64,
    waiting: Mutex<Waiting>,
    disk: RwLock<Option<Disk>>,
    /// Set where reading failed: the file has to be opened anew.
    suspect: AtomicBool,
    failing: Mutex<Option<(SystemTime, String)>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// Samples that are not known to be written, each with the place of its check.
#[derive(Default)]
struct Waiting {
    /// How many samples came before these; the first sample of all has number 1.
    before: u64,
    samples: VecDeque<(u32, Sample)>,
    /// How many of those before were never written, since the disk began to fail.
    lost: u64,
}

impl Waiting {
    /// The samples with their numbers.
    fn numbered(&self) -> impl Iterator<Item = (u64, u32, Sample)> {
        (self.before + 1..)
            .zip(&self.samples)
            .map(|(number, (index, sample))| (number, *index, *sample))
    }

    /// Lets go of all up to `number`.
    fn forget(&mut self, number: u64) {
        while self.before < number && self.samples.pop_front().is_some() {
            self.before += 1;
        }
    }
}

impl Store {
    /// Opens the store of these checks in `directory`, which is created where it is missing, and begins to write to it what is added.
    ///
    /// # Errors
    /// Where another process holds it, or the directory cannot be written. A full disk is none: there may be room soon.
    pub fn open(directory: &Path, names: Vec<String>) -> Result<Self, OpenError> {
        let problem = |reason: String| OpenError {
            directory: directory.to_owned(),
            reason,
        };
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            names,
            run: fastrand::u64(..),
            waiting: Mutex::default(),
            disk: RwLock::default(),
            suspect: AtomicBool::new(false),
            failing: Mutex::default(),
        });
        let start = Instant::now();
        loop {
            match shared.reopen() {
                Err(Fault::Held) if start.elapsed() < HANDOVER => {
                    thread::sleep(HANDOVER / 20);
                    continue;
                }
                Err(fault) if fault.full() => shared.fail(&fault),
                opened => opened.map_err(|fault| problem(fault.to_string()))?,
            }
            break;
        }
        let (ask, asked) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let writer = shared.clone();
        thread::Builder::new()
            .name("history".into())
            .spawn(move || {
                writer.write_until_dropped(&asked);
                drop(end);
            })
            .map_err(|error| problem(error.to_string()))?;
        Ok(Self {
            shared,
            thread: Some(ask),
            ended: Mutex::new(ended),
        })
    }

    /// Takes a new sample of the check at `index`.
    pub fn add(&self, index: usize, sample: Sample) {
        let Ok(index) = u32::try_from(index) else {
            return;
        };
        let mut waiting = lock(&self.shared.waiting);
        if waiting.samples.len() == WAITING {
            let oldest = waiting.before + 1;
            waiting.forget(oldest);
            waiting.lost += 1;
        }
        waiting.samples.push_back((index, sample));
    }

    /// How it is; never [`StoreState::Memory`].
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

    /// Writes what was added so far, and says whether that succeeded; waits for the disk, but not longer than five seconds.
    pub fn flush(&self) -> bool {
        let (done, written) = mpsc::channel();
        self.thread
            .as_ref()
            .is_some_and(|thread| thread.send(done).is_ok())
            && written.recv_timeout(PATIENCE).unwrap_or(false)
    }

    /// The roll-ups of the check at `index`, from the one that begins at `from` to the one that contains `to`, with the samples that are
    /// not written yet. Returns `None` if the disk fails. Waits for the disk.
    pub(crate) fn read(
        &self,
        index: usize,
        resolution: Resolution,
        (from, to): (u32, u32),
    ) -> Option<BTreeMap<u32, Rollup>> {
        let name = self.shared.names.get(index)?;
        // Before the disk is looked at: what is written in between is in both, and has a number that says so.
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

    /// Samples of the last day of each check, newest first, as many as a ring takes. Waits for the disk.
    pub(crate) fn newest(&self) -> Vec<Vec<Sample>> {
        self.shared
            .try_read(|disk| disk.newest(&self.shared.names, SystemTime::now()))
            .unwrap_or_default()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.thread = None;
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(PATIENCE);
    }
}

impl Shared {
    /// The thread: writes now and then, when it is asked to, and when nobody can ask any more.
    fn write_until_dropped(&self, asked: &Receiver<Sender<bool>>) {
        loop {
            let asked = asked.recv_timeout(INTERVAL);
            let written = self.write(SystemTime::now());
            match asked {
                // Nobody waits any more: that is no error.
                Ok(done) => drop(done.send(written)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        close(&mut self.disk.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes what waits, and says whether that succeeded.
    fn write(&self, now: SystemTime) -> bool {
        let written = self.try_write(now).inspect_err(|fault| {
            self.fail(fault);
            // After an error redb answers nothing more, and what it had just written may be there all the same.
            if let Err(fault) = self.reopen() {
                self.fail(&fault);
            }
        });
        written.is_ok()
    }

    fn try_write(&self, now: SystemTime) -> Result<(), Fault> {
        let closed = self
            .disk
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none();
        if self.suspect.swap(false, Ordering::Relaxed) || closed {
            self.reopen()?;
        }
        let waiting: Vec<_> = lock(&self.waiting).numbered().collect();
        let failing = lock(&self.failing).is_some();
        let number = match waiting.last() {
            Some((number, ..)) => *number,
            // Only a write says that the disk is well again.
            None if failing => lock(&self.waiting).before,
            None => return Ok(()),
        };
        let samples = waiting.iter().filter_map(|(_, index, sample)| {
            Some((self.names.get(*index as usize)?.as_str(), *sample))
        });
        let disk = self.disk.read().unwrap_or_else(PoisonError::into_inner);
        let Some(disk) = &*disk else {
            return Ok(());
        };
        disk.write(samples, (self.run, number), now)?;
        let mut waiting = lock(&self.waiting);
        waiting.forget(number);
        let lost = std::mem::take(&mut waiting.lost);
        drop(waiting);
        if lock(&self.failing).take().is_some() {
            tracing::info!(lost, "the history is written to the disk again");
        }
        Ok(())
    }

    /// Closes the file and opens it again.
    fn reopen(&self) -> Result<(), Fault> {
        let mut disk = self.disk.write().unwrap_or_else(PoisonError::into_inner);
        // Closed before it is opened: it is locked.
        close(&mut disk);
        let opened = Disk::open(&self.directory)?;
        let written = opened.written(self.run)?;
        *disk = Some(opened);
        lock(&self.waiting).forget(written);
        Ok(())
    }

    /// Notes that the disk fails; says so only once.
    fn fail(&self, fault: &Fault) {
        let mut failing = lock(&self.failing);
        if failing.is_none() {
            let reason = fault.to_string();
            tracing::error!(
                directory = %self.directory.display(),
                reason,
                "the history cannot be written to the disk: it is kept in memory until it can"
            );
            *failing = Some((SystemTime::now(), reason));
        }
    }

    /// Looks at the disk, if it can be.
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
    // What could not be written by now is no news.
    let _ = disk.take().map(Disk::close);
}

/// What a panic elsewhere left behind is whole: nothing panics while it is changed half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;

    fn open(directory: &Path) -> Store {
        Store::open(directory, vec!["cache".into(), "database".into()]).unwrap()
    }

    /// How many samples the store has of the check at `index`.
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

    /// The beginning of a day that is still kept.
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
    fn samples_are_seen_at_once_and_outlive_the_store() {
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
            // Some are written, and some are not.
            assert_eq!(count(&store, 0), Some(round * 30 + 30));
            assert_eq!(count(&store, 1), Some(0));
            assert_eq!(store.state(), StoreState::Disk);
        }
    }

    #[test]
    fn no_sample_is_lost_or_seen_twice_while_others_are_written() {
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
    fn a_second_store_of_the_same_directory_is_an_error_that_says_why() {
        let directory = tempdir().unwrap();
        let first = open(directory.path());
        let error = Store::open(directory.path(), Vec::new()).unwrap_err();
        let error = error.to_string();
        let begin = format!(
            "cannot keep the history in {}: ",
            directory.path().display()
        );
        assert!(error.starts_with(&begin), "{error}");
        assert!(error.contains("another replica"), "{error}");
        drop(first);
        open(directory.path());
    }

    #[test]
    fn a_directory_that_cannot_be_one_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path().to_owned(), file.path().join("below")] {
            assert_eq!(Store::open(&path, Vec::new()).unwrap_err().directory, path);
        }
    }

    #[test]
    fn while_the_disk_fails_the_newest_samples_wait_and_no_more() {
        let directory = tempdir().unwrap();
        let path = directory.path().join("data");
        let store = open(&path);
        store.add(0, sample(1));
        store.flush();
        // Taken away, and in its place is what no store can be in.
        close(&mut store.shared.disk.write().unwrap());
        let elsewhere = directory.path().join("elsewhere");
        std::fs::rename(&path, &elsewhere).unwrap();
        std::fs::write(&path, "in the way").unwrap();
        for second in 0..WAITING + 100 {
            store.add(0, sample(u32::try_from(second).unwrap()));
        }
        store.flush();
        assert!(matches!(store.state(), StoreState::Failing { .. }));
        assert_eq!(count(&store, 0), None);
        assert_eq!(lock(&store.shared.waiting).samples.len(), WAITING);
        assert_eq!(lock(&store.shared.waiting).lost, 100);

        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&elsewhere, &path).unwrap();
        store.flush();
        assert_eq!(store.state(), StoreState::Disk);
        assert_eq!(count(&store, 0), Some(WAITING as u64 + 1));
        assert_eq!(lock(&store.shared.waiting).samples.len(), 0);
    }

    #[test]
    fn what_was_written_though_it_seemed_to_fail_is_not_written_again() {
        let directory = tempdir().unwrap();
        let store = open(directory.path());
        for second in 0..10 {
            store.add(0, sample(second));
        }
        {
            let disk = store.shared.disk.read().unwrap();
            let samples = (0..7).map(|second| ("cache", sample(second)));
            let done = (store.shared.run, 7);
            disk.as_ref()
                .unwrap()
                .write(samples, done, SystemTime::now())
                .unwrap();
        }
        assert_eq!(count(&store, 0), Some(10));
        store.shared.suspect.store(true, Ordering::Relaxed);
        store.flush();
        assert_eq!(count(&store, 0), Some(10));
    }
}
