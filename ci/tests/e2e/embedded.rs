//! The embedded engine: it starts, recovers from faults, and leaves nothing behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::Pid;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::harness::{Ci, Outcome, Project, TEST_RUNS, lock_machine, sleep};
use crate::installed::write_executable;
use crate::provisioned::{Toolchain, provision, toolchain_folder};

/// A separate cache directory with the programs and stand-ins that were built before. Its engine is stopped on drop.
pub struct Machine {
    cache: tempfile::TempDir,
    programs: PathBuf,
    /// The address of the engine that all tests share.
    pub shared_engine: String,
}

impl Machine {
    pub fn new() -> Self {
        Self::in_folder(short_folder())
    }

    fn in_folder(cache: tempfile::TempDir) -> Self {
        let shared = provision();
        let programs = shared.copy_to(cache.path());
        Self {
            cache,
            programs,
            shared_engine: shared.engine,
        }
    }

    /// A machine whose engine has only pulled the toolchain's image, which takes seconds.
    pub fn pulled() -> Self {
        let machine = Self::new();
        machine.reset_to_pulled_image();
        machine
    }

    /// Resets the state of the engine, which must not run, to one that has only pulled the toolchain's image.
    pub fn reset_to_pulled_image(&self) {
        let state = self.programs.join("state");
        if state.exists() {
            std::fs::remove_dir_all(&state).unwrap();
        }
        provision().link_pulled_state_to(&state);
    }

    pub fn cache(&self) -> &Path {
        self.cache.path()
    }

    /// The folder of the engine's programs and state.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Replaces the shared folder of stand-ins with a separate one.
    fn separate_stand_ins(&self) {
        let own = self.cache.path().join("stand-ins");
        let shared = std::fs::read_link(&own).unwrap();
        std::fs::remove_file(&own).unwrap();
        std::fs::create_dir(&own).unwrap();
        let toolchain = toolchain_folder(&shared);
        for entry in std::fs::read_dir(shared).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // A newer one would count as the replacement of the one that is used.
            let is_another = name.starts_with("rust-") && toolchain != Some(entry.path());
            // Stand-ins are read-only, so links are sufficient.
            if !name.starts_with('.') && !is_another {
                symlink(entry.path(), own.join(entry.file_name())).unwrap();
            }
        }
    }

    /// Gives a call this cache directory.
    pub fn with_cache(&self, ci: Ci) -> Ci {
        ci.env("LAB_CI_CACHE_DIR", self.cache.path().to_str().unwrap())
    }

    pub fn ci(&self, arguments: &[&str]) -> Ci {
        self.with_cache(Ci::new(self.cache.path(), arguments))
    }

    /// A call in a project with the embedded engine.
    pub fn ci_in(&self, project: &Project, arguments: &[&str]) -> Ci {
        self.with_cache(project.ci(arguments))
            .env("LAB_CI_ENGINE", "embedded")
    }

    fn status(&self) -> Value {
        status(self.ci(&["engine", "status"]))
    }

    /// The process ID of the engine.
    fn engine_pid(&self) -> i64 {
        self.status()["pid"].as_i64().unwrap()
    }

    /// The name and the address range of the engine's network.
    fn network(&self) -> Value {
        let network = std::fs::read(self.programs.join("run/network.json")).unwrap();
        serde_json::from_slice(&network).unwrap()
    }

    /// The disk usage of the engine's state.
    fn state_bytes(&self) -> u64 {
        common::provision::size_of(&self.programs.join("state"))
    }

    fn up(&self) -> PathBuf {
        let up = self.ci(&["engine", "up"]).run().exits(0);
        PathBuf::from(up.stdout.trim().strip_prefix("unix://").unwrap())
    }

    /// Asserts that a step passes on the engine.
    fn assert_works(&self) {
        let project = Project::new("embedded");
        self.ci_in(&project, &["fmt"]).run().exits(0);
    }

    /// Stops the engine, and asserts that nothing of it is left on this machine.
    pub fn down(&self) -> Outcome {
        let network = self.network();
        let name = network["name"].as_str().unwrap();
        let range = format!(" 10.{}.", network["subnet"]);
        let before = std::fs::read_to_string("/etc/resolv.conf").unwrap();
        let down = self.ci(&["engine", "down"]).run().exits(0);

        let links = stdout_of("ip", &["-oneline", "link"]);
        assert!(!links.contains(name), "{name} is left: {links}");
        let rules = stdout_of("iptables-save", &[]);
        assert!(
            !rules.contains(name) && !rules.contains(&range),
            "{name} is left: {rules}"
        );
        let groups = stdout_of("find", &["/sys/fs/cgroup", "-type", "d", "-name", name]);
        assert_eq!(groups, "", "control groups are left");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(
            !mounts.contains(self.cache.path().to_str().unwrap()),
            "{mounts}"
        );
        assert_no_process_left(self.cache.path());
        let after = std::fs::read_to_string("/etc/resolv.conf").unwrap();
        assert_eq!(before, after);
        assert!(!self.programs.join("run").exists() && !self.programs.join("state/net").exists());
        assert_eq!(self.status()["pid"], Value::Null);
        down
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.cache.path().exists() {
            self.ci(&["engine", "down"]).run();
        }
    }
}

