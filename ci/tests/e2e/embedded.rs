//! The embedded engine: it comes up, survives what happens to it, and leaves nothing behind.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Ci, Outcome, Project, TEST_RUNS, pause, whole_machine};
use crate::provisioned::provisioned;

/// A cache directory of the test's own, with the programs and stand-ins that were built already.
pub struct Machine {
    cache: tempfile::TempDir,
    programs: PathBuf,
    /// An engine that is everybody's, which stays.
    pub everybodys: String,
}

impl Machine {
    pub fn new() -> Self {
        let shared = provisioned();
        let cache = short_folder();
        let programs = shared.copied_to(cache.path());
        Self {
            cache,
            programs,
            everybodys: shared.engine,
        }
    }

    /// One whose engine has pulled the toolchain's image before, which takes seconds, and has done nothing else.
    pub fn pulled() -> Self {
        let machine = Self::new();
        machine.has_only_pulled();
        machine
    }

    /// Gives the engine, which must not run, the state of one that has only pulled the toolchain's image.
    pub fn has_only_pulled(&self) {
        let state = self.programs.join("state");
        if state.exists() {
            std::fs::remove_dir_all(&state).unwrap();
        }
        copy(&["-a"], &provisioned().pulled(), &state);
    }

    pub fn cache(&self) -> &Path {
        self.cache.path()
    }

    /// The engine's folder.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// From now on the stand-ins are this machine's own.
    fn owns_its_stand_ins(&self) {
        let own = self.cache.path().join("stand-ins");
        let everybodys = std::fs::read_link(&own).unwrap();
        std::fs::remove_file(&own).unwrap();
        std::fs::create_dir(&own).unwrap();
        for entry in std::fs::read_dir(everybodys).unwrap().flatten() {
            // Nobody writes into a stand-in: the names are enough.
            if !entry.file_name().to_string_lossy().starts_with('.') {
                symlink(entry.path(), own.join(entry.file_name())).unwrap();
            }
        }
    }

    /// A call with this machine's cache directory.
    pub fn here(&self, ci: Ci) -> Ci {
        ci.env("LAB_CI_CACHE_DIR", self.cache.path().to_str().unwrap())
    }

    pub fn ci(&self, arguments: &[&str]) -> Ci {
        self.here(Ci::new(self.cache.path(), arguments))
    }

    /// A call in a project, on the embedded engine.
    pub fn ci_in(&self, project: &Project, arguments: &[&str]) -> Ci {
        self.here(project.ci(arguments))
            .env("LAB_CI_ENGINE", "embedded")
    }

    fn status(&self) -> Value {
        status(self.ci(&["engine", "status"]))
    }

    /// The engine's own process.
    fn engine(&self) -> i64 {
        self.status()["pid"].as_i64().unwrap()
    }

    fn up(&self) -> PathBuf {
        let up = self.ci(&["engine", "up"]).run().exits(0);
        PathBuf::from(up.stdout.trim().strip_prefix("unix://").unwrap())
    }

    /// A gate on the engine, which proves that it works.
    fn works(&self) {
        let project = Project::new("embedded");
        self.ci_in(&project, &["fmt"]).run().exits(0);
    }

    /// Ends the engine, and finds nothing of it on this machine.
    pub fn down(&self) -> Outcome {
        let network = std::fs::read(self.programs.join("run/network.json")).unwrap();
        let network: Value = serde_json::from_slice(&network).unwrap();
        let name = network["name"].as_str().unwrap();
        let range = format!(" 10.{}.", network["subnet"]);
        let before = std::fs::read_to_string("/etc/resolv.conf").unwrap();
        let down = self.ci(&["engine", "down"]).run().exits(0);

        let links = said("ip", &["-oneline", "link"]);
        assert!(!links.contains(name), "{name} is left: {links}");
        let rules = said("iptables-save", &[]);
        assert!(
            !rules.contains(name) && !rules.contains(&range),
            "{name} is left: {rules}"
        );
        let groups = said("find", &["/sys/fs/cgroup", "-type", "d", "-name", name]);
        assert_eq!(groups, "", "control groups are left");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(
            !mounts.contains(self.cache.path().to_str().unwrap()),
            "{mounts}"
        );
        leaves_no_process(self.cache.path());
        let after = std::fs::read_to_string("/etc/resolv.conf").unwrap();
        assert_eq!(before, after);
        assert!(!self.programs.join("run").exists() && !self.programs.join("state/net").exists());
        assert_eq!(self.status()["pid"], Value::Null);
        down
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ci(&["engine", "down"]).run();
    }
}

