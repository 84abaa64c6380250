//! Container runtimes, real ones of the distribution: what can run an engine is used, what cannot is told apart in seconds.

use std::os::unix::fs::{PermissionsExt, symlink};
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
use crate::provisioned::provisioned;

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
/// Of setpriv: a machine, like this one, that does not have for a container all that it may be asked for.
const REFUSING: [&str; 2] = ["--inh-caps=-sys_resource", "--bounding-set=-sys_resource"];
/// runc, without the privilege that a sandbox such as this one does not have to give.
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

fn installed(package: Package) {
    block_on(provision::packages(&[package], &|_| true, &Silent)).unwrap();
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Engines and daemons have sockets in it.
pub fn folder() -> TempDir {
    short_folder()
}

/// This machine's programs, with these container runtimes and no others.
fn programs(runtimes: &[&str]) -> TempDir {
    let folder = folder();
    for place in std::env::split_paths(&std::env::var_os("PATH").unwrap()) {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let runtime = ["docker", "container", "podman", "finch", "nerdctl"];
            if !runtime.contains(&&*name) || runtimes.contains(&&*name) {
                // The first on the path counts.
                let _ = symlink(entry.path(), folder.path().join(name));
            }
        }
    }
    folder
}

pub fn executable(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[track_caller]
pub fn good(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A Docker daemon of the test's own.
struct Docker {
    folder: TempDir,
    programs: TempDir,
    daemon: Child,
}

impl Docker {
    /// `before` are the words in front of the daemon's own: unshare's options, and what is to start it.
    fn start(before: &[&str], options: &[&str]) -> Self {
        installed(DOCKER);
        let folder = folder();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let at = |name: &str| folder.path().join(name);
        executable(&at("runc"), RUNC);
        let daemon = Command::new("unshare")
            .args(provision::ALONE)
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
            programs: programs(&["docker"]),
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
    fn does(&self, arguments: &[&str]) -> String {
        good(self.command(arguments).output().unwrap())
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
        // Containers have control groups, which only their own end takes away.
        end_containers(|arguments| self.command(arguments));
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Podman with storage and settings of the test's own. It has no daemon.
struct Podman {
    folder: TempDir,
    programs: TempDir,
}

impl Podman {
    /// With what this machine's sandbox lets containers do, or as it comes.
    fn new(modest: bool) -> Self {
        installed(DOCKER);
        installed(PODMAN);
        let folder = folder();
        let at = |name: &str| folder.path().join(name);
        executable(&at("runc"), RUNC);
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
            programs: programs(&["docker", "podman"]),
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
            // Nothing is pulled: nobody listens there.
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

/// Makes an image of a folder, under the name of the engine's.
fn import(command: impl Fn(&[&str]) -> Command, root: &Path, entrypoint: &str) {
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut import = command(&["import", "--change", entrypoint, "-", IMAGE]);
    good(import.stdin(tar.stdout.take().unwrap()).output().unwrap());
    assert!(tar.wait().unwrap().success());
}

/// A root file system of one program that does nothing, well.
fn nothing(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    let source = folder.join("true.rs");
    std::fs::write(&source, "fn main() {}").unwrap();
    good(
        Command::new("rustc")
            .args(["-C", "target-feature=+crt-static", "-o"])
            .arg(root.join("bin/true"))
            .arg(source)
            .output()
            .unwrap(),
    );
    root
}

/// The runtime is known to be of no use within seconds, why is said, and the embedded engine is taken.
#[track_caller]
fn is_of_no_use(ci: impl Fn(&[&str]) -> Ci, words: &str) {
    let begun = Instant::now();
    ci(&["fmt", "--engine", "docker"])
        .run()
        .exits(3)
        .says(words)
        .says("--engine embedded");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let taken = ci(&["fmt", "--engine", "auto"])
        .run()
        .exits(0)
        .says(words)
        .says("taking the embedded engine");
    assert_eq!(taken.report["engine"]["name"], "embedded");
}

fn doctor(ci: Ci) -> Outcome {
    // It asks nobody outside of this machine here.
    ci.env("LAB_CI_REGISTRY", "127.0.0.1:1").run()
}

#[test]
fn a_client_whose_daemon_is_not_there_or_hangs_is_no_runtime() {
    installed(DOCKER);
    let project = Project::new("no-daemon");
    let programs = programs(&["docker"]);
    let silent = folder();
    let socket = silent.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (host, words) in [
        (
            "unix:///nonexistent/docker.sock",
            "docker is here, but not usable",
        ),
        (
            &*format!("unix://{}", socket.display()),
            "docker is here, but did not answer within 5 s",
        ),
    ] {
        let ci = |arguments: &[&str]| {
            project
                .ci(arguments)
                .env("PATH", programs.path().to_str().unwrap())
                .env("DOCKER_HOST", host)
        };
        is_of_no_use(ci, words);
        let examined = doctor(ci(&["doctor", "--engine", "docker"])).exits(3);
        assert!(examined.stdout.contains(words), "{}", examined.stdout);
    }
}

#[test]
fn a_registry_that_cannot_be_reached_or_is_silent_has_no_engine() {
    let project = Project::new("no-registry");
    // Nobody listens there.
    let refused = Docker::start(&["env", "HTTPS_PROXY=http://127.0.0.1:1"], &[]);
    let cannot = format!("docker cannot pull {IMAGE}");
    is_of_no_use(|arguments| refused.ci(&project, arguments), &cannot);

    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("HTTPS_PROXY=http://{}", hole.local_addr().unwrap());
    let silent = Docker::start(&["env", &proxy], &[]);
    is_of_no_use(
        |arguments| silent.ci(&project, arguments),
        "nothing came for 10 s",
    );
    let examined = doctor(silent.ci(&project, &["doctor", "--engine", "docker"]));
    let words = "docker answers; a run pulls Dagger's engine with it";
    assert!(examined.stdout.contains(words), "{}", examined.stdout);
}

#[test]
fn a_machine_that_refuses_privileged_containers_runs_no_engine_in_docker() {
    let project = Project::new("no-privileges");
    let docker = Docker::start(&["setpriv", REFUSING[0], REFUSING[1]], &[]);
    import(
        |arguments| docker.command(arguments),
        &nothing(docker.folder.path()),
        "USER 0",
    );
    let words = format!("docker cannot run a privileged container of {IMAGE}");
    is_of_no_use(|arguments| docker.ci(&project, arguments), &words);
    let examined = doctor(docker.ci(&project, &["doctor", "--engine", "docker"])).exits(3);
    assert!(examined.stdout.contains(&words), "{}", examined.stdout);
    assert_eq!(docker.does(&["ps", "--all", "--quiet"]), "");
}

/// The programs of the embedded engine, which an image of the engine can be made of.
pub fn engine_programs() -> PathBuf {
    provisioned().programs()
}

/// The program that connects its standard input and output with an engine's socket.
pub fn dial_stdio() -> PathBuf {
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
        usually: "half a minute",
    };
    block_on(provision::go_tools(&DIAL_STDIO, &Silent))
        .unwrap()
        .join("dialstdio")
}

/// A root file system that Dagger's CLI can drive as it does the published image.
fn engine_image(folder: &Path, engine: &Path) -> PathBuf {
    let root = folder.join("engine");
    std::fs::create_dir(&root).unwrap();
    good(
        Command::new("sh")
            .args(["-c", include_str!("engine-image.sh"), "sh"])
            .args([&*root, engine, &dial_stdio()])
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

/// A cache directory without an embedded engine. The stand-ins, which a real registry would make superfluous, are there.
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
        // Where the test fails, there may be one.
        Ci::new(Path::new("/"), &["engine", "down"])
            .env("LAB_CI_CACHE_DIR", self.path().to_str().unwrap())
            .run();
    }
}

fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect()
}

#[test]
fn where_docker_can_run_an_engine_it_does_and_the_embedded_one_is_not_touched() {
    let engine = engine_programs();
    let docker = Docker::start(&[], &["--default-runtime=modest"]);
    let cache = Cache::without_engine(&engine);
    let project = Project::new("in-docker");
    let ci = |arguments: &[&str]| {
        docker
            .ci(&project, arguments)
            .env("LAB_CI_CACHE_DIR", cache.path().to_str().unwrap())
            .env(
                "_EXPERIMENTAL_DAGGER_CLI_BIN",
                engine.join("dagger").to_str().unwrap(),
            )
    };
    // What may run, and ends at once: the CLI alone would wait for it without an end.
    let folder = docker.folder.path();
    import(
        |arguments| docker.command(arguments),
        &nothing(folder),
        "ENTRYPOINT [\"true\"]",
    );
    ci(&["fmt", "--engine", "docker"])
        .run()
        .exits(3)
        .says("docker starts the engine, which ends at once");
    assert_eq!(docker.does(&["ps", "--all", "--quiet"]), "");

    let root = engine_image(folder, &engine);
    import(|arguments| docker.command(arguments), &root, ENTRYPOINT);
    let examined = doctor(ci(&["doctor", "--engine", "auto"]));
    let words = "Dagger's own way, in docker";
    assert!(examined.stdout.contains(words), "{}", examined.stdout);
    assert_eq!(docker.does(&["ps", "--all", "--quiet"]), "");

    let run = ci(&["fmt", "--engine", "auto"]).run().exits(0);
    assert_eq!(run.report["engine"]["name"], "docker");
    let running = docker.does(&["ps", "--format", "{{.Names}} {{.Image}}"]);
    assert_eq!(running.trim(), format!("dagger-engine-v0.19.10 {IMAGE}"));
    assert_eq!(names(cache.path()), ["stand-ins"]);

    // An engine that runs is proof enough: nothing else is tried.
    docker.does(&["image", "rm", "--force", IMAGE]);
    let again = ci(&["fmt", "--engine", "docker"]).run().exits(0);
    assert_eq!(again.report["engine"]["name"], "docker");
}

#[test]
fn a_built_image_is_loaded_into_docker_as_it_is_and_runs_there() {
    let docker = Docker::start(&["--net"], &[]);
    let inside = |script: &str| {
        let pid = docker.daemon.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--net", "bash", "-c", script]);
        command.output().unwrap()
    };
    good(inside("ip link set lo up"));
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
        run.stderr.contains(&format!("{image} is in docker")),
        "{}",
        run.stderr
    );
    let read = |path: &str| std::fs::read(project.path().join(path)).unwrap();
    assert!(read("target/copy.tar") == read("target/ci/image.tar"));

    let inspected: Value =
        serde_json::from_str(&docker.does(&["image", "inspect", image])).unwrap();
    let config = &inspected[0]["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(
        config["Labels"]["org.opencontainers.image.revision"],
        project.git(&["rev-parse", "HEAD"])
    );
    docker.does(&["run", "--detach", "--network=host", image]);
    let answer = inside(
        "for try in $(seq 50); do exec 3<>/dev/tcp/127.0.0.1/8000 && break; sleep 0.1; done 2>/dev/null\n\
         printf 'GET /health HTTP/1.1\\r\\n\\r\\n' >&3; head -c 15 <&3",
    );
    assert_eq!(good(answer), "HTTP/1.1 200 OK");
}

#[test]
fn podman_that_cannot_have_or_run_an_engine_is_of_no_use() {
    let project = Project::new("podman-refuses");
    let podman = Podman::new(false);
    let up = Ci::new(Path::new("/"), &["engine", "up"]).run().exits(0);
    let ci = |arguments: &[&str]| podman.ci(&project, arguments);
    // What is wrong with docker is said, too.
    let refused = ci(&["fmt", "--engine", "docker"])
        .run()
        .exits(3)
        .says("docker is here, but not usable")
        .says(&format!("podman cannot pull {IMAGE}"));
    assert!(
        refused.stderr.contains("--engine embedded"),
        "{}",
        refused.stderr
    );

    // It takes images all the same.
    let built = ci(&["build", "--load"])
        .env("LAB_CI_ENGINE", up.stdout.trim())
        .run()
        .exits(0);
    let image = built.report["image"].as_str().unwrap();
    good(
        podman
            .command(&["image", "inspect", image])
            .output()
            .unwrap(),
    );

    import(
        |arguments| podman.command(arguments),
        &nothing(podman.folder.path()),
        "USER 0",
    );
    let mut bounded = Command::new("setpriv");
    let inner = ci(&["fmt", "--engine", "docker"]).into_command();
    bounded
        .args(REFUSING)
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir(project.path())
        .envs(
            inner
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let refused = bounded.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    let words = format!("podman cannot run a privileged container of {IMAGE}");
    assert!(said.contains(&words), "{said}");
}

#[test]
fn podman_runs_the_engine_where_docker_cannot() {
    let engine = engine_programs();
    let podman = Podman::new(true);
    let root = engine_image(podman.folder.path(), &engine);
    import(|arguments| podman.command(arguments), &root, ENTRYPOINT);
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
    let run = run.says("engine podman (Dagger 0.19.10)");
    assert_eq!(run.report["engine"]["name"], "podman");
    assert_eq!(names(cache.path()), ["stand-ins"]);
}
