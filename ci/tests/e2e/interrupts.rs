//! Provisioning is killed and interrupted at random moments, and nothing half-made is ever taken for whole.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::embedded::{Machine, processes_of, short_folder};
use crate::harness::{Ci, Outcome, Project};

/// Numbers that look random; the seed brings the same ones again.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed =
            std::env::var("SEED").map_or(now.unwrap().as_secs(), |seed| seed.parse().unwrap());
        note(&format!("SEED={seed} brings the same moments again"));
        Self(seed)
    }

    /// One moment in each of `count` equal parts of one.
    fn spread(&mut self, count: u32) -> Vec<f64> {
        (0..count)
            .map(|part| {
                self.0 = self
                    .0
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let within = f64::from((self.0 >> 40) as u32) / f64::from(1 << 24);
                (f64::from(part) + within) / f64::from(count)
            })
            .collect()
    }
}

/// Interrupts what `start` starts, at as many moments of the time that it takes, by turns with SIGKILL and SIGINT.
fn interrupted(
    count: u32,
    mut whole: Duration,
    cache: &Path,
    start: impl Fn() -> Child,
    check: impl Fn(),
) {
    for (number, moment) in Moments::new().spread(count).into_iter().enumerate() {
        let signal = [Signal::SIGKILL, Signal::SIGINT][number % 2];
        // What was done before its moment came has shown how long it takes now.
        while let Some(done) = interrupt(start(), whole.mul_f64(moment), signal, cache) {
            whole = done;
            check();
        }
        check();
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the harness shows it where a test fails"
)]
fn note(text: &str) {
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

#[test]
fn starting_the_engine_may_be_interrupted_at_any_moment() {
    let machine = Machine::new();
    let name = machine.programs().file_name().unwrap();
    let cache = short_folder();
    let programs = cache.path().join(name);
    let ci = |command: &str| {
        Ci::new(cache.path(), &["engine", command])
            .env("LAB_CI_CACHE_DIR", cache.path().to_str().unwrap())
    };
    let begun = Instant::now();
    ci("up").run().exits(0);
    let whole = begun.elapsed();
    ci("down").run().exits(0);
    note(&format!("an undisturbed start takes {whole:?}"));
    are_whole(&programs.join("bin"), &machine.programs().join("bin"));

    let up = || {
        // What interrupted ones have left stays for the next; what is whole is made anew.
        for done in ["bin", "state"] {
            let _ = fs::remove_dir_all(programs.join(done));
        }
        start(ci("up"))
    };
    interrupted(25, whole, cache.path(), up, || {
        if programs.join("bin").exists() {
            are_whole(&programs.join("bin"), &machine.programs().join("bin"));
        }
        ci("down").run().exits(0);
        assert_eq!(processes_of(cache.path()), Vec::<String>::new());
    });
    ci("up").run().exits(0);
    assert_eq!(unfinished(&programs), Vec::<PathBuf>::new());
    built_nothing(&ci("up").run().exits(0).says("was running"));
    ci("down").run().exits(0);
    built_nothing(&ci("up").run().exits(0).says("started"));
    ci("down").run().exits(0);
    are_whole(&programs.join("bin"), &machine.programs().join("bin"));
}

#[test]
fn making_the_stand_ins_may_be_interrupted_at_any_moment() {
    let machine = Machine::new();
    let cache = short_folder();
    let client = machine.programs().join("bin/dagger");
    let stand_ins = cache.path().join("stand-ins");
    let project = Project::new("interrupts");
    let ci = || {
        project
            .ci(&["fmt", "--engine", &machine.everybodys])
            .env("LAB_CI_CACHE_DIR", cache.path().to_str().unwrap())
            .env("_EXPERIMENTAL_DAGGER_CLI_BIN", client.to_str().unwrap())
    };
    let begun = Instant::now();
    ci().run().exits(0);
    let whole = begun.elapsed();
    note(&format!("undisturbed stand-ins take {whole:?}"));
    // A machine that is busy otherwise must not make this test one of half an hour.
    let whole = whole.min(Duration::from_secs(60));
    let fmt = || {
        for done in fs::read_dir(&stand_ins).into_iter().flatten().flatten() {
            if !done.file_name().to_string_lossy().starts_with('.') {
                fs::remove_dir_all(done.path()).unwrap();
            }
        }
        start(ci())
    };
    interrupted(6, whole, cache.path(), fmt, || {});
    // Whatever has its name by now is whole: a gate passes in it.
    ci().run().exits(0);
    assert_eq!(unfinished(&stand_ins), Vec::<PathBuf>::new());
    built_nothing(&ci().run().exits(0));
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
    std::thread::sleep(Duration::from_secs(2));
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