/// A temporary folder with a short path, because the path of a socket has at most 107 bytes.
///
/// The folder is in memory if there is enough: a new engine writes two gigabytes in a hundred thousand files, and syncs most of
/// them.
pub fn short_folder() -> tempfile::TempDir {
    short_folder_that(|_| true)
}

/// A [`short_folder`] with an accepted path.
fn short_folder_that(accept: impl Fn(&Path) -> bool) -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let enough = statvfs(memory).is_ok_and(|it| {
        let free = it.blocks_available() * it.fragment_size();
        free > 8 << 30 && !it.flags().contains(FsFlags::ST_NOEXEC)
    });
    let parent = if enough { memory } else { Path::new("/tmp") };
    let create = || tempfile::Builder::new().prefix("ci").tempdir_in(parent);
    let folder = std::iter::repeat_with(|| create().unwrap())
        .find(|folder| accept(folder.path()))
        .unwrap();
    clean_up_after(std::process::id(), folder.path());
    folder
}

/// Waits in the background until the process ends. If the cache directory still exists then, stops its engine if there is one, and
/// removes the directory.
///
/// An interrupted test runs no destructors, and its engine, a daemon, is not in its process group.
pub fn clean_up_after(process: u32, cache: &Path) {
    // The path is neither an argument nor in the environment, because `processes_of` looks for it there.
    const SCRIPT: &str = r#"
        read -r cache
        tail --pid="$1" -f /dev/null
        [ -e "$cache" ] || exit 0
        LAB_CI_CACHE_DIR="$cache" "$2" engine down
        rm -rf --one-file-system "$cache"
    "#;
    let mut cleaner = Command::new("setsid")
        .args(["--fork", "sh", "-c", SCRIPT, "sh", &process.to_string()])
        .arg(env!("CARGO_BIN_EXE_ci"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    writeln!(cleaner.stdin.take().unwrap(), "{}", cache.display()).unwrap();
    assert!(cleaner.wait().unwrap().success());
}

pub fn copy(how: &[&str], from: &Path, to: &Path) {
    let copied = Command::new("cp").args(how).arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

fn status(ci: Ci) -> Value {
    let status = ci.env("LAB_CI_FORMAT", "json").run().exits(0);
    serde_json::from_str(&status.stdout).unwrap()
}

/// The command lines of the processes that a `ci` with this cache directory has started, and of its engine. All of them have the
/// path in their environment or arguments.
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
            let prefix = if environment.contains("ENGINE_RUN=") {
                "engine: "
            } else {
                ""
            };
            format!("{prefix}{line}")
        })
        .collect()
}

/// Asserts that all processes with this cache directory exit. The guard of a process group exits shortly after `ci`.
pub fn assert_no_process_left(cache: &Path) {
    let begun = Instant::now();
    loop {
        let left = processes_of(cache);
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{left:?}");
        sleep(Duration::from_millis(50));
    }
}

