//! Provisioning is killed and interrupted at random moments, and nothing half-made is ever taken for whole.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::embedded::{Machine, leaves_no_process, processes_of, short_folder};
use crate::harness::{Ci, Outcome, Project, pause};

/// Numbers that look random; the seed brings the same ones again.
pub struct Moments(u64);

impl Moments {
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed =
            std::env::var("SEED").map_or(now.unwrap().as_secs(), |seed| seed.parse().unwrap());
        note(&format!("SEED={seed} brings the same moments again"));
        Self(seed)
    }

    /// One number from 0 to 1.
    pub fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from((self.0 >> 40) as u32) / f64::from(1 << 24)
    }

    /// One moment in each of `count` equal parts of one.
    fn spread(&mut self, count: u32) -> Vec<f64> {
        (0..count)
            .map(|part| (f64::from(part) + self.next()) / f64::from(count))
            .collect()
    }
}

/// Something that may be interrupted at any moment.
pub struct Work<'a> {
    /// The cache directory, by which what it has started is recognised.
    cache: &'a Path,
    /// How long it takes undisturbed.
    whole: Duration,
    /// Starts it from the beginning.
    start: Box<dyn Fn() -> Child + 'a>,
    /// Holds after each interruption.
    check: Box<dyn Fn() + 'a>,
}

impl Work<'_> {
    /// Interrupts it at a moment of the time that it takes, as a part of one.
    pub fn interrupt_at(&mut self, moment: f64, signal: Signal) {
        // What was done before its moment came has shown how long it takes now.
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

    /// Interrupts it at so many moments, by turns with SIGKILL and SIGINT.
    fn interrupt(&mut self, count: u32) {
        for (number, moment) in Moments::new().spread(count).into_iter().enumerate() {
            self.interrupt_at(moment, [Signal::SIGKILL, Signal::SIGINT][number % 2]);
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the harness shows it where a test fails"
)]
pub fn note(text: &str) {
    println!("{text}");
}

fn start(ci: Ci) -> Child {
    ci.into_command()
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Interrupts it after a while; it ends at once, and nothing that it has started goes on but an engine. Where it has ended
/// well before: the time it took.
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
    // It may have ended in this very moment.
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

fn built_nothing(outcome: &Outcome) {
    for word in ["building", "stand-in image", "downloading"] {
        assert!(!outcome.stderr.contains(word), "{}", outcome.stderr);
    }
}

fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains(".unfinished-"))
        .collect()
}

/// The programs are those of an undisturbed build, byte for byte.
fn are_whole(programs: &Path, reference: &Path) {
    let compared = Command::new("diff")
        .args(["--recursive", "--brief"])
        .args([programs, reference])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{compared:?}");
}

/// A cache directory in which an engine is started from nothing.
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

    /// The programs are those of an undisturbed build, byte for byte.
    fn are_whole(&self) {
        are_whole(
            &self.programs.join("bin"),
            &self.machine.programs().join("bin"),
        );
    }

    /// Starts it once, undisturbed; returns what may be interrupted.
    pub fn work(&self) -> Work<'_> {
        let begun = Instant::now();
        self.ci("up").run().exits(0);
        let whole = begun.elapsed();
        self.ci("down").run().exits(0);
        note(&format!("an undisturbed start takes {whole:?}"));
        self.are_whole();
        Work {
            cache: self.cache.path(),
            whole,
            start: Box::new(|| {
                // What interrupted ones have left stays for the next; what is whole is made anew.
                for done in ["bin", "state"] {
                    let _ = fs::remove_dir_all(self.programs.join(done));
                }
                start(self.ci("up"))
            }),
            check: Box::new(|| {
                if self.programs.join("bin").exists() {
                    self.are_whole();
                }
                self.ci("down").run().exits(0);
                leaves_no_process(self.cache.path());
            }),
        }
    }

    /// Nothing of what was interrupted is left, or used.
    pub fn works(&self) {
        self.ci("up").run().exits(0);
        assert_eq!(unfinished(&self.programs), Vec::<PathBuf>::new());
        built_nothing(&self.ci("up").run().exits(0).says("was running"));
        self.ci("down").run().exits(0);
        built_nothing(&self.ci("up").run().exits(0).says("started"));
        self.ci("down").run().exits(0);
        self.are_whole();
    }
}

impl Drop for EngineStart {
    fn drop(&mut self) {
        self.ci("down").run();
    }
}

#[test]
fn starting_the_engine_may_be_interrupted_at_any_moment() {
    let engine = EngineStart::new();
    engine.work().interrupt(2);
    engine.works();
}

/// A cache directory in which a format check makes its stand-in from nothing, on everybody's engine. For the soak: each time takes
/// half a minute of both cores.
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
            .ci(&["fmt", "--engine", &self.machine.everybodys])
            .env("LAB_CI_CACHE_DIR", self.cache.path().to_str().unwrap())
            .env("_EXPERIMENTAL_DAGGER_CLI_BIN", client.to_str().unwrap())
    }

    /// What may be interrupted.
    pub fn work(&self) -> Work<'_> {
        Work {
            cache: self.cache.path(),
            // About as long as it takes. Where it has ended before its moment came, the next moment is taken of the real time.
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

    /// Whatever has its name by now is whole: a gate passes in it.
    pub fn works(&self) {
        self.ci().run().exits(0);
        assert_eq!(unfinished(&self.stand_ins()), Vec::<PathBuf>::new());
        built_nothing(&self.ci().run().exits(0));
    }
}

#[test]
fn one_of_two_that_provision_at_once_may_be_killed() {
    let machine = Machine::new();
    let cache = short_folder();
    let programs = cache.path().join(machine.programs().file_name().unwrap());
    let ci = |command: &str| {
        Ci::new(cache.path(), &["engine", command])
            .env("LAB_CI_CACHE_DIR", cache.path().to_str().unwrap())
    };
    let mut first = start(ci("up"));
    while unfinished(&programs).is_empty() {
        assert!(first.try_wait().unwrap().is_none(), "it builds");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut second = start(ci("up"));
    pause(Duration::from_secs(2));
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(second.wait().unwrap().success());
    are_whole(&programs.join("bin"), &machine.programs().join("bin"));
    assert_eq!(unfinished(&programs), Vec::<PathBuf>::new());
    ci("down").run().exits(0).says("ended 1");
}

/// A machine whose packages can be played with: what is written stays in memory, and is seen by nobody else.
const PACKAGES: &str = r#"
mount -t tmpfs none /mnt
for folder in etc usr var; do
    mkdir /mnt/$folder /mnt/$folder.work
    mount -t overlay -o lowerdir=/$folder,upperdir=/mnt/$folder,workdir=/mnt/$folder.work none /$folder
done
dpkg --force-depends --remove pigz tini >/dev/null
"#;

/// Killed while apt-get installs, `ci` lets it finish.
const KILLED: &str = r#"
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

/// What a dpkg leaves that was cut off: then apt-get refuses all work.
const CUT_OFF: &str = r#"
touch /var/lib/dpkg/updates/0001
apt-get install --yes pigz && exit 1
"$CI" engine up
"$CI" engine down
test -z "$(dpkg --audit)"
command -v pigz
"#;

fn with_packages(script: &str) {
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
fn an_installation_goes_on_to_its_end_when_ci_is_killed() {
    with_packages(KILLED);
}

#[test]
fn packages_that_were_cut_off_once_are_put_right() {
    with_packages(CUT_OFF);
}
