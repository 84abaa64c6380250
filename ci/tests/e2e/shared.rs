//! A shared engine on another machine, used by several clients at the same time.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::pins::{DAGGER, DAGGER_IMAGE};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Ci, Project};
use crate::installed::write_executable;
use crate::runtimes::{build_dial_stdio, engine_programs, expect_success, folder};

/// The address range for benchmarks ([RFC 2544](https://www.rfc-editor.org/rfc/rfc2544)), which no real network uses.
const RANGE: &str = "198.18.0.0/16";
const START_SCRIPT: &str = include_str!("../../src/engine/embedded/start.sh");

/// Mounts a /sys of the engine's network namespace, without which the engine crashes, and keeps the control groups in it, without
/// which the engine starts no containers.
const MOUNT_SYS: &str = "groups=$(mktemp -d)
mount --rbind /sys/fs/cgroup $groups
mount -t sysfs sysfs /sys
mount --rbind $groups /sys/fs/cgroup
umount --lazy $groups
rmdir $groups
exec sh \"$0\"";

/// Two network namespaces that act as other machines: one for the engine, with access to other networks, and one for a client.
struct Machines {
    names: [String; 2],
    /// The disk of the engine.
    disk: TempDir,
}

impl Machines {
    fn new() -> Self {
        let id = std::process::id();
        let machines = Self {
            names: ["engine", "client"].map(|what| format!("ci-{what}-{id}")),
            disk: folder(),
        };
        for (at, name) in machines.names.iter().enumerate() {
            let link = machines.link(at);
            let script = format!(
                "ip netns add {name} && ip link add {link} type veth peer name eth0 netns {name} &&
                 ip address add 198.18.{at}.1/24 dev {link} && ip link set {link} up &&
                 ip -n {name} address add 198.18.{at}.2/24 dev eth0 &&
                 ip -n {name} link set lo up && ip -n {name} link set eth0 up &&
                 ip -n {name} route add default via 198.18.{at}.1"
            );
            expect_success(sh(&script).output().unwrap());
        }
        expect_success(sh("sysctl -q net.ipv4.ip_forward=1").output().unwrap());
        for rule in Self::rules() {
            expect_success(
                sh(&format!("iptables --wait {}", rule.replace("ACTION", "-I")))
                    .output()
                    .unwrap(),
            );
        }
        machines
    }

    fn link(&self, at: usize) -> String {
        format!("ci{at}x{}", std::process::id())
    }

    fn rules() -> [String; 3] {
        [
            format!("-t nat ACTION POSTROUTING -s {RANGE} ! -d {RANGE} -j MASQUERADE"),
            format!("ACTION FORWARD -s {RANGE} -j ACCEPT"),
            format!("ACTION FORWARD -d {RANGE} -j ACCEPT"),
        ]
    }

    /// A command on one of the machines.
    fn on(&self, at: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // `ip netns exec` would mount a /sys without control groups.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.names[at]))
            .arg(program);
        command
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for rule in Self::rules() {
            let _ = sh(&format!("iptables --wait {}", rule.replace("ACTION", "-D"))).output();
        }
        for (at, name) in self.names.iter().enumerate() {
            let _ = sh(&format!(
                "ip link delete {}; ip netns delete {name}",
                self.link(at)
            ))
            .output();
        }
    }
}

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

/// A shared engine that listens on its machine. It is stopped on drop.
struct Engine<'a> {
    machines: &'a Machines,
    process: Child,
}

impl<'a> Engine<'a> {
    /// Starts an engine that reports `version`.
    fn start(machines: &'a Machines, programs: &Path, version: &str) -> Self {
        let disk = machines.disk.path();
        let run = disk.join("run");
        std::fs::create_dir_all(&run).unwrap();
        let own = "--addr \"unix://$ENGINE_RUN/engine.sock\"";
        assert!(START_SCRIPT.contains(own));
        let shared = START_SCRIPT.replace(own, "--addr tcp://198.18.0.2:1234");
        std::fs::write(run.join("start.sh"), shared).unwrap();
        let settings = r#"{"logLevel": "warn"}"#;
        std::fs::write(run.join("engine.json"), settings).unwrap();
        std::fs::copy(name_servers(), run.join("resolv.conf")).unwrap();
        let found = |name: &str| {
            expect_success(
                sh(&format!("PATH=$PATH:/usr/sbin command -v {name}"))
                    .output()
                    .unwrap(),
            )
        };
        let log = std::fs::File::create(disk.join("log")).unwrap();
        let process = machines
            .on(0, "unshare")
            .args(["--mount", "--propagation=private", "sh", "-euc", MOUNT_SYS])
            .arg(run.join("start.sh"))
            .env("ENGINE_BIN", programs)
            .env("ENGINE_RUN", &run)
            .env("ENGINE_STATE", disk.join("state"))
            .env("ENGINE_NETWORK", "cishared")
            .env("ENGINE_CIDR", "10.228.0.0/16")
            .env("RUNC", found("runc").trim())
            .env("DNSMASQ", found("dnsmasq").trim())
            .env("IPTABLES", found("iptables").trim())
            .env("CNI_BIN", cni_plugins())
            .env("_EXPERIMENTAL_DAGGER_VERSION", version)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let engine = Self { machines, process };
        let begun = Instant::now();
        while std::net::TcpStream::connect("198.18.0.2:1234").is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{}",
                std::fs::read_to_string(disk.join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        engine
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // The process is unshare, so its namespaces end with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The next engine would otherwise seem to listen already.
        let begun = Instant::now();
        while std::net::TcpStream::connect("198.18.0.2:1234").is_ok()
            && begun.elapsed() < Duration::from_secs(20)
        {
            std::thread::sleep(Duration::from_millis(50));
        }
        // Leftovers would prevent the next engine from starting.
        let _ = std::fs::remove_dir_all(self.machines.disk.path().join("state/net"));
        let _ = sh(&format!(
            "ip -n {} link delete cishared0",
            self.machines.names[0]
        ))
        .output();
    }
}

/// The file with name servers that are reachable from another machine, too.
fn name_servers() -> &'static str {
    ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"]
        .into_iter()
        .find(|file| Path::new(file).exists())
        .unwrap()
}

