//! The history store under adverse conditions: kills at any moment, full and read-only disks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead, BufReader, Lines, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, SystemTime},
};

use api::{
    Error,
    board::Board,
    checks::{Check, ProbeError, Target, TlsOptions, tcp},
    history::{Sample, Store, StoreState},
    routes::History,
    state::State,
    telemetry,
};
use nix::sys::signal::Signal;
use redb::{Database, TableDefinition};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::harness::Service;

const CHECKS: usize = 20;

/// The number of samples that the writer adds before each write.
const BATCH: u64 = 50;

/// The variables for the directory of the writer and its pause in milliseconds; only the writer process has them.
const DIRECTORY: &str = "TEST_STORE_DIRECTORY";
const PAUSE: &str = "TEST_STORE_PAUSE";

fn names() -> Vec<String> {
    (0..CHECKS)
        .map(|number| format!("check-{number}"))
        .collect()
}

/// Not a test, but the process that is killed: the tests run this program again with only this function.
#[test]
fn writer() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let pause = Duration::from_millis(std::env::var(PAUSE).unwrap().parse().unwrap());
    telemetry::start("info".parse().unwrap()).unwrap();
    let store = Store::open(Path::new(&directory), names()).unwrap();
    for batch in 1_u64.. {
        for _ in 0..BATCH {
            // Spread over the last day, so that the file grows.
            let at = SystemTime::now() - Duration::from_secs(fastrand::u64(..20 * 60 * 60));
            let latency = fastrand::u8(..) > 20;
            let latency = latency.then(|| Duration::from_micros(fastrand::u64(100..1_000_000)));
            store.add(fastrand::usize(..CHECKS), Sample::new(at, latency));
        }
        let written = store.flush();
        tracing::info!(added = batch * BATCH, written, "flushed");
        thread::sleep(pause);
    }
}

/// The writer process, which is killed when dropped.
struct Writer {
    child: Child,
    log: Lines<BufReader<ChildStdout>>,
    /// The number of samples that it reported as written.
    written: u64,
}

