//! Interrupts provisioning at random moments, and asserts that no partial result is ever used.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::embedded::{Machine, assert_no_process_left, processes_of, short_folder};
use crate::harness::{Ci, Outcome, Project, sleep};

/// Pseudorandom moments. The same seed, from the environment variable `SEED`, gives the same moments.
pub struct RandomMoments(u64);

impl RandomMoments {
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed =
            std::env::var("SEED").map_or(now.unwrap().as_secs(), |seed| seed.parse().unwrap());
        print_note(&format!("SEED={seed} repeats these moments"));
        Self(seed)
    }

    /// A number from 0 to 1.
    pub fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from((self.0 >> 40) as u32) / f64::from(1 << 24)
    }
}

/// A process that must tolerate interruptions at any moment.
pub struct Interruptible<'a> {
    /// The cache directory, which identifies the descendants of the process.
    cache: &'a Path,
    /// Duration without an interruption.
    whole: Duration,
    /// Starts the process from the beginning.
    start: Box<dyn Fn() -> Child + 'a>,
    /// Assertions after each interruption.
    check: Box<dyn Fn() + 'a>,
}

impl Interruptible<'_> {
    /// Interrupts the process at this fraction of its duration.
    pub fn interrupt_at(&mut self, moment: f64, signal: Signal) {
        // If the process finishes before the interruption, try again with the measured duration.
        while let Some(done) = interrupt(
            (self.start)(),
            self.whole.mul_f64(moment),
            signal,
            self.cache,
        ) {
            self.whole = done;
            (self.check)();
        }
        (self.check)();
    }
}

#[expect(
    clippy::print_stdout,
    reason = "libtest shows the output of a failed test"
)]
pub fn print_note(text: &str) {
    println!("{text}");
}

fn start(ci: Ci) -> Child {
    ci.into_command()
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Interrupts a process after this time, and asserts that it exits at once and that none of its descendants but an engine
/// survive. If the process has finished before, returns its duration.
fn interrupt(mut child: Child, after: Duration, signal: Signal, cache: &Path) -> Option<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < after {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return Some(begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    let begun = Instant::now();
    let status = child.wait().unwrap();
    // The process may have finished at this very moment.
    let expected = match signal {
        Signal::SIGKILL => status.signal() == Some(9),
        _ => status.code() == Some(130),
    };
    let about = format!("{signal} after {after:?}");
    assert!(expected || status.success(), "{about}: {status}");
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{about}: took {:?}",
        begun.elapsed()
    );
    loop {
        let mut left = processes_of(cache);
        left.retain(|line| !line.starts_with("engine: "));
        if left.is_empty() {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "{about}: {left:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(cache.to_str().unwrap()),
        "{about}: {mounts}"
    );
    None
}

fn assert_built_nothing(outcome: &Outcome) {
    for word in ["building", "stand-in image", "downloading"] {
        assert!(!outcome.stderr.contains(word), "{}", outcome.stderr);
    }
}

fn unfinished_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains(".unfinished-"))
        .collect()
}

/// Asserts that the programs equal those of an uninterrupted build.
fn assert_programs_complete(programs: &Path, reference: &Path) {
    let compared = Command::new("diff")
        .args(["--recursive", "--brief"])
        .args([programs, reference])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{compared:?}");
}

/// Starts of an engine in a separate cache directory, which also build its programs.
pub struct EngineStart {
    machine: Machine,
    cache: tempfile::TempDir,
    programs: PathBuf,
}

impl EngineStart {
    pub fn new() -> Self {
        let machine = Machine::new();
        let cache = short_folder();
        let programs = cache.path().join(machine.programs().file_name().unwrap());
        Self {
            machine,
            cache,
            programs,
        }
    }

    fn ci(&self, command: &str) -> Ci {
        Ci::new(self.cache.path(), &["engine", command])
            .env("LAB_CI_CACHE_DIR", self.cache.path().to_str().unwrap())
    }

    /// Asserts that the programs equal those of an uninterrupted build.
    fn assert_programs_complete(&self) {
        assert_programs_complete(
            &self.programs.join("bin"),
            &self.machine.programs().join("bin"),
        );
    }

    /// Measures a start without an interruption, and returns the process to interrupt.
    pub fn work(&self) -> Interruptible<'_> {
        let begun = Instant::now();
        self.ci("up").run().exits(0);
        let whole = begun.elapsed();
        self.ci("down").run().exits(0);
        print_note(&format!("a start takes {whole:?} without an interruption"));
        self.assert_programs_complete();
        Interruptible {
            cache: self.cache.path(),
            whole,
            start: Box::new(|| {
                // Removes finished work, but keeps the leftovers of interrupted starts.
                for done in ["bin", "state"] {
                    let _ = fs::remove_dir_all(self.programs.join(done));
                }
                start(self.ci("up"))
            }),
            check: Box::new(|| {
                if self.programs.join("bin").exists() {
                    self.assert_programs_complete();
                }
                self.ci("down").run().exits(0);
                assert_no_process_left(self.cache.path());
            }),
        }
    }

    /// Asserts that a start succeeds, removes leftovers, and builds nothing twice.
    pub fn assert_works(&self) {
        self.ci("up").run().exits(0);
        assert_eq!(unfinished_files(&self.programs), Vec::<PathBuf>::new());
        assert_built_nothing(&self.ci("up").run().exits(0).says("already running"));
        self.ci("down").run().exits(0);
        assert_built_nothing(&self.ci("up").run().exits(0).says("started"));
        self.ci("down").run().exits(0);
        self.assert_programs_complete();
    }
}

