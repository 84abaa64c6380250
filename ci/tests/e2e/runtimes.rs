//! Container runtimes of the distribution: `ci` uses one that can run an engine, and detects within seconds if one cannot.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::progress::Silent;
use common::provision::{self, GoModule, Package, Probe};
use serde_json::Value;
use tempfile::TempDir;

use crate::embedded::short_folder;
use crate::harness::{Ci, Outcome, Project};
use crate::installed::write_executable;
use crate::provisioned::provision;

const DOCKER: Package = Package {
    name: "docker.io",
    purpose: "is a container runtime",
    probe: Probe::Program("dockerd"),
};
const PODMAN: Package = Package {
    name: "podman",
    purpose: "is a container runtime",
    probe: Probe::Program("podman"),
};
const IMAGE: &str = common::pins::DAGGER_IMAGE;
/// The name that Dagger's CLI gives the engine's container.
fn container_name() -> String {
    format!("dagger-engine-v{}", common::pins::DAGGER)
}
/// Options for setpriv that remove a capability, so that privileged containers fail.
const DROP_CAPABILITY: [&str; 2] = ["--inh-caps=-sys_resource", "--bounding-set=-sys_resource"];
/// A wrapper of runc that omits a capability, which a sandbox may lack.
const RUNC: &str = r#"#!/bin/sh
for word; do
	case ${last-} in
	--bundle | -b) edit=$word/config.json ;;
	--process | -p) edit=$word ;;
	esac
	last=$word
done
[ -z "${edit-}" ] || sed -i 's/,\?"CAP_SYS_RESOURCE"//g; s/\[,/[/g' "$edit"
exec runc "$@"
"#;

fn install(package: Package) {
    block_on(provision::install_packages(&[package], &|_| true, &Silent)).unwrap();
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// A temporary folder with a path that is short enough for sockets.
pub fn folder() -> TempDir {
    short_folder()
}

/// A folder with links to all programs of this machine, but only these container runtimes.
fn link_programs(runtimes: &[&str]) -> TempDir {
    let folder = folder();
    for place in std::env::split_paths(&std::env::var_os("PATH").unwrap()) {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let runtime = ["docker", "container", "podman", "finch", "nerdctl"];
            if !runtime.contains(&&*name) || runtimes.contains(&&*name) {
                // Fails if the name exists already: the first folder in PATH takes precedence.
                let _ = symlink(entry.path(), folder.path().join(name));
            }
        }
    }
    folder
}