/// A folder whose path leaves room for a socket's, which has at most 107 bytes.
///
/// It is in memory where there is enough: a new engine writes two gigabytes in a hundred thousand files, and syncs most of them.
pub fn short_folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let enough = statvfs(memory).is_ok_and(|it| {
        let free = it.blocks_available() * it.fragment_size();
        free > 8 << 30 && !it.flags().contains(FsFlags::ST_NOEXEC)
    });
    tempfile::Builder::new()
        .prefix("ci")
        .tempdir_in(if enough { memory } else { Path::new("/tmp") })
        .unwrap()
}

pub fn copy(how: &[&str], from: &Path, to: &Path) {
    let copied = Command::new("cp").args(how).arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

fn status(ci: Ci) -> Value {
    let status = ci.env("LAB_CI_FORMAT", "json").run().exits(0);
    serde_json::from_str(&status.stdout).unwrap()
}

/// The processes that a `ci` with this cache directory has started, or that belong to its engine: all of them inherit
/// the path.
pub fn processes_of(cache: &Path) -> Vec<String> {
    let cache = cache.to_str().unwrap();
    let read = |file: PathBuf| {
        let text = std::fs::read(file).unwrap_or_default();
        String::from_utf8_lossy(&text).replace('\0', " ")
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.to_string_lossy()
                .parse::<u32>()
                .is_ok_and(|id| id != std::process::id())
        })
        .map(|entry| {
            (
                read(entry.path().join("environ")),
                read(entry.path().join("cmdline")),
            )
        })
        .filter(|(environment, line)| environment.contains(cache) || line.contains(cache))
        .map(|(environment, line)| {
            let engines = if environment.contains("ENGINE_RUN=") {
                "engine: "
            } else {
                ""
            };
            format!("{engines}{line}")
        })
        .collect()
}