impl Drop for EngineStart {
    fn drop(&mut self) {
        self.ci("down").run();
    }
}

/// Builds of a stand-in in a separate cache directory, by a format check on the shared engine.
pub struct StandInBuild {
    machine: Machine,
    cache: tempfile::TempDir,
    project: Project,
}

impl StandInBuild {
    pub fn new() -> Self {
        Self {
            machine: Machine::new(),
            cache: short_folder(),
            project: Project::new("interrupts"),
        }
    }

    fn stand_ins(&self) -> PathBuf {
        self.cache.path().join("stand-ins")
    }

    fn ci(&self) -> Ci {
        let client = self.machine.programs().join("bin/dagger");
        self.project
            .ci(&["fmt", "--engine", &self.machine.shared_engine])
            .env("LAB_CI_CACHE_DIR", self.cache.path().to_str().unwrap())
            .env("_EXPERIMENTAL_DAGGER_CLI_BIN", client.to_str().unwrap())
    }

    /// Returns the process to interrupt.
    pub fn work(&self) -> Interruptible<'_> {
        Interruptible {
            cache: self.cache.path(),
            // An estimate, which is replaced by a measured duration.
            whole: Duration::from_secs(30),
            start: Box::new(|| {
                for done in fs::read_dir(self.stand_ins())
                    .into_iter()
                    .flatten()
                    .flatten()
                {
                    if !done.file_name().to_string_lossy().starts_with('.') {
                        fs::remove_dir_all(done.path()).unwrap();
                    }
                }
                start(self.ci())
            }),
            check: Box::new(|| {}),
        }
    }

    /// Asserts that a step passes, leftovers are removed, and nothing is built twice.
    pub fn assert_works(&self) {
        self.ci().run().exits(0);
        assert_eq!(unfinished_files(&self.stand_ins()), Vec::<PathBuf>::new());
        assert_built_nothing(&self.ci().run().exits(0));
    }
}

#[test]
fn a_start_succeeds_when_a_concurrent_start_is_killed() {
    let machine = Machine::new();
    let cache = short_folder();
    let programs = cache.path().join(machine.programs().file_name().unwrap());
    let ci = |command: &str| {
        Ci::new(cache.path(), &["engine", command])
            .env("LAB_CI_CACHE_DIR", cache.path().to_str().unwrap())
    };
    let mut first = start(ci("up"));
    while unfinished_files(&programs).is_empty() {
        assert!(
            first.try_wait().unwrap().is_none(),
            "ci exited before it built anything"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut second = start(ci("up"));
    sleep(Duration::from_secs(2));
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(second.wait().unwrap().success());
    assert_programs_complete(&programs.join("bin"), &machine.programs().join("bin"));
    assert_eq!(unfinished_files(&programs), Vec::<PathBuf>::new());
    ci("down").run().exits(0).says("stopped 1 engine");
}

/// Makes changes to packages temporary: they stay in memory and are invisible to other processes.
const PACKAGES: &str = r#"
mount -t tmpfs none /mnt
for folder in etc usr var; do
    mkdir /mnt/$folder /mnt/$folder.work
    mount -t overlay -o lowerdir=/$folder,upperdir=/mnt/$folder,workdir=/mnt/$folder.work none /$folder
done
# Otherwise man-db indexes all manuals after each change.
rm -f /var/lib/man-db/auto-update
dpkg --force-depends --remove pigz tini >/dev/null
"#;

/// Kills `ci` while apt-get installs packages, and waits for apt-get to finish.
const KILL_CI_DURING_INSTALL: &str = r#"
"$CI" engine up &
ci=$!
while ! pgrep --full '[a]pt-get .*install --yes --no-install-recommends (pigz|tini)' >/dev/null; do
    kill -0 $ci
    sleep 0.01
done
kill -9 $ci
while pgrep --full '[a]pt-get .*install --yes' >/dev/null; do sleep 0.1; done
test -z "$(dpkg --audit)"
command -v pigz
command -v tini
"#;

/// Simulates an interrupted dpkg, after which apt-get refuses to work.
const REPAIR_INTERRUPTED_DPKG: &str = r#"
touch /var/lib/dpkg/updates/0001
apt-get install --yes pigz && exit 1
"$CI" engine up
"$CI" engine down
test -z "$(dpkg --audit)"
command -v pigz
"#;

fn run_with_temporary_packages(script: &str) {
    let machine = Machine::new();
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["sh", "-euc", &format!("{PACKAGES}{script}")])
        .env("CI", env!("CARGO_BIN_EXE_ci"))
        .env("LAB_CI_CACHE_DIR", machine.cache())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn package_installation_finishes_after_ci_is_killed() {
    run_with_temporary_packages(KILL_CI_DURING_INSTALL);
}

#[test]
fn repairs_an_interrupted_package_installation() {
    run_with_temporary_packages(REPAIR_INTERRUPTED_DPKG);
}