#[track_caller]
pub fn expect_success(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A separate Docker daemon. It is stopped on drop.
struct Docker {
    folder: TempDir,
    programs: TempDir,
    daemon: Child,
}

impl Docker {
    /// `before` are further options for unshare, or a command that starts the daemon.
    fn start(before: &[&str], options: &[&str]) -> Self {
        install(DOCKER);
        let folder = folder();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let at = |name: &str| folder.path().join(name);
        write_executable(&at("runc"), RUNC);
        let daemon = Command::new("unshare")
            .args(provision::UNSHARE_ARGUMENTS)
            .args(before)
            .arg("dockerd")
            .arg(format!("--host=unix://{}", at("socket").display()))
            .arg(format!("--data-root={}", at("data").display()))
            .arg(format!("--exec-root={}", at("exec").display()))
            .arg(format!("--pidfile={}", at("pid").display()))
            .arg(format!("--add-runtime=modest={}", at("runc").display()))
            .args(["--bridge=none", "--iptables=false"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let docker = Self {
            programs: link_programs(&["docker"]),
            folder,
            daemon,
        };
        let begun = Instant::now();
        while !docker
            .command(&["version"])
            .output()
            .unwrap()
            .status
            .success()
        {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{}",
                std::fs::read_to_string(docker.folder.path().join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        docker
    }

    fn host(&self) -> String {
        format!("unix://{}/socket", self.folder.path().display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(arguments).env("DOCKER_HOST", self.host());
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        expect_success(self.command(arguments).output().unwrap())
    }

    fn ci(&self, project: &Project, arguments: &[&str]) -> Ci {
        project
            .ci(arguments)
            .env("PATH", self.programs.path().to_str().unwrap())
            .env("DOCKER_HOST", &self.host())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // The control groups of containers disappear only if the containers exit.
        end_containers(|arguments| self.command(arguments));
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Podman with separate storage and settings. It has no daemon.
struct Podman {
    folder: TempDir,
    programs: TempDir,
}

impl Podman {
    /// `modest` limits containers to the privileges that a sandbox has.
    fn new(modest: bool) -> Self {
        install(DOCKER);
        install(PODMAN);
        let folder = folder();
        let at = |name: &str| folder.path().join(name);
        write_executable(&at("runc"), RUNC);
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = {:?}\nrunroot = {:?}\n",
            at("graph"),
            at("run")
        );
        std::fs::write(at("storage.conf"), storage).unwrap();
        let settings = if modest {
            format!(
                "[containers]\nnetns = \"none\"\ndefault_ulimits = [\"nofile=16384:16384\", \"nproc=1024:1024\"]\n\
                 [engine]\nruntime = \"modest\"\n[engine.runtimes]\nmodest = [{:?}]\n",
                at("runc")
            )
        } else {
            "[containers]\nnetns = \"none\"\n".to_owned()
        };
        std::fs::write(at("containers.conf"), settings).unwrap();
        Self {
            programs: link_programs(&["docker", "podman"]),
            folder,
        }
    }

    fn env(&self) -> [(&'static str, String); 5] {
        let at = |name: &str| self.folder.path().join(name).to_str().unwrap().to_owned();
        [
            ("PATH", self.programs.path().to_str().unwrap().to_owned()),
            ("DOCKER_HOST", "unix:///nonexistent/docker.sock".to_owned()),
            ("CONTAINERS_STORAGE_CONF", at("storage.conf")),
            ("CONTAINERS_CONF", at("containers.conf")),
            // Nothing listens on this port, so no image can be pulled.
            ("HTTPS_PROXY", "http://127.0.0.1:1".to_owned()),
        ]
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.args(arguments).envs(self.env());
        command
    }

    fn ci(&self, project: &Project, arguments: &[&str]) -> Ci {
        let ci = project.ci(arguments);
        self.env()
            .iter()
            .fold(ci, |ci, (name, value)| ci.env(name, value))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        end_containers(|arguments| self.command(arguments));
    }
}

fn end_containers(command: impl Fn(&[&str]) -> Command) {
    let Ok(all) = command(&["ps", "--all", "--quiet"]).output() else {
        return;
    };
    for id in String::from_utf8_lossy(&all.stdout).lines() {
        let _ = command(&["rm", "--force", "--volumes", id]).output();
    }
}

/// Imports a folder as an image, under the name of the engine's image.
fn import_image(command: impl Fn(&[&str]) -> Command, root: &Path, entrypoint: &str) {
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut import = command(&["import", "--change", entrypoint, "-", IMAGE]);
    expect_success(import.stdin(tar.stdout.take().unwrap()).output().unwrap());
    assert!(tar.wait().unwrap().success());
}

/// A root file system with only the program `true`.
fn build_root_with_true(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    let source = folder.join("true.rs");
    std::fs::write(&source, "fn main() {}").unwrap();
    expect_success(
        Command::new("rustc")
            .args(["-C", "target-feature=+crt-static", "-o"])
            .arg(root.join("bin/true"))
            .arg(source)
            .output()
            .unwrap(),
    );
    root
}

/// Asserts that `ci` rejects the runtime within seconds with this message, and falls back to the embedded engine.
#[track_caller]
fn assert_falls_back_to_embedded(ci: impl Fn(&[&str]) -> Ci, words: &str) {
    let begun = Instant::now();
    ci(&["fmt", "--engine", "docker"])
        .run()
        .exits(3)
        .says(words)
        .says("--engine embedded");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let fallback = ci(&["fmt", "--engine", "auto"])
        .run()
        .exits(0)
        .says(words)
        .says("falling back to the embedded engine");
    assert_eq!(fallback.report["engine"]["name"], "embedded");
}

fn run_doctor(ci: Ci) -> Outcome {
    // This registry does not respond, so that `ci doctor` contacts no other machine.
    ci.env("LAB_CI_REGISTRY", "127.0.0.1:1").run()
}

#[test]
fn rejects_docker_when_its_daemon_is_missing_or_hangs() {
    install(DOCKER);
    let project = Project::new("no-daemon");
    let programs = link_programs(&["docker"]);
    let silent = folder();
    let socket = silent.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (host, words) in [
        (
            "unix:///nonexistent/docker.sock",
            "docker is installed, but not usable",
        ),
        (
            &*format!("unix://{}", socket.display()),
            "docker is installed, but did not answer within 5 s",
        ),
    ] {
        let ci = |arguments: &[&str]| {
            project
                .ci(arguments)
                .env("PATH", programs.path().to_str().unwrap())
                .env("DOCKER_HOST", host)
        };
        assert_falls_back_to_embedded(ci, words);
        let examined = run_doctor(ci(&["doctor", "--engine", "docker"])).exits(3);
        assert!(examined.stdout.contains(words), "{}", examined.stdout);
    }
}

#[test]
fn rejects_docker_when_the_engine_image_cannot_be_pulled() {
    let project = Project::new("no-registry");
    // Nothing listens on this port.
    let refused = Docker::start(&["env", "HTTPS_PROXY=http://127.0.0.1:1"], &[]);
    let cannot = format!("docker cannot pull {IMAGE}");
    assert_falls_back_to_embedded(|arguments| refused.ci(&project, arguments), &cannot);

    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("HTTPS_PROXY=http://{}", hole.local_addr().unwrap());
    let silent = Docker::start(&["env", &proxy], &[]);
    assert_falls_back_to_embedded(
        |arguments| silent.ci(&project, arguments),
        "no progress for 10 s",
    );
    let examined = run_doctor(silent.ci(&project, &["doctor", "--engine", "docker"]));
    let words = "docker is available; a run will pull Dagger's engine image";
    assert!(examined.stdout.contains(words), "{}", examined.stdout);
}

#[test]
fn rejects_docker_without_privileged_containers() {
    let project = Project::new("no-privileges");
    let docker = Docker::start(&["setpriv", DROP_CAPABILITY[0], DROP_CAPABILITY[1]], &[]);
    import_image(
        |arguments| docker.command(arguments),
        &build_root_with_true(docker.folder.path()),
        "USER 0",
    );
    let words = format!("docker cannot run a privileged container of {IMAGE}");
    assert_falls_back_to_embedded(|arguments| docker.ci(&project, arguments), &words);
    let examined = run_doctor(docker.ci(&project, &["doctor", "--engine", "docker"])).exits(3);
    assert!(examined.stdout.contains(&words), "{}", examined.stdout);
    assert_eq!(docker.run(&["ps", "--all", "--quiet"]), "");
}

/// The folder of the embedded engine's programs.
pub fn engine_programs() -> PathBuf {
    provision().programs()
}

/// The path of a program that connects its standard input and output to an engine's socket.
pub fn build_dial_stdio() -> PathBuf {
    const DIAL_STDIO: GoModule = GoModule {
        name: "dagger-dial-stdio",
        version: common::pins::DAGGER,
        files: &[
            (
                "go.mod",
                include_str!("../../src/engine/embedded/gomod/go.mod"),
            ),
            (
                "go.sum",
                include_str!("../../src/engine/embedded/gomod/go.sum"),
            ),
            (
                "distconsts/go.mod",
                include_str!("../../src/engine/embedded/gomod/distconsts/go.mod"),
            ),
            (
                "distconsts/consts.go",
                include_str!("../../src/engine/embedded/gomod/distconsts/consts.go"),
            ),
        ],
        packages: &["github.com/dagger/dagger/cmd/dialstdio"],
        ldflags: "-s -w",
        env: &[],
        build_time: "half a minute",
    };
    block_on(provision::build_go_tools(&DIAL_STDIO, &Silent))
        .unwrap()
        .join("dialstdio")
}

/// A root file system that Dagger's CLI can use like the published engine image.
fn build_engine_root(folder: &Path, engine: &Path) -> PathBuf {
    let root = folder.join("engine");
    std::fs::create_dir(&root).unwrap();
    expect_success(
        Command::new("sh")
            .args(["-c", include_str!("engine-image.sh"), "sh"])
            .args([&*root, engine, &build_dial_stdio()])
            .env(
                "PATH",
                format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()),
            )
            .output()
            .unwrap(),
    );
    root
}

const ENTRYPOINT: &str = r#"ENTRYPOINT ["engine", "--config", "/dev/null", "--addr", "unix:///run/dagger/engine.sock", "--oci-cni-binary-dir", "/opt/cni/bin", "--oci-worker-binary", "/run/lab-engine/bin/runc"]"#;

/// A cache directory with stand-ins, but without an embedded engine.
struct Cache(TempDir);

impl Cache {
    fn without_engine(engine: &Path) -> Self {
        let stand_ins = engine.ancestors().nth(2).unwrap().join("stand-ins");
        std::fs::create_dir_all(&stand_ins).unwrap();
        let cache = folder();
        symlink(stand_ins, cache.path().join("stand-ins")).unwrap();
        Self(cache)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // A failed test may have started an engine.
        Ci::new(Path::new("/"), &["engine", "down"])
            .env("LAB_CI_CACHE_DIR", self.path().to_str().unwrap())
            .run();
    }
}

fn entry_names(folder: &Path) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn runs_the_engine_in_docker_when_possible() {
    let engine = engine_programs();
    let docker = Docker::start(&[], &["--default-runtime=modest"]);
    let cache = Cache::without_engine(&engine);
    let project = Project::new("in-docker");
    let ci = |arguments: &[&str]| {
        docker
            .ci(&project, arguments)
            .env("LAB_CI_CACHE_DIR", cache.path().to_str().unwrap())
            .env("LAB_CI_ENGINE_DISK", "4GB")
            .env(
                "_EXPERIMENTAL_DAGGER_CLI_BIN",
                engine.join("dagger").to_str().unwrap(),
            )
    };
    // An engine that exits at once, for which Dagger's CLI alone would wait forever.
    let folder = docker.folder.path();
    import_image(
        |arguments| docker.command(arguments),
        &build_root_with_true(folder),
        "ENTRYPOINT [\"true\"]",
    );
    ci(&["fmt", "--engine", "docker"])
        .run()
        .exits(3)
        .says("docker starts the engine, but it exits immediately");
    assert_eq!(docker.run(&["ps", "--all", "--quiet"]), "");

    let root = build_engine_root(folder, &engine);
    import_image(|arguments| docker.command(arguments), &root, ENTRYPOINT);
    let examined = run_doctor(ci(&["doctor", "--engine", "auto"]));
    let words = "Dagger's engine in docker";
    assert!(examined.stdout.contains(words), "{}", examined.stdout);
    assert_eq!(docker.run(&["ps", "--all", "--quiet"]), "");

    let run = ci(&["fmt", "--engine", "auto"]).run().exits(0);
    assert_eq!(run.report["engine"]["name"], "docker");
    let running = docker.run(&["ps", "--format", "{{.Names}} {{.Image}}"]);
    assert_eq!(running.trim(), format!("{} {IMAGE}", container_name()));
    let entries = entry_names(cache.path());
    assert_eq!(entries, ["engine-config", "sources", "stand-ins"]);

    let settings = docker.run(&[
        "inspect",
        "--format",
        "{{range .Mounts}}{{.Source}} {{.Destination}}\n{{end}}",
        &container_name(),
    ]);
    let settings = settings
        .lines()
        .find_map(|mount| mount.strip_suffix(" /etc/dagger/engine.json"))
        .expect("the engine has settings");
    let settings = std::fs::read_to_string(settings).unwrap();
    assert!(
        settings.contains(r#""maxUsedSpace": 3400000000"#),
        "{settings}"
    );

    // A running engine is used without further checks.
    docker.run(&["image", "rm", "--force", IMAGE]);
    let again = ci(&["fmt", "--engine", "docker"]).run().exits(0);
    assert_eq!(again.report["engine"]["name"], "docker");
}

#[test]
fn loads_the_built_image_into_docker_unchanged() {
    let docker = Docker::start(&["--net"], &[]);
    let inside = |script: &str| {
        let pid = docker.daemon.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--net", "bash", "-c", script]);
        command.output().unwrap()
    };
    expect_success(inside("ip link set lo up"));
    let project = Project::new("load");
    let run = docker
        .ci(
            &project,
            &["build", "--load", "--output", "target/copy.tar"],
        )
        .run()
        .exits(0);
    let image = run.report["image"].as_str().unwrap();
    assert!(
        run.stderr.contains(&format!("loaded {image} into docker")),
        "{}",
        run.stderr
    );
    let read = |path: &str| std::fs::read(project.path().join(path)).unwrap();
    assert!(read("target/copy.tar") == read("target/ci/image.tar"));

    let inspected: Value = serde_json::from_str(&docker.run(&["image", "inspect", image])).unwrap();
    let config = &inspected[0]["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(
        config["Labels"]["org.opencontainers.image.revision"],
        project.git(&["rev-parse", "HEAD"])
    );
    docker.run(&["run", "--detach", "--network=host", image]);
    let answer = inside(
        "for try in $(seq 50); do exec 3<>/dev/tcp/127.0.0.1/8000 && break; sleep 0.1; done 2>/dev/null\n\
         printf 'GET /health HTTP/1.1\\r\\n\\r\\n' >&3; head -c 15 <&3",
    );
    assert_eq!(expect_success(answer), "HTTP/1.1 200 OK");
}

#[test]
fn rejects_podman_that_cannot_run_an_engine() {
    let project = Project::new("podman-refuses");
    let podman = Podman::new(false);
    let up = Ci::new(Path::new("/"), &["engine", "up"]).run().exits(0);
    let ci = |arguments: &[&str]| podman.ci(&project, arguments);
    // The message reports the problem with docker, too.
    let refused = ci(&["fmt", "--engine", "docker"])
        .run()
        .exits(3)
        .says("docker is installed, but not usable")
        .says(&format!("podman cannot pull {IMAGE}"));
    assert!(
        refused.stderr.contains("--engine embedded"),
        "{}",
        refused.stderr
    );

    // Images can be loaded nevertheless.
    let built = ci(&["build", "--load"])
        .env("LAB_CI_ENGINE", up.stdout.trim())
        .run()
        .exits(0);
    let image = built.report["image"].as_str().unwrap();
    expect_success(
        podman
            .command(&["image", "inspect", image])
            .output()
            .unwrap(),
    );

    import_image(
        |arguments| podman.command(arguments),
        &build_root_with_true(podman.folder.path()),
        "USER 0",
    );
    let mut bounded = Command::new("setpriv");
    let inner = ci(&["fmt", "--engine", "docker"]).into_command();
    bounded
        .args(DROP_CAPABILITY)
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir(project.path())
        .envs(
            inner
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let refused = bounded.output().unwrap();
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{stderr}");
    let words = format!("podman cannot run a privileged container of {IMAGE}");
    assert!(stderr.contains(&words), "{stderr}");
}

#[test]
fn runs_the_engine_in_podman_when_docker_cannot() {
    let engine = engine_programs();
    let podman = Podman::new(true);
    let root = build_engine_root(podman.folder.path(), &engine);
    import_image(|arguments| podman.command(arguments), &root, ENTRYPOINT);
    let cache = Cache::without_engine(&engine);
    let project = Project::new("in-podman");
    let run = podman
        .ci(&project, &["fmt", "--engine", "auto"])
        .env("LAB_CI_CACHE_DIR", cache.path().to_str().unwrap())
        .env(
            "_EXPERIMENTAL_DAGGER_CLI_BIN",
            engine.join("dagger").to_str().unwrap(),
        )
        .run()
        .exits(0);
    let run = run.says(&format!("engine podman (Dagger {})", common::pins::DAGGER));
    assert_eq!(run.report["engine"]["name"], "podman");
    let entries = entry_names(cache.path());
    assert_eq!(entries, ["engine-config", "sources", "stand-ins"]);
}