/// A group's guard ends a moment after the `ci` that has started it.
pub fn leaves_no_process(cache: &Path) {
    let begun = Instant::now();
    loop {
        let left = processes_of(cache);
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{left:?}");
        pause(Duration::from_millis(50));
    }
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn signal(pid: i64, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

/// For a process that may end by itself meanwhile, as the engine's helpers do.
fn signal_if_there(pid: i64, signal: Signal) {
    match kill(Pid::from_raw(pid.try_into().unwrap()), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("{pid}: {error}"),
    }
}

#[test]
fn it_comes_up_once_survives_a_kill_and_goes_away_without_a_trace() {
    let machine = Machine::new();
    assert_eq!(machine.status()["healthy"], false);

    let first = machine.ci(&["engine", "up"]).run().exits(0);
    let second = machine
        .ci(&["engine", "up"])
        .run()
        .exits(0)
        .says("was running");
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(machine.status()["healthy"], true);

    // Killed, it leaves a stale socket and its link behind.
    let pid = machine.engine();
    signal(pid, Signal::SIGKILL);
    let begun = Instant::now();
    // The kernel ends what is in its namespace a moment later.
    while machine.status()["healthy"] == true {
        assert!(begun.elapsed() < Duration::from_secs(20), "it lives on");
        std::thread::sleep(Duration::from_millis(20));
    }
    let third = machine.ci(&["engine", "up"]).run().exits(0).says("started");
    assert_eq!(first.stdout, third.stdout);
    assert_ne!(machine.engine(), pid);
    machine.works();
    machine.down();
    machine
        .ci(&["engine", "down"])
        .run()
        .exits(0)
        .says("no engine was running");
}

/// A network namespace in which nobody else is: what is there before and after has to be the same.
const ALONE: &str = r#"
ip link set lo up
ip link add lab0 type veth peer name lab1
ip addr add 192.0.2.77/24 dev lab0
ip link set lab0 up
ip link set lab1 up
ip route add default dev lab0
echo $1 >/proc/sys/net/ipv4/ip_forward
if [ $2 = bridge ]; then ip link add other0 type bridge; fi
picture() {
    ip -oneline link | cut -d: -f2
    iptables-save | sed '/^#/d; s/ \[.*//'
    cat /proc/sys/net/ipv4/ip_forward /etc/resolv.conf
    ls -d /run/infrastructure-lab-ci*.$(readlink /proc/self/ns/net | tr -dc 0-9) 2>&1 || true
    # What other tests have mounted goes with their folders, here too.
    awk -v own="$LAB_CI_CACHE_DIR" 'index($2, own) == 1 || $2 !~ "^(/tmp|/dev/shm)/" { print $2, $3 }' /proc/self/mounts
}
# The tables are there from the first rule on.
for table in filter nat; do
    iptables --table $table --new-chain first
    iptables --table $table --delete-chain first
done
picture >$3/before
"$CI" engine up
test $(cat /proc/sys/net/ipv4/ip_forward) = 1 || sleep 1
cat /proc/sys/net/ipv4/ip_forward >$3/during
# Killed and started again: what was before the first start counts.
kill -9 $(cut -d' ' -f1 "$4/run/process" | head -n 1)
"$CI" engine up
"$CI" engine down
picture >$3/after
"#;

#[test]
fn a_host_that_forwards_nothing_forwards_nothing_afterwards() {
    let machine = Machine::new();
    let notes = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read_to_string(notes.path().join(name)).unwrap();
    for (forwards, others, after) in [("0", "none", "0"), ("1", "none", "1"), ("0", "bridge", "1")]
    {
        let output = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private"])
            .args(["sh", "-euc", ALONE, "sh", forwards, others])
            .arg(notes.path())
            .arg(machine.programs())
            .env("CI", env!("CARGO_BIN_EXE_ci"))
            .env("LAB_CI_CACHE_DIR", machine.cache())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert_eq!(read("during"), "1\n", "{said}");
        let expected = if forwards == after {
            read("before")
        } else {
            // Whoever has a bridge needs it.
            read("before").replacen("\n0\n", "\n1\n", 1)
        };
        assert_eq!(expected, read("after"), "{forwards} {others}: {said}");
    }
}

#[test]
fn a_second_start_takes_at_most_three_seconds() {
    let _alone = whole_machine();
    let machine = Machine::new();
    machine.up();
    let best = (0..3)
        .map(|_| {
            machine.down();
            let begun = Instant::now();
            machine.up();
            begun.elapsed()
        })
        .min()
        .unwrap();
    assert!(best < Duration::from_secs(3), "{best:?}");
}

#[test]
fn two_that_start_it_at_once_share_it() {
    let machine = Machine::new();
    let children: Vec<_> = (0..3)
        .map(|_| {
            let mut command = machine.ci(&["engine", "up"]).into_command();
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs: Vec<_> = children
        .into_iter()
        .map(|child| child.wait_with_output().unwrap())
        .collect();
    let started = outputs
        .iter()
        .filter(|output| String::from_utf8_lossy(&output.stderr).contains("started"))
        .count();
    assert!(
        outputs.iter().all(|output| output.status.success()),
        "{outputs:?}"
    );
    assert!(
        outputs
            .windows(2)
            .all(|pair| pair[0].stdout == pair[1].stdout),
        "{outputs:?}"
    );
    assert_eq!(started, 1, "{outputs:?}");
}

/// A call of the real binary as nobody.
struct Nobody {
    folder: tempfile::TempDir,
}

impl Nobody {
    fn new() -> Self {
        let folder = short_folder();
        std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();
        // Where that user can run it.
        std::fs::copy(env!("CARGO_BIN_EXE_ci"), folder.path().join("ci")).unwrap();
        Self { folder }
    }

    fn runs(&self, arguments: &[&str], cache: &Path) -> Outcome {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(self.folder.path().join("ci"))
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("LAB_CI_CACHE_DIR", cache)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Outcome {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            report: Value::Null,
        }
    }
}

#[test]
fn its_sockets_and_folders_are_the_owners_alone() {
    let machine = Machine::new();
    let socket = machine.up();
    for path in [&socket, socket.parent().unwrap()] {
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
    }
    let nobody = Nobody::new();
    for command in ["up", "down", "status", "prune"] {
        nobody
            .runs(&["engine", command], machine.cache())
            .exits(3)
            .says("belongs to another user")
            .says("LAB_CI_CACHE_DIR");
    }
    assert_eq!(machine.status()["healthy"], true);

    // A project of that user's, which is what git insists on.
    let project = Project::new("embedded-nobody");
    let own = nobody.folder.path();
    copy(&["-a"], &project.path().join("."), own);
    said("chown", &["-R", "65534:65534", own.to_str().unwrap()]);
    nobody
        .runs(
            &["fmt", "--engine", &format!("unix://{}", socket.display())],
            &nobody.folder.path().join("cache"),
        )
        .exits(3)
        .says("Permission denied");
}

#[test]
fn a_cache_directory_that_others_have_a_hand_in_is_refused() {
    let nobody = Nobody::new();
    let folder = short_folder();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.path(), open).unwrap();
    for (cache, words) in [
        (nobody.folder.path(), "belongs to another user"),
        (folder.path(), "others can write"),
    ] {
        Ci::new(Path::new("/"), &["engine", "up"])
            .env("LAB_CI_CACHE_DIR", cache.to_str().unwrap())
            .run()
            .exits(3)
            .says(words);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Lets the test say that it runs, and then do something before it passes.
fn test_does(project: &Project, what: &str) {
    project.test_does(&format!("{TEST_RUNS}\n        {what}"));
    project.commit("a test that does more");
}

/// A run whose test is running.
struct Busy {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Busy {
    fn new(ci: Ci) -> Self {
        let mut child = ci
            .into_command()
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut busy = Self {
            child,
            stderr,
            said: String::new(),
        };
        while !busy.said.contains("the test runs") {
            let read = busy.stderr.read_line(&mut busy.said).unwrap();
            assert_ne!(read, 0, "it ended:\n{}", busy.said);
        }
        busy
    }

    /// Its exit code, and what it said.
    fn ends(mut self) -> (Option<i32>, String) {
        self.stderr.read_to_string(&mut self.said).unwrap();
        (
            self.child.wait().unwrap().code(),
            std::mem::take(&mut self.said),
        )
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // It has ended already, where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stops the engine and all that runs below it, which it names. A parent is stopped before its children are listed, so that
/// none is born unseen.
fn freezes(machine: &Machine) -> Vec<i64> {
    let mut stopped = vec![machine.engine()];
    signal(stopped[0], Signal::SIGSTOP);
    let mut at = 0;
    while at < stopped.len() {
        let below = said("ps", &["-o", "pid=", "--ppid", &stopped[at].to_string()]);
        for pid in below.split_whitespace().map(|pid| pid.parse().unwrap()) {
            signal_if_there(pid, Signal::SIGSTOP);
            stopped.push(pid);
        }
        at += 1;
    }
    stopped
}

/// A project whose test takes so long.
fn sleeps(name: &str, seconds: u32) -> Project {
    let project = Project::new(name);
    let sleep = format!("std::thread::sleep(std::time::Duration::from_secs({seconds}));");
    test_does(&project, &sleep);
    project
}

#[test]
fn an_engine_that_pauses_does_not_end_the_run() {
    let machine = Machine::pulled();
    let project = sleeps("embedded-pauses", 2);
    let run = Busy::new(machine.ci_in(&project, &["test", "-v"]));
    let stopped = freezes(&machine);
    pause(Duration::from_secs(12));
    for pid in stopped {
        signal_if_there(pid, Signal::SIGCONT);
    }
    let (code, said) = run.ends();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn an_engine_that_dies_ends_the_run_and_the_next_one_starts_it_anew() {
    let machine = Machine::pulled();
    let project = sleeps("embedded-dies", 3600);
    let run = Busy::new(machine.ci_in(&project, &["test", "-v"]));
    let begun = Instant::now();
    signal(machine.engine(), Signal::SIGKILL);
    let (code, said) = run.ends();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("engine"), "{said}");
    assert!(
        begun.elapsed() < Duration::from_secs(40),
        "{:?}",
        begun.elapsed()
    );

    machine.works();
}

#[test]
fn an_engine_that_freezes_ends_the_run() {
    let machine = Machine::pulled();
    let project = sleeps("embedded-freezes", 3600);
    let run = Busy::new(machine.ci_in(&project, &["test", "-v"]));
    let begun = Instant::now();
    freezes(&machine);
    let (code, said) = run.ends();
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("the engine does not answer any more"),
        "{said}"
    );
    assert!(said.contains("ci engine down"), "{said}");
    assert!(
        begun.elapsed() < Duration::from_secs(90),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(machine.status()["healthy"], false);
    // With a container in the middle of its work.
    machine.down();
}

#[test]
fn ten_runs_of_two_checkouts_at_once_share_one_engine() {
    let machine = Machine::pulled();
    // The first takes the stand-ins into the engine.
    machine.works();
    let projects = ["embedded-left", "embedded-right"].map(Project::new);
    let children: Vec<_> = (0..10)
        .map(|number| {
            let reports = format!("target/ci-{number}");
            machine
                .ci_in(&projects[number % 2], &["fmt", "--report-dir", &reports])
                .into_command()
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    let engines = said("ps", &["-eo", "args"])
        .lines()
        .filter(|line| line.starts_with(machine.programs().join("bin/engine").to_str().unwrap()))
        .count();
    assert_eq!(engines, 1);
    machine.down();
}

#[test]
fn two_users_run_an_engine_each_and_down_ends_only_ones_own() {
    let one = Machine::pulled();
    let two = Machine::pulled();
    let other = |arguments: &[&str]| two.ci(arguments);
    let starting = other(&["engine", "up"]).into_command().spawn().unwrap();
    one.up();
    assert!(starting.wait_with_output().unwrap().status.success());
    one.down();
    assert_eq!(status(other(&["engine", "status"]))["healthy"], true);
    let project = Project::new("embedded-other");
    two.ci_in(&project, &["fmt"]).run().exits(0);
    other(&["engine", "down"]).run().exits(0).says("ended 1");
    leaves_no_process(two.cache());
}

#[test]
fn engines_of_other_versions_do_no_harm_and_down_ends_them_too() {
    let machine = Machine::new();
    machine.owns_its_stand_ins();
    machine.up();
    // As if another version had been running here: another folder, and so another network.
    let older = machine.cache().join("dagger-engine-0.19.9-0123456789ab");
    std::fs::rename(machine.programs(), &older).unwrap();
    std::fs::create_dir(machine.programs()).unwrap();
    copy(&["-a"], &older.join("bin"), machine.programs());
    let file = older.join("run/network.json");
    let network = std::fs::read_to_string(&file).unwrap();
    // Its name comes from the path that it was started at.
    machine
        .ci(&["engine", "down"])
        .run()
        .exits(0)
        .says("ended 1");
    std::fs::create_dir(older.join("run")).unwrap();
    std::fs::write(&file, network).unwrap();
    std::fs::write(older.join("run/engine.sock"), "stale").unwrap();
    // That one is dead and has left things; this one starts beside it.
    machine.up();
    machine.works();
    machine.down();
    assert!(!older.join("run").exists());
    machine
        .ci(&["engine", "prune"])
        .run()
        .exits(0)
        .says("removed dagger-engine-0.19.9");
    assert!(!older.exists());
    machine.up();
}

#[test]
fn prune_frees_what_can_be_made_again_and_leaves_what_is_in_use() {
    let machine = Machine::pulled();
    machine.owns_its_stand_ins();
    let replaced = machine.cache().join("stand-ins/crane-0.0.1-000000000000");
    std::fs::create_dir_all(replaced.join("root")).unwrap();
    std::fs::write(replaced.join("root/file"), [0; 4096]).unwrap();
    // On an empty machine nobody has made a newer one yet.
    std::fs::create_dir(machine.cache().join("stand-ins/crane-0.0.2-000000000000")).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(86400);
    std::fs::File::open(&replaced)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    let unfinished = machine
        .cache()
        .join("stand-ins/.rust-1.0.0-00.unfinished-killed");
    std::fs::create_dir(&unfinished).unwrap();
    std::fs::write(unfinished.join("file"), [0; 4096]).unwrap();

    let project = Project::new("embedded-pruned");
    test_does(
        &project,
        "std::thread::sleep(std::time::Duration::from_secs(15));",
    );
    let run = Busy::new(machine.ci_in(&project, &["test", "-v"]));
    let before = machine.status();
    assert!(
        before["cache"]["entries"].as_u64().unwrap() > 0,
        "{before:#}"
    );
    assert!(
        before["cache"]["bytes"].as_u64().unwrap() > 100 << 20,
        "{before:#}"
    );
    let names = |status: &Value| -> Vec<String> {
        let kept = status["kept"].as_array().unwrap();
        kept.iter()
            .map(|kept| kept["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(
        names(&before)
            .iter()
            .any(|name| name == "stand-ins/crane-0.0.1-000000000000")
    );
    machine
        .ci(&["engine", "prune"])
        .run()
        .exits(0)
        .says("removed stand-ins/crane-0.0.1-000000000000")
        .says("removed unfinished work");
    assert!(!replaced.exists() && !unfinished.exists());
    let (code, said) = run.ends();
    assert_eq!(code, Some(0), "{said}");

    machine
        .ci(&["engine", "prune"])
        .run()
        .exits(0)
        .says("freed ");
    let after = machine.status();
    assert!(
        after["cache"]["bytes"].as_u64() < before["cache"]["bytes"].as_u64(),
        "{before:#} {after:#}"
    );
    machine.works();
    machine.down();
    assert!(machine.status()["state_bytes"].as_u64().unwrap() > 100 << 20);
    machine.ci(&["engine", "prune"]).run().exits(0);
    assert_eq!(machine.status()["state_bytes"], 0);
    machine.works();
}

#[test]
fn a_damaged_program_is_built_anew() {
    let machine = Machine::new();
    let program = machine.programs().join("bin/engine");
    let length = program.metadata().unwrap().len();
    let file = std::fs::File::options().write(true).open(&program).unwrap();
    file.set_len(length / 2).unwrap();
    drop(file);
    machine.ci(&["engine", "up"]).run().exits(0).says("damaged");
    assert_eq!(program.metadata().unwrap().len(), length);
}

#[test]
fn a_half_downloaded_client_is_not_trusted() {
    let machine = Machine::new();
    let downloads = tempfile::tempdir().unwrap();
    // Where the SDK's own downloader puts it, and looks for it.
    let folder = downloads.path().join("dagger");
    std::fs::create_dir(&folder).unwrap();
    let whole = std::fs::read(machine.programs().join("bin/dagger")).unwrap();
    let half = folder.join(format!("dagger-{}", common::pins::DAGGER));
    std::fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    std::fs::set_permissions(&half, std::fs::Permissions::from_mode(0o700)).unwrap();
    // Only the client is needed for an engine elsewhere.
    std::fs::remove_dir_all(machine.programs()).unwrap();
    let project = Project::new("embedded-download");
    machine
        .here(project.ci(&["fmt", "--engine", &machine.everybodys]))
        .env("XDG_CACHE_HOME", downloads.path().to_str().unwrap())
        .env("GOCACHE", said("go", &["env", "GOCACHE"]).trim())
        .run()
        .exits(0);
}

/// A cache directory on a small disk of its own, which nobody else sees; then on a larger one.
const SMALL_DISK: &str = r#"
mount -t tmpfs -o size=64m,mode=0700 none "$LAB_CI_CACHE_DIR"
code=0
"$CI" engine up || code=$?
test $code = 3
test ! -e "$LAB_CI_CACHE_DIR"/dagger-engine-*/bin
mount -o remount,size=2g "$LAB_CI_CACHE_DIR"
"$CI" engine up
ls -A "$LAB_CI_CACHE_DIR"/dagger-engine-* | grep unfinished && exit 1
"$CI" engine down
"#;

#[test]
fn a_disk_that_is_full_while_the_engine_is_built_is_called_full_and_nothing_half_made_counts() {
    let cache = short_folder();
    Ci::new(Path::new("/"), &["--version"]).run().exits(0);
    let output = in_own_mounts(SMALL_DISK, cache.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("the disk is full") && said.contains("LAB_CI_CACHE_DIR"),
        "{said}"
    );
}

/// The engine's state on a small disk, which a run fills.
const SMALL_STATE: &str = r#"
mkdir -p "$STATE"
mount -t tmpfs -o size=150m,mode=0700 none "$STATE"
code=0
cd "$PROJECT"
"$CI" fmt --engine embedded || code=$?
test $code = 3
"$CI" engine down
umount "$STATE"
"$CI" fmt --engine embedded
"$CI" engine down
"#;

#[test]
fn a_disk_that_is_full_while_a_run_goes_on_is_called_full() {
    let machine = Machine::new();
    let project = Project::new("embedded-full");
    let script = format!(
        "STATE={}/state\nPROJECT='{}'\n{SMALL_STATE}",
        machine.programs().display(),
        project.path().display()
    );
    let output = in_own_mounts(&script, machine.cache());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("disk is full"), "{said}");
}

fn in_own_mounts(script: &str, cache: &Path) -> Output {
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc", script])
        .env("CI", env!("CARGO_BIN_EXE_ci"))
        .env("LAB_CI_CACHE_DIR", cache)
        .env("LAB_CI_REPOSITORY", "e2e/embedded-disk")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// There is no engine to be had, and these are the choices.
#[track_caller]
fn is_told(output: Output, choices: &[&str]) {
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    for choice in choices {
        assert!(said.contains(choice), "{choice} is not in: {said}");
    }
}

#[test]
fn who_is_not_root_is_told_the_choices() {
    let nobody = Nobody::new();
    nobody
        .runs(&["engine", "up"], &nobody.folder.path().join("cache"))
        .exits(3)
        .says("root")
        .says("container runtime")
        .says("--engine");
}

#[test]
fn who_has_no_go_is_told_the_choices() {
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    // All that the engine needs but Go, and nothing to get Go with.
    for name in [
        "runc", "iptables", "ip", "dnsmasq", "pigz", "git", "tini", "unshare",
    ] {
        std::fs::write(programs.join(name), "#!/bin/sh\n").unwrap();
        let mode = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(programs.join(name), mode).unwrap();
    }
    // Go is found where its own installer puts it, too: there is none in a mount namespace without that folder.
    let hidden = "/usr/bin/mkdir -p /usr/local/go && /usr/bin/mount -t tmpfs none /usr/local/go && exec \"$0\" engine up";
    let output = Command::new("/usr/bin/unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "/bin/sh",
            "-c",
            hidden,
        ])
        .arg(env!("CARGO_BIN_EXE_ci"))
        .env_clear()
        .env("PATH", programs)
        .env("LAB_CI_CACHE_DIR", folder.path().join("cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    is_told(output, &["Go ", "container runtime", "--engine URL"]);
}