fn stdout_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn send_signal(pid: i64, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

/// Sends a signal to a process that may have exited meanwhile, such as the engine's helpers.
fn send_signal_if_alive(pid: i64, signal: Signal) {
    match kill(Pid::from_raw(pid.try_into().unwrap()), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("{pid}: {error}"),
    }
}

#[test]
fn interrupted_test_leaves_no_engine() {
    let machine = Machine::pulled();
    let mut test = Command::new("sleep").arg("300").spawn().unwrap();
    clean_up_after(test.id(), machine.cache());
    machine.up();
    assert!(!processes_of(machine.cache()).is_empty());

    test.kill().unwrap();
    test.wait().unwrap();

    let begun = Instant::now();
    while machine.cache().exists() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the folder is left"
        );
        sleep(Duration::from_millis(50));
    }
    assert_no_process_left(machine.cache());
}

#[test]
fn starts_once_recovers_from_a_kill_and_stops_without_a_trace() {
    let machine = Machine::new();
    assert_eq!(machine.status()["healthy"], false);

    let first = machine.ci(&["engine", "up"]).run().exits(0);
    let second = machine
        .ci(&["engine", "up"])
        .run()
        .exits(0)
        .says("already running");
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(machine.status()["healthy"], true);

    // A killed engine leaves a stale socket and its network interface behind.
    let pid = machine.engine_pid();
    send_signal(pid, Signal::SIGKILL);
    let begun = Instant::now();
    // The kernel kills the other processes of its namespace a moment later.
    loop {
        // On a busy machine the command itself takes long, after it has looked at the engine.
        let asked = begun.elapsed();
        if machine.status()["healthy"] == false {
            break;
        }
        assert!(
            asked < Duration::from_secs(20),
            "the engine is still healthy"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let third = machine
        .ci(&["engine", "up"])
        .run()
        .exits(0)
        .says("started")
        .says("so its cache is lost");
    assert_eq!(first.stdout, third.stdout);
    assert_ne!(machine.engine_pid(), pid);
    machine.assert_works();
    machine.down();
    machine
        .ci(&["engine", "down"])
        .run()
        .exits(0)
        .says("no engine was running");
}

/// Starts and stops an engine in a new network namespace, and records the state before and afterwards, which must be equal.
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
    for folder in /usr/bin /usr/sbin; do find -H $folder -maxdepth 1 -name '*tables*' -printf '%p %l %s %C@\n'; done | sort
    iptables-save | sed '/^#/d; s/ \[.*//'
    cat /proc/sys/net/ipv4/ip_forward /etc/resolv.conf
    ls -d /run/infrastructure-lab-ci*.$(readlink /proc/self/ns/net | tr -dc 0-9) 2>&1 || true
    # Skips mounts of other tests, which disappear with their folders.
    awk -v own="$LAB_CI_CACHE_DIR" 'index($2, own) == 1 || $2 !~ "^(/tmp|/dev/shm)/" { print $2, $3 }' /proc/self/mounts
}
# The tables exist only after the first rule.
for table in filter nat; do
    iptables --table $table --new-chain first
    iptables --table $table --delete-chain first
done
picture >$3/before
"$CI" engine up
test $(cat /proc/sys/net/ipv4/ip_forward) = 1 || sleep 1
cat /proc/sys/net/ipv4/ip_forward >$3/during
# After a kill and a second start, the state before the first start is restored, even without a record of the network.
kill -9 $(cut -d' ' -f1 "$4/run/process" | head -n 1)
if [ $1$2 = 0none ]; then rm "$4/run/network.json"; fi
"$CI" engine up
"$CI" engine down
# The kernel removes network namespaces, with their links, when it has time.
for try in $(seq 50); do ip -oneline link | grep -q ': veth' || break; sleep 0.1; done
picture >$3/after
"#;

/// Runs [`ALONE`] in a copy of the root file system in which /usr/sbin is a link to /usr/bin, as newer distributions have it.
const MERGED: &str = r#"
disk=$(mktemp -d)
mount -t tmpfs merged $disk
mkdir $disk/upper $disk/work $disk/root
mount -t overlay -o lowerdir=/,upperdir=$disk/upper,workdir=$disk/work merged $disk/root
cd $disk/root
for program in usr/sbin/*; do
    name=${program#usr/sbin/}
    # One of two programs with the same name is a link to the other.
    if [ -L $program ] && [ -e usr/bin/$name ]; then continue; fi
    mv --force $program usr/bin/
done
rm -r usr/sbin
ln -s bin usr/sbin
for folder in dev dev/shm proc sys tmp; do mount --rbind /$folder $folder; done
exec chroot . sh -euc "$ALONE" sh "$@"
"#;

#[test]
fn restores_the_network_and_the_programs_of_the_host() {
    let machine = Machine::new();
    let notes = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read_to_string(notes.path().join(name)).unwrap();
    for (script, forwards, others, after) in [
        (ALONE, "0", "none", "0"),
        (ALONE, "1", "none", "1"),
        (ALONE, "0", "bridge", "1"),
        (MERGED, "1", "none", "1"),
    ] {
        let output = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private"])
            .args(["sh", "-euc", script, "sh", forwards, others])
            .arg(notes.path())
            .env("ALONE", ALONE)
            .arg(machine.programs())
            .env("CI", env!("CARGO_BIN_EXE_ci"))
            .env("LAB_CI_CACHE_DIR", machine.cache())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert_eq!(read("during"), "1\n", "{stderr}");
        assert!(
            read("before").contains("/xtables-nft-multi "),
            "{}",
            read("before")
        );
        let expected = if forwards == after {
            read("before")
        } else {
            // Other bridges need forwarding.
            read("before").replacen("\n0\n", "\n1\n", 1)
        };
        assert_eq!(expected, read("after"), "{forwards} {others}: {stderr}");
    }
}

#[test]
fn starts_again_within_three_seconds() {
    let _alone = lock_machine();
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
fn concurrent_starts_share_one_engine() {
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

/// Runs the real binary as the user `nobody`.
struct Nobody {
    folder: tempfile::TempDir,
}

impl Nobody {
    fn new() -> Self {
        let folder = short_folder();
        std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();
        // That user has no access to the original binary.
        std::fs::copy(env!("CARGO_BIN_EXE_ci"), folder.path().join("ci")).unwrap();
        Self { folder }
    }

    fn run(&self, arguments: &[&str], cache: &Path) -> Outcome {
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
fn denies_other_users_access_to_the_engine() {
    let machine = Machine::new();
    let socket = machine.up();
    for path in [&socket, socket.parent().unwrap()] {
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
    }
    let nobody = Nobody::new();
    for command in ["up", "down", "status", "prune"] {
        nobody
            .run(&["engine", command], machine.cache())
            .exits(3)
            .says("belongs to another user")
            .says("LAB_CI_CACHE_DIR");
    }
    assert_eq!(machine.status()["healthy"], true);

    // The project must belong to that user, because git rejects others.
    let project = Project::new("embedded-nobody");
    let own = nobody.folder.path();
    copy(&["-a"], &project.path().join("."), own);
    stdout_of("chown", &["-R", "65534:65534", own.to_str().unwrap()]);
    nobody
        .run(
            &["fmt", "--engine", &format!("unix://{}", socket.display())],
            &nobody.folder.path().join("cache"),
        )
        .exits(3)
        .says("Permission denied");
}

#[test]
fn rejects_a_cache_directory_that_others_can_change() {
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

/// Lets the unit test announce its start and then run these statements.
fn extend_test(project: &Project, statements: &str) {
    project.extend_test(&format!("{TEST_RUNS}\n        {statements}"));
    project.commit("a longer test");
}

/// A run of `ci` whose unit test has started.
struct RunningCi {
    child: Child,
    stderr: BufReader<ChildStderr>,
    text: String,
}

impl RunningCi {
    fn new(ci: Ci) -> Self {
        let mut child = ci
            .into_command()
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut run = Self {
            child,
            stderr,
            text: String::new(),
        };
        while !run.text.contains("the test runs") {
            let read = run.stderr.read_line(&mut run.text).unwrap();
            assert_ne!(read, 0, "ci exited:\n{}", run.text);
        }
        run
    }

    /// Waits for the exit; returns exit code and standard error.
    fn wait(mut self) -> (Option<i32>, String) {
        self.stderr.read_to_string(&mut self.text).unwrap();
        (
            self.child.wait().unwrap().code(),
            std::mem::take(&mut self.text),
        )
    }
}

impl Drop for RunningCi {
    fn drop(&mut self) {
        // If the test passed, the process has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends SIGSTOP to the engine and all its descendants, and returns their process IDs. Each parent is stopped before its children
/// are listed, so that none is missed.
fn freeze(machine: &Machine) -> Vec<i64> {
    let mut stopped = vec![machine.engine_pid()];
    send_signal(stopped[0], Signal::SIGSTOP);
    let mut at = 0;
    while at < stopped.len() {
        let children = stdout_of("ps", &["-o", "pid=", "--ppid", &stopped[at].to_string()]);
        for pid in children.split_whitespace().map(|pid| pid.parse().unwrap()) {
            send_signal_if_alive(pid, Signal::SIGSTOP);
            stopped.push(pid);
        }
        at += 1;
    }
    stopped
}

/// A project whose unit test sleeps for so many seconds.
fn project_with_sleeping_test(name: &str, seconds: u32) -> Project {
    let project = Project::new(name);
    let statement = format!("std::thread::sleep(std::time::Duration::from_secs({seconds}));");
    extend_test(&project, &statement);
    project
}

#[test]
fn run_survives_an_engine_that_pauses() {
    let machine = Machine::pulled();
    let project = project_with_sleeping_test("embedded-pauses", 2);
    let run = RunningCi::new(machine.ci_in(&project, &["test", "-v"]));
    let stopped = freeze(&machine);
    sleep(Duration::from_secs(12));
    for pid in stopped {
        send_signal_if_alive(pid, Signal::SIGCONT);
    }
    let (code, stderr) = run.wait();
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn run_fails_when_the_engine_dies_and_the_next_run_restarts_it() {
    let machine = Machine::pulled();
    let project = project_with_sleeping_test("embedded-dies", 3600);
    let run = RunningCi::new(machine.ci_in(&project, &["test", "-v"]));
    let begun = Instant::now();
    send_signal(machine.engine_pid(), Signal::SIGKILL);
    let (code, stderr) = run.wait();
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("engine"), "{stderr}");
    assert!(
        begun.elapsed() < Duration::from_secs(40),
        "{:?}",
        begun.elapsed()
    );

    machine.assert_works();
}

#[test]
fn run_fails_when_the_engine_freezes() {
    let machine = Machine::pulled();
    let project = project_with_sleeping_test("embedded-freezes", 3600);
    let run = RunningCi::new(machine.ci_in(&project, &["test", "-v"]));
    let begun = Instant::now();
    freeze(&machine);
    let (code, stderr) = run.wait();
    assert_eq!(code, Some(3), "{stderr}");
    assert!(
        stderr.contains("the engine does not answer any more"),
        "{stderr}"
    );
    assert!(stderr.contains("ci engine down"), "{stderr}");
    assert!(
        begun.elapsed() < Duration::from_secs(90),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(machine.status()["healthy"], false);
    // A container is still running.
    machine.down();
}

#[test]
fn ten_concurrent_runs_share_one_engine() {
    let machine = Machine::pulled();
    // The first run imports the stand-ins into the engine.
    machine.assert_works();
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
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
    }
    let engines = stdout_of("ps", &["-eo", "args"])
        .lines()
        .filter(|line| line.starts_with(machine.programs().join("bin/engine").to_str().unwrap()))
        .count();
    assert_eq!(engines, 1);
    machine.down();
}

#[test]
fn users_have_separate_engines_and_down_stops_only_their_own() {
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
    other(&["engine", "down"])
        .run()
        .exits(0)
        .says("stopped 1 engine");
    assert_no_process_left(two.cache());
}

#[test]
fn engines_that_prefer_the_same_address_range_have_separate_ones() {
    let one = Machine::pulled();
    let preferred = |cache: &Path| {
        let folder = cache.join(one.programs.file_name().unwrap());
        Sha256::digest(folder.as_os_str().as_encoded_bytes())[0] % 100
    };
    let cache = short_folder_that(|folder| preferred(folder) == preferred(one.cache()));
    let two = Machine::in_folder(cache);
    two.reset_to_pulled_image();
    let mut starting = one.ci(&["engine", "up"]).into_command().spawn().unwrap();
    two.up();
    assert!(starting.wait().unwrap().success());
    assert_ne!(one.network()["subnet"], two.network()["subnet"]);

    let project = Project::new("address-range");
    extend_test(
        &project,
        r#"let crates = "index.crates.io:443";
        assert_ne!(std::net::ToSocketAddrs::to_socket_addrs(crates).unwrap().count(), 0);"#,
    );
    for machine in [&one, &two] {
        machine.ci_in(&project, &["test"]).run().exits(0);
    }
    one.down();
    two.down();
}

#[test]
fn coexists_with_engines_of_other_versions_and_cleans_up_after_them() {
    let machine = Machine::new();
    machine.separate_stand_ins();
    machine.up();
    // Simulates an engine of another version, which has another folder and so another network.
    let older = machine.cache().join("dagger-engine-0.19.9-0123456789ab");
    std::fs::rename(machine.programs(), &older).unwrap();
    std::fs::create_dir(machine.programs()).unwrap();
    copy(&["-a"], &older.join("bin"), machine.programs());
    let file = older.join("run/network.json");
    let network = std::fs::read_to_string(&file).unwrap();
    // The network's name is derived from the folder at the start.
    machine
        .ci(&["engine", "down"])
        .run()
        .exits(0)
        .says("stopped 1 engine");
    std::fs::create_dir(older.join("run")).unwrap();
    std::fs::write(&file, network).unwrap();
    std::fs::write(older.join("run/engine.sock"), "stale").unwrap();
    // The old engine is dead and has left files behind. The current version starts regardless.
    machine.up();
    machine.assert_works();
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
fn prune_removes_unused_data_and_keeps_data_in_use() {
    let machine = Machine::pulled();
    machine.separate_stand_ins();
    let replaced = machine.cache().join("stand-ins/crane-0.0.1-000000000000");
    std::fs::create_dir_all(replaced.join("root")).unwrap();
    std::fs::write(replaced.join("root/file"), [0; 4096]).unwrap();
    // A newer version, so that the old one counts as replaced.
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
    extend_test(
        &project,
        "std::thread::sleep(std::time::Duration::from_secs(15));",
    );
    let run = RunningCi::new(machine.ci_in(&project, &["test", "-v"]));
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
    let (code, stderr) = run.wait();
    assert_eq!(code, Some(0), "{stderr}");

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
    machine.assert_works();
    machine.down();
    assert!(machine.state_bytes() > 100_000_000);
    machine.ci(&["engine", "prune"]).run().exits(0);
    assert_eq!(machine.state_bytes(), 0);
    machine.assert_works();
}

/// Fills the engine's cache beyond its limit, in steps that each leave 250 MB next to the toolchain's image.
#[test]
fn cache_stays_below_its_limit_and_volumes_in_use_survive() {
    const LIMIT: u64 = 3_000_000_000;
    const RESULT: u64 = 250_000_000;
    let machine = Machine::pulled();
    let up = machine.ci(&["engine", "up"]);
    let engine = up.env("LAB_CI_ENGINE_DISK", "3GB").run().exits(0);
    let engine = engine.stdout.trim();
    let cli = machine.programs().join("bin/dagger");
    let stand_ins = machine.cache().join("stand-ins");
    let toolchain = Toolchain {
        cli: &cli,
        engine,
        stand_ins: &stand_ins,
    };
    toolchain.run("echo kept >/volume/file", Some("kept"));
    let fill = format!("head -c {RESULT} /dev/zero >/result");
    let mut largest = 0;
    for _ in 0..12 {
        toolchain.run(&fill, None);
        let kept = toolchain.run("cat /volume/file", Some("kept"));
        assert_eq!(kept, "kept\n");
        largest = largest.max(machine.state_bytes());
    }
    // The engine collects garbage in the background, at most once a minute, and when it stops.
    machine.down();
    let bytes = machine.state_bytes();
    // The limit is for the cache, and the state also has the engine's own files.
    assert!(
        bytes <= LIMIT + RESULT,
        "{bytes} bytes are left, at most {largest} before"
    );
    assert!(bytes > 1_000_000_000, "only {bytes} bytes are left");
    machine.up();
    let kept = toolchain.run("cat /volume/file", Some("kept"));
    assert_eq!(kept, "kept\n");
}

#[test]
fn rebuilds_a_damaged_program() {
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
fn ignores_a_partly_downloaded_client() {
    let machine = Machine::new();
    let downloads = tempfile::tempdir().unwrap();
    // The path that the SDK's downloader uses.
    let folder = downloads.path().join("dagger");
    std::fs::create_dir(&folder).unwrap();
    let whole = std::fs::read(machine.programs().join("bin/dagger")).unwrap();
    let half = folder.join(format!("dagger-{}", common::pins::DAGGER));
    std::fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    std::fs::set_permissions(&half, std::fs::Permissions::from_mode(0o700)).unwrap();
    // A remote engine needs only the client.
    std::fs::remove_dir_all(machine.programs()).unwrap();
    let project = Project::new("embedded-download");
    machine
        .with_cache(project.ci(&["fmt", "--engine", &machine.shared_engine]))
        .env("XDG_CACHE_HOME", downloads.path().to_str().unwrap())
        .env("GOCACHE", stdout_of("go", &["env", "GOCACHE"]).trim())
        .run()
        .exits(0);
}

/// Starts an engine with the cache directory on a small disk, and then on a larger one.
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
fn reports_a_full_disk_while_building_the_engine() {
    let cache = short_folder();
    Ci::new(Path::new("/"), &["--version"]).run().exits(0);
    let output = run_in_mount_namespace(SMALL_DISK, cache.path());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("the disk is full") && stderr.contains("LAB_CI_CACHE_DIR"),
        "{stderr}"
    );
}

/// Runs a step with the engine's state on a small disk, which the run fills.
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
fn reports_a_full_disk_during_a_run() {
    let machine = Machine::new();
    let project = Project::new("embedded-full");
    let script = format!(
        "STATE={}/state\nPROJECT='{}'\n{SMALL_STATE}",
        machine.programs().display(),
        project.path().display()
    );
    let output = run_in_mount_namespace(&script, machine.cache());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("disk is full"), "{stderr}");
}

fn run_in_mount_namespace(script: &str, cache: &Path) -> Output {
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc", script])
        .env("CI", env!("CARGO_BIN_EXE_ci"))
        .env("LAB_CI_CACHE_DIR", cache)
        .env("LAB_CI_REPOSITORY", "e2e/embedded-disk")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Asserts that no engine was found and the message lists these choices.
#[track_caller]
fn assert_suggests(output: Output, choices: &[&str]) {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    for choice in choices {
        assert!(stderr.contains(choice), "{choice} is not in: {stderr}");
    }
}

#[test]
fn suggests_other_engines_to_users_without_root() {
    let nobody = Nobody::new();
    nobody
        .run(&["engine", "up"], &nobody.folder.path().join("cache"))
        .exits(3)
        .says("root")
        .says("container runtime")
        .says("--engine");
}

#[test]
fn suggests_other_engines_if_go_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    // All programs that the engine needs, except for Go and any way to install it.
    for name in [
        "runc", "iptables", "ip", "dnsmasq", "pigz", "git", "tini", "unshare",
    ] {
        write_executable(&programs.join(name), "#!/bin/sh\n");
    }
    // `ci` also finds Go in the folder of its installer, so a mount namespace hides that folder.
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
    assert_suggests(output, &["Go ", "container runtime", "--engine URL"]);
}
