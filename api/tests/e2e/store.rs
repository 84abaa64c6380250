//! The store of the history where the world is against it: killed at any moment, on a disk that is full.

use std::{
    collections::BTreeSet,
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
    checks::{Check, Target, tcp},
    history::{Sample, Store, StoreState},
    routes::History,
    telemetry,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::harness::Service;

const CHECKS: usize = 20;

/// How many samples the writer adds before it writes.
const BATCH: u64 = 50;

/// Where the writer writes, and how many milliseconds it waits in between; nobody else has them in its environment.
const DIRECTORY: &str = "TEST_STORE_DIRECTORY";
const PAUSE: &str = "TEST_STORE_PAUSE";

fn names() -> Vec<String> {
    (0..CHECKS)
        .map(|number| format!("check-{number}"))
        .collect()
}

/// Not a test but the process that is killed: this program, run again.
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
            // All over the last day, so that the file grows.
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

/// The process that writes; killed where a test ends before it did.
struct Writer {
    child: Child,
    log: Lines<BufReader<ChildStdout>>,
    /// How many samples it said were written.
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

    /// The next line of its log; what the test's frame says is none.
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

    /// Waits until it has tried to write, with the outcome that is waited for; gives the other lines until then.
    fn flushed(&mut self, outcome: impl Fn(bool) -> bool) -> Vec<Value> {
        let mut others = Vec::new();
        loop {
            let line = self.next().expect("the writer goes on");
            match line["written"].as_bool() {
                None => others.push(line),
                Some(written) if outcome(written) => return others,
                Some(_) => {}
            }
        }
    }

    /// Kills it, and gives how many samples it said were written.
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

/// How many samples the file in `directory` has.
fn count(directory: &Path) -> u64 {
    let checks = names().into_iter().map(|name| Check {
        name,
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
    });
    let board = Board::new(checks.collect()).with_store(Store::open(directory, names()).unwrap());
    let counts: BTreeSet<u64> = ["2h", "2d", "300d"]
        .map(|window| humantime::parse_duration(window).unwrap())
        .map(|window| {
            (0..CHECKS)
                .map(|index| History::of(&board, index, window, SystemTime::now()).unwrap())
                .map(|history| history.summary.samples)
                .sum()
        })
        .into();
    // Hours and days agree; only the shortest window has not all of them.
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

/// A store whose writer is killed again and again.
pub struct Killed {
    directory: TempDir,
    /// How many samples are in it.
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

    /// Kills the writer at a random moment: all that was written is there, and each batch whole.
    pub fn again(&mut self) {
        let mut writer = Writer::start(self.directory.path(), Duration::ZERO);
        if !self.rounds.is_multiple_of(4) {
            writer.flushed(|_| true);
        }
        // Else it may be killed while it opens.
        thread::sleep(Duration::from_millis(fastrand::u64(..60)));
        let written = writer.kill();
        let (known, found) = (self.known, count(self.directory.path()));
        assert!(
            // The last batch may have been written, and nobody heard of it.
            [0, BATCH]
                .map(|more| known + written + more)
                .contains(&found),
            "{known} and {written} were written, {found} are there"
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
fn whenever_it_is_killed_all_that_was_written_is_there_and_each_batch_whole() {
    let mut store = Killed::new();
    for _ in 0..40 {
        store.again();
    }
    assert!(store.known > 40 * BATCH / 2);
}

/// A disk of a few hundred KiB.
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

    /// Leaves no room on it.
    fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        while file.write_all(&[1; 512]).is_ok() {}
    }

    fn make_room(&self) {
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
fn on_a_full_disk_it_goes_on_in_memory_says_so_once_and_writes_all_when_there_is_room() {
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
            message.starts_with("the history cannot be written"),
            "{message}"
        );
        let reason = log[0]["reason"].as_str().unwrap();
        assert!(reason.contains("No space left"), "{reason}");

        disk.make_room();
        let log = writer.flushed(|written| written);
        assert_eq!(log.len(), 1, "{log:?}");
        assert_eq!(
            log[0]["message"],
            "the history is written to the disk again"
        );
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
fn a_disk_that_is_full_from_the_start_is_tried_until_there_is_room() {
    let disk = SmallDisk::mount();
    disk.fill();
    let store = Store::open(&disk.data(), names()).unwrap();
    store.add(0, Sample::new(SystemTime::now(), None));
    assert!(!store.flush());
    assert!(matches!(store.state(), StoreState::Failing { .. }));
    disk.make_room();
    assert!(store.flush());
    assert_eq!(store.state(), StoreState::Disk);
    drop(store);
    assert_eq!(count(&disk.data()), 1);

    // Also where the file is there.
    disk.fill();
    let store = Store::open(&disk.data(), names()).unwrap();
    store.add(0, Sample::new(SystemTime::now(), None));
    disk.make_room();
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
fn a_directory_that_cannot_be_written_is_an_error() {
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

/// The program with a data directory and a check that asks often.
fn program(directory: &Path) -> Service {
    let configuration = format!(
        "data-dir = {:?}\n[[checks]]\nname = \"cache\"\ntcp = \"127.0.0.1:1\"\ninterval = \"1s\"\n",
        directory.display().to_string()
    );
    Service::start(&configuration, &[])
}

/// How many samples it has of its check, once there are `least`.
async fn samples(service: &Service, least: u64) -> u64 {
    // Another test may have named it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    loop {
        let response = reqwest::get(service.url("/api/v1/checks/cache/history"))
            .await
            .unwrap();
        let history: Value = response.json().await.unwrap();
        let samples = history["samples"].as_u64().unwrap();
        if samples >= least {
            return samples;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[actix_web::test]
async fn the_program_keeps_its_history_when_it_ends_and_most_of_it_when_it_is_killed() {
    let directory = tempdir().unwrap();
    let mut service = program(directory.path());
    let before = samples(&service, 2).await;
    service.signal(Signal::SIGTERM);
    assert!(service.child.wait().unwrap().success());

    let mut service = program(directory.path());
    let kept = samples(&service, 0).await;
    assert!(kept >= before);
    // Twelve seconds: what came first is written.
    samples(&service, kept + 12).await;
    service.child.kill().unwrap();
    service.child.wait().unwrap();
    let service = program(directory.path());
    assert!(samples(&service, 0).await > kept);
    assert_eq!(
        files(directory.path()),
        ["history.lock", "history.redb"].map(Into::into).into()
    );
}

#[actix_web::test]
async fn the_program_says_where_it_set_aside_what_it_cannot_read() {
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
