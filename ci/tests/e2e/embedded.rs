//! The embedded engine: it comes up, survives what happens to it, and leaves nothing behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::MutexGuard;

use serde_json::Value;

use crate::harness::{Ci, Project, whole_machine};

/// A cache directory of the test's own, with the programs that were built already.
struct Machine {
    cache: tempfile::TempDir,
    _busy: MutexGuard<'static, ()>,
}

impl Machine {
    fn new() -> Self {
        let busy = whole_machine();
        // Builds the engine where it is not built, which on an empty machine takes minutes.
        let built = Ci::new(Path::new("/"), &["engine", "up"]).run().exits(0);
        assert!(built.stdout.starts_with("unix://"), "{}", built.stdout);
        let status = Ci::new(Path::new("/"), &["engine", "status", "--format", "json"])
            .run()
            .exits(0);
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        let folder = PathBuf::from(status["folder"].as_str().unwrap());
        // A socket's path has at most 107 bytes.
        let cache = tempfile::Builder::new()
            .prefix("ci")
            .tempdir_in("/tmp")
            .unwrap();
        let programs = cache.path().join(folder.file_name().unwrap());
        std::fs::create_dir(&programs).unwrap();
        let copied = Command::new("cp")
            .arg("-a")
            .arg(folder.join("bin"))
            .arg(&programs)
            .status()
            .unwrap();
        assert!(copied.success());
        Self { cache, _busy: busy }
    }

    fn ci(&self, arguments: &[&str]) -> Ci {
        Ci::new(self.cache.path(), arguments)
            .env("LAB_CI_CACHE_DIR", self.cache.path().to_str().unwrap())
    }

    fn status(&self) -> Value {
        serde_json::from_str(
            &self
                .ci(&["engine", "status", "--format", "json"])
                .run()
                .exits(0)
                .stdout,
        )
        .unwrap()
    }

    /// A gate on the engine, which proves that it works.
    fn works(&self) {
        let project = Project::new("embedded");
        project
            .ci(&["fmt", "--engine", "embedded"])
            .env("LAB_CI_CACHE_DIR", self.cache.path().to_str().unwrap())
            .run()
            .exits(0);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ci(&["engine", "down"]).run();
    }
}

/// What an engine may leave on the host.
fn traces() -> (Vec<String>, Vec<String>, String) {
    let links = said("ip", &["-o", "link"])
        .lines()
        .filter_map(|line| Some(line.split(": ").nth(1)?.to_owned()))
        .collect();
    let rules = said("iptables-save", &[])
        .lines()
        .filter(|line| line.starts_with('-'))
        .map(ToOwned::to_owned)
        .collect();
    (
        links,
        rules,
        std::fs::read_to_string("/etc/resolv.conf").unwrap(),
    )
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn kill(pid: i64) {
    assert!(
        Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
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
    let pid = machine.status()["pid"].as_i64().unwrap();
    kill(pid);
    let third = machine.ci(&["engine", "up"]).run().exits(0).says("started");
    assert_eq!(first.stdout, third.stdout);
    assert_ne!(machine.status()["pid"], pid);
    machine.works();

    let socket = PathBuf::from(third.stdout.trim().strip_prefix("unix://").unwrap());
    let link = own_link(&socket);
    let resolv_conf = traces().2;
    machine.ci(&["engine", "down"]).run().exits(0);
    let (links, rules, after) = traces();
    assert!(
        !links.iter().any(|name| name.starts_with(&link)),
        "{link} is left: {links:?}"
    );
    assert!(
        !rules.iter().any(|rule| rule.contains(&link)),
        "{link} is left: {rules:?}"
    );
    assert_eq!(resolv_conf, after);
    assert_eq!(machine.status()["pid"], Value::Null);
    let processes = said("ps", &["-eo", "args"]);
    let cache = machine.cache.path().to_str().unwrap();
    assert!(
        !processes.lines().any(|line| line.contains(cache)),
        "{processes}"
    );
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(cache), "{mounts}");

    machine.ci(&["engine", "down"]).run().exits(0);
}

/// The name of the network link that belongs to the engine at `socket`.
fn own_link(socket: &Path) -> String {
    let command_line = said("ps", &["-eo", "args"]);
    let own = command_line
        .lines()
        .find(|line| line.contains("--network-name") && line.contains(socket.to_str().unwrap()))
        .unwrap_or_else(|| panic!("no engine at {}: {command_line}", socket.display()));
    let mut words = own.split([' ', '=']);
    words.find(|word| *word == "--network-name").unwrap();
    words.next().unwrap().to_owned()
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

#[test]
fn its_sockets_and_folders_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let machine = Machine::new();
    let up = machine.ci(&["engine", "up"]).run().exits(0);
    let socket = PathBuf::from(up.stdout.trim().strip_prefix("unix://").unwrap());
    let folder = socket.parent().unwrap();
    assert_eq!(
        folder.metadata().unwrap().permissions().mode() & 0o077,
        0,
        "{}",
        folder.display()
    );
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
    // Where that user can run it and keep a cache.
    let folder = tempfile::Builder::new()
        .prefix("ci")
        .tempdir_in("/tmp")
        .unwrap();
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();
    let program = folder.path().join("ci");
    std::fs::copy(env!("CARGO_BIN_EXE_ci"), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["engine", "up"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("LAB_CI_CACHE_DIR", folder.path().join("cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    is_told(output, &["root", "container runtime", "--engine"]);
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
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
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