impl Writer {
    fn start(directory: &Path, pause: Duration) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::writer", "--nocapture"])
            .env(DIRECTORY, directory)
            .env(PAUSE, pause.as_millis().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            log,
            written: 0,
        }
    }

    /// The next log line; skips the output of the test framework.
    fn next(&mut self) -> Option<Value> {
        let line: Value = self
            .log
            .by_ref()
            .find_map(|line| serde_json::from_str(&line.unwrap()).ok())?;
        if line["written"] == true {
            self.written = line["added"].as_u64().unwrap();
        }
        Some(line)
    }

    /// Waits for a write attempt with this outcome, and returns the other log lines until then.
    fn flushed(&mut self, outcome: impl Fn(bool) -> bool) -> Vec<Value> {
        let mut others = Vec::new();
        loop {
            let line = self.next().expect("the writer is running");
            match line["written"].as_bool() {
                None => others.push(line),
                Some(written) if outcome(written) => return others,
                Some(_) => {}
            }
        }
    }

    /// Kills the process, and returns the number of samples that it reported as written.
    fn kill(mut self) -> u64 {
        self.child.kill().unwrap();
        while self.next().is_some() {}
        self.written
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn board(directory: &Path) -> Board {
    let checks = names().into_iter().map(|name| Check {
        name,
        display_name: None,
        target: Target::Tcp(tcp::Target {
            host: "localhost".into(),
            port: 1,
        }),
        critical: false,
        interval: Duration::from_secs(10),
        jitter: Duration::ZERO,
        timeout: Duration::from_secs(5),
        failures: 1.try_into().unwrap(),
        successes: 1.try_into().unwrap(),
        degraded_above: None,
        tls: TlsOptions::default(),
        group: None,
        hide_target: false,
    });
    Board::new(checks.collect()).with_store(Store::open(directory, names()).unwrap())
}

/// The number of samples in the file in `directory`.
fn count(directory: &Path) -> u64 {
    let board = board(directory);
    let counts: BTreeSet<u64> = ["2h", "2d", "300d"]
        .map(|window| humantime::parse_duration(window).unwrap())
        .map(|window| {
            (0..CHECKS)
                .map(|index| History::of(&board, index, window, SystemTime::now()).unwrap())
                .map(|history| history.summary.samples)
                .sum()
        })
        .into();
    // Hours and days agree; only the shortest window does not contain all samples.
    assert!(counts.len() <= 2, "{counts:?}");
    assert_eq!(board.store_state(), StoreState::Disk);
    counts.last().copied().unwrap()
}

fn files(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// A store whose writer is killed repeatedly.
pub struct Killed {
    directory: TempDir,
    /// The number of samples in the store.
    known: u64,
    pub rounds: u64,
}

impl Killed {
    pub fn new() -> Self {
        Self {
            directory: tempdir().unwrap(),
            known: 0,
            rounds: 0,
        }
    }

    /// Kills the writer at a random moment, and asserts that no reported write is lost and every batch is complete.
    pub fn kill_once(&mut self) {
        let mut writer = Writer::start(self.directory.path(), Duration::ZERO);
        if !self.rounds.is_multiple_of(4) {
            writer.flushed(|_| true);
        }
        // Otherwise it may be killed while it opens the file.
        thread::sleep(Duration::from_millis(fastrand::u64(..60)));
        let written = writer.kill();
        let (known, found) = (self.known, count(self.directory.path()));
        assert!(
            // The last batch may have been written without a report.
            [0, BATCH]
                .map(|more| known + written + more)
                .contains(&found),
            "{known} and {written} were written, but {found} were found"
        );
        self.known = found;
        let files = files(self.directory.path());
        assert!(
            !files.iter().any(|name| name.contains("damaged")),
            "{files:?}"
        );
        self.rounds += 1;
    }
}

#[test]
fn a_kill_loses_no_reported_write_and_splits_no_batch() {
    let mut store = Killed::new();
    for _ in 0..40 {
        store.kill_once();
    }
    assert!(store.known > 40 * BATCH / 2);
}

/// A file system of 600 KiB.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let directory = tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=600k", "tmpfs"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(mounted.success());
        Self(directory)
    }

    /// Fills the disk.
    fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        while file.write_all(&[1; 512]).is_ok() {}
    }

    fn free_space(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> std::path::PathBuf {
        self.0.path().join("filler")
    }

    fn data(&self) -> std::path::PathBuf {
        self.0.path().join("data")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

#[test]
fn keeps_samples_in_memory_while_the_disk_is_full_and_writes_them_later() {
    let disk = SmallDisk::mount();
    let mut writer = Writer::start(&disk.data(), Duration::from_millis(20));
    writer.flushed(|written| written);
    for _ in 0..2 {
        disk.fill();
        let mut log = writer.flushed(|written| !written);
        for _ in 0..20 {
            let more = writer.flushed(|_| true);
            log.extend(more);
        }
        assert_eq!(log.len(), 1, "{log:?}");
        assert_eq!(log[0]["level"], "ERROR");
        let message = log[0]["message"].as_str().unwrap();
        assert!(
            message.starts_with("cannot write the history to disk"),
            "{message}"
        );
        let reason = log[0]["reason"].as_str().unwrap();
        assert!(reason.contains("No space left"), "{reason}");

        disk.free_space();
        let log = writer.flushed(|written| written);
        assert_eq!(log.len(), 1, "{log:?}");
        assert_eq!(log[0]["message"], "writing the history to disk again");
        assert_eq!(log[0]["lost"], 0);
    }
    let written = writer.kill();
    let found = count(&disk.data());
    assert!(
        [written, written + BATCH].contains(&found),
        "{written}: {found}"
    );
    assert!(
        !files(&disk.data())
            .iter()
            .any(|name| name.contains("damaged"))
    );
}

#[test]
fn retries_a_disk_that_is_full_at_the_start() {
    let disk = SmallDisk::mount();
    disk.fill();
    let store = Store::open(&disk.data(), names()).unwrap();
    store.add(0, Sample::new(SystemTime::now(), None));
    assert!(!store.flush());
    assert!(matches!(store.state(), StoreState::Failing { .. }));
    disk.free_space();
    assert!(store.flush());
    assert_eq!(store.state(), StoreState::Disk);
    drop(store);
    assert_eq!(count(&disk.data()), 1);

    // The same with an existing file.
    disk.fill();
    let store = Store::open(&disk.data(), names()).unwrap();
    store.add(0, Sample::new(SystemTime::now(), None));
    disk.free_space();
    assert!(store.flush());
    drop(store);
    assert_eq!(count(&disk.data()), 2);
    assert!(
        !files(&disk.data())
            .iter()
            .any(|name| name.contains("damaged"))
    );
}

#[test]
fn rejects_a_read_only_directory() {
    let disk = SmallDisk::mount();
    let read_only = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(disk.0.path())
        .status()
        .unwrap();
    assert!(read_only.success());
    let error = Error::from(Store::open(&disk.data(), names()).unwrap_err());
    assert_eq!(error.exit_code(), 1);
    assert!(
        error.to_string().contains("Read-only file system"),
        "{error}"
    );
}

/// Writes a file of version 1 with one failure of each check per minute, and returns the number of all samples.
fn write_version_1(directory: &Path, minutes: u32) -> u64 {
    fs::create_dir_all(directory).unwrap();
    let database = Database::create(directory.join("history.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let now = Sample::new(SystemTime::now(), None).seconds();
    for (name, length) in [("minutes", 60), ("hours", 3600), ("days", 86_400)] {
        type Rollups = TableDefinition<'static, (u32, &'static str), (u32, Vec<(u8, u32)>)>;
        let mut failures: BTreeMap<u32, u32> = BTreeMap::new();
        for minute in 0..minutes {
            let time = now - minute * 60;
            *failures.entry(time - time % length).or_default() += 1;
        }
        let mut table = transaction.open_table(Rollups::new(name)).unwrap();
        for (start, failures) in failures {
            for check in names() {
                table
                    .insert((start, &*check), (failures, Vec::new()))
                    .unwrap();
            }
        }
    }
    let meta: TableDefinition<&str, u64> = TableDefinition::new("meta");
    transaction
        .open_table(meta)
        .unwrap()
        .insert("schema", 1)
        .unwrap();
    transaction.commit().unwrap();
    u64::from(minutes) * CHECKS as u64
}

#[test]
fn a_kill_during_the_migration_loses_nothing() {
    let old = tempdir().unwrap();
    let before = write_version_1(old.path(), 200);
    for _ in 0..10 {
        let directory = tempdir().unwrap();
        let file = "history.redb";
        fs::copy(old.path().join(file), directory.path().join(file)).unwrap();
        let writer = Writer::start(directory.path(), Duration::from_secs(60));
        thread::sleep(Duration::from_millis(fastrand::u64(..200)));
        writer.kill();
        let found = count(directory.path());
        assert!([0, BATCH].contains(&(found - before)), "{before} {found}");
        assert_eq!(
            files(directory.path()),
            ["history.lock", "history.redb"].map(Into::into).into()
        );
    }
}

#[test]
fn migrates_once_the_disk_is_no_longer_full() {
    let disk = SmallDisk::mount();
    let before = write_version_1(&disk.data(), 10);
    disk.fill();
    let board = board(&disk.data());
    let store = board.store().unwrap();
    assert!(matches!(board.store_state(), StoreState::Failing { .. }));
    let failure = || Err(ProbeError("lost".into()));
    board.record(0, SystemTime::now(), Duration::ZERO, failure());
    board.record(1, SystemTime::now(), Duration::ZERO, Ok(()));
    assert!(!store.flush());
    let state = |index| board.status(index).unwrap().state;
    assert_eq!(
        [state(0), state(1), state(2)],
        [State::Down, State::Up, State::Pending]
    );
    let since = board.status(0).unwrap().since;

    disk.free_space();
    assert!(store.flush());
    board.reload(SystemTime::now());
    assert_eq!(board.store_state(), StoreState::Disk);
    assert_eq!(
        [state(0), state(1), state(2)],
        [State::Down, State::Up, State::Down]
    );
    assert!(board.status(0).unwrap().since < since);
    assert_eq!(board.status(0).unwrap().day.summary.samples, 11);
    drop(board);
    assert_eq!(count(&disk.data()), before + 2);
}

/// Starts the program with a data directory and a check with a short interval.
fn program(directory: &Path) -> Service {
    let configuration = format!(
        "data-dir = {:?}\n[[checks]]\nname = \"cache\"\ntcp = \"127.0.0.1:1\"\ninterval = \"1s\"\n",
        directory.display().to_string()
    );
    Service::start(&configuration, &[])
}

/// Waits until the check has at least `minimum` samples, and returns their number.
async fn samples(service: &Service, minimum: u64) -> u64 {
    // Fails if another test has already installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    loop {
        let response = reqwest::get(service.url("/api/v1/checks/cache/history"))
            .await
            .unwrap();
        let history: Value = response.json().await.unwrap();
        let samples = history["samples"].as_u64().unwrap();
        if samples >= minimum {
            return samples;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[actix_web::test]
async fn program_keeps_its_history_after_a_shutdown_and_most_of_it_after_a_kill() {
    let directory = tempdir().unwrap();
    let mut service = program(directory.path());
    let before = samples(&service, 2).await;
    service.signal(Signal::SIGTERM);
    assert!(service.child.wait().unwrap().success());

    let mut service = program(directory.path());
    let kept = samples(&service, 0).await;
    assert!(kept >= before);
    // After twelve seconds, the first samples are written.
    samples(&service, kept + 12).await;
    service.child.kill().unwrap();
    service.child.wait().unwrap();
    let service = program(directory.path());
    assert!(samples(&service, 0).await > kept);
    // The state of before the kill, without a probe.
    let status = reqwest::get(service.url("/api/v1/checks/cache"))
        .await
        .unwrap();
    let status: Value = status.json().await.unwrap();
    assert_eq!(status["state"], "down");
    assert_eq!(
        files(directory.path()),
        ["history.lock", "history.redb"].map(Into::into).into()
    );
}

#[actix_web::test]
async fn program_logs_where_it_moved_an_unreadable_file() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("history.redb");
    fs::write(&file, "the diary of another program").unwrap();
    let service = program(directory.path());
    let log = service.log();
    let line = log.iter().find(|line| line["aside"].is_string()).unwrap();
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["file"].as_str(), file.to_str());
    let aside = fs::read_to_string(line["aside"].as_str().unwrap()).unwrap();
    assert_eq!(aside, "the diary of another program");
    samples(&service, 1).await;
}