fn cni_plugins() -> PathBuf {
    ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"]
        .into_iter()
        .map(PathBuf::from)
        .find(|folder| folder.join("bridge").exists())
        .unwrap()
}

const URL: &str = "tcp://198.18.0.2:1234";

#[test]
fn two_clients_share_a_remote_engine() {
    let programs = engine_programs();
    let machines = Machines::new();
    let engine = Engine::start(&machines, &programs, &format!("v{DAGGER}"));

    // One client on this machine and one on another, each with its own checkout of the same service.
    let projects = [(); 2].map(|()| Project::new("shared"));
    let arguments = ["run", "--engine", URL];
    let local = projects[0].ci(&arguments).into_command();
    let remote = projects[1].ci(&arguments).into_command();
    let mut on_other_machine = machines.on(1, remote.get_program());
    on_other_machine
        .args(remote.get_args())
        .current_dir(projects[1].path())
        .env_clear()
        .envs(
            remote
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let clients = [local, on_other_machine].map(|mut command| {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for (client, project) in clients.into_iter().zip(&projects) {
        let output = client.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let report: Value = serde_json::from_str(&project.read("target/ci/report.json")).unwrap();
        assert_eq!(report["engine"]["name"], URL);
        assert_eq!(report["engine"]["version"], DAGGER);
        for step in report["steps"].as_array().unwrap() {
            let passed = step["name"] == "publish" || step["status"] == "passed";
            assert!(passed, "{step:#}");
        }
    }
    drop(engine);

    let (minor, _) = DAGGER.rsplit_once('.').unwrap();
    let version = format!("{minor}.999");
    let patch = Engine::start(&machines, &programs, &format!("v{version}"));
    let run = projects[0].ci(&["fmt", "--engine", URL]).run().exits(0);
    assert_eq!(run.report["engine"]["version"], version);
    run.says(&format!("only tested with engine version {DAGGER}"));
    drop(patch);

    // Dagger's CLI accepts the first and refuses the second.
    for version in ["0.20.8", "0.18.9"] {
        let other = Engine::start(&machines, &programs, &format!("v{version}"));
        let run = projects[0].ci(&["fmt", "--engine", URL]).run().exits(3);
        let run = run.says(&format!(
            "the Dagger engine at {URL} has version {version}, but this ci needs {DAGGER}"
        ));
        let run = run.says(&format!("Run the image {DAGGER_IMAGE} there"));
        assert_eq!(run.status("fmt"), "skipped");
        drop(other);
    }
}

#[test]
fn gives_up_on_a_silent_engine_address() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let begun = Instant::now();
    Project::new("silent")
        .ci(&["fmt", "--engine", &url])
        .run()
        .exits(3)
        .says(&format!("no engine answers on {url} within 10 s"));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// Uses a fake kubectl, which records its arguments and connects to an engine on this machine.
#[test]
fn reaches_a_kube_pod_through_kubectl_with_all_url_parameters() {
    let up = Ci::new(Path::new("/"), &["engine", "up"]).run().exits(0);
    let programs = folder();
    let kubectl = programs.path().join("kubectl");
    write_executable(
        &kubectl,
        &format!(
            "#!/bin/sh\necho \"$*\" >>\"$0.log\"\nexec '{}' --addr '{}'\n",
            build_dial_stdio().display(),
            up.stdout.trim()
        ),
    );
    let path = std::env::var("PATH").unwrap();
    let url = "kube-pod://engine-0?namespace=dagger&container=engine&context=team";
    let run = Project::new("kube-pod")
        .ci(&["fmt", "--engine", url])
        .env("PATH", &format!("{}:{path}", programs.path().display()))
        .run()
        .exits(0);
    assert_eq!(run.report["engine"]["name"], url);
    let calls = std::fs::read_to_string(programs.path().join("kubectl.log")).unwrap();
    assert!(calls.lines().all(|line| {
        line == "--context=team --namespace=dagger exec --container=engine -i engine-0 -- buildctl dial-stdio"
    }), "{calls}");
}
