//! A separate Docker daemon, with the toolchain's image, as many teams use it: Debian's package, BuildKit and cache mounts.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::pins;
use common::provision::{Package, Probe, UNSHARE_ARGUMENTS};
use serde_json::Value;

use crate::installed::install;
use crate::process::{check_interruption, seconds, stdout};

const DOCKER: Package = Package {
    name: "docker.io",
    purpose: "is what this benchmark compares `ci` with",
    probe: Probe::Program("dockerd"),
};
/// The name under which the daemon has the toolchain's stand-in.
const STAND_IN: &str = "toolchain";

/// The daemon. It is stopped on drop.
pub struct Docker {
    folder: PathBuf,
    daemon: Child,
    /// The toolchain's image.
    pub base: String,
}

impl Docker {
    /// Starts the daemon with its data in `folder`, whose path must be short, and gives it the toolchain's image: the OCI archive
    /// `stand_in`, or without it the image from the registry.
    pub fn start(folder: &Path, stand_in: Option<&Path>) -> Self {
        install(&[DOCKER]);
        std::fs::create_dir(folder).unwrap();
        let at = |name: &str| folder.join(name);
        let log = File::create(at("log")).unwrap();
        // Its namespaces end with it. It ends with this process, even if that is killed.
        let daemon = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(UNSHARE_ARGUMENTS)
            .arg("dockerd")
            .arg(format!("--host=unix://{}", at("socket").display()))
            .arg(format!("--data-root={}", at("data").display()))
            .arg(format!("--exec-root={}", at("exec").display()))
            .arg(format!("--pidfile={}", at("pid").display()))
            // Containers use the host's network, so that no link or firewall rule is left. This is also the faster way.
            .args(["--bridge=none", "--iptables=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut docker = Self {
            folder: folder.to_owned(),
            daemon,
            base: pins::RUST_IMAGE.to_owned(),
        };
        docker.wait();
        if let Some(archive) = stand_in {
            docker.import(archive);
            docker.base = STAND_IN.to_owned();
        } else {
            seconds(docker.command(&["pull", "--quiet", pins::RUST_IMAGE]));
        }
        docker
    }

    fn wait(&self) {
        let begun = Instant::now();
        loop {
            check_interruption();
            let version = self.command(&["version"]).output().unwrap();
            if version.status.success() {
                return;
            }
            assert!(
                begun.elapsed() < Duration::from_mins(1),
                "dockerd does not start:\n{}",
                std::fs::read_to_string(self.folder.join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A call of the client with BuildKit.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // The client of Debian's package has BuildKit. Another one on the PATH may lack its plugin.
        let debian = Path::new("/usr/bin/docker");
        let mut command = Command::new(if debian.exists() {
            debian
        } else {
            Path::new("docker")
        });
        let host = format!("unix://{}", self.folder.join("socket").display());
        command
            .args(arguments)
            .env("DOCKER_HOST", host)
            .env("DOCKER_BUILDKIT", "1")
            .env_remove("DOCKER_CONTEXT");
        command
    }

    /// Removes all build caches, but not the images.
    pub fn prune(&self) {
        seconds(self.command(&["builder", "prune", "--all", "--force"]));
    }

    /// Copies Trivy's program out of its image to `folder`.
    pub fn trivy(&self, folder: &Path) -> PathBuf {
        let program = folder.join("trivy");
        seconds(self.command(&["pull", "--quiet", pins::TRIVY_IMAGE]));
        let id = stdout(self.command(&["create", pins::TRIVY_IMAGE]));
        let from = format!("{id}:/usr/local/bin/trivy");
        seconds(self.command(&["cp", &from, program.to_str().unwrap()]));
        seconds(self.command(&["rm", &id]));
        program
    }

    /// Imports the only layer of an OCI archive, because this version of Docker cannot load the archive itself.
    fn import(&self, archive: &Path) {
        let json = |path: &str| -> Value { serde_json::from_reader(blob(archive, path)).unwrap() };
        let path = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            format!("blobs/{}", digest.replacen(':', "/", 1))
        };
        let manifest = json(&path(&json("index.json")["manifests"][0]));
        let config = json(&path(&manifest["config"]));
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 1, "{manifest:#}");
        let mut import = self.command(&["import"]);
        for variable in config["config"]["Env"].as_array().unwrap() {
            import.args(["--change", &format!("ENV {}", variable.as_str().unwrap())]);
        }
        let mut import = import
            .args(["-", STAND_IN])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let layer = blob(archive, &path(&layers[0]));
        let mut layer = zstd::Decoder::new(layer).unwrap();
        let mut input = import.stdin.take().unwrap();
        io::copy(&mut layer, &mut input).unwrap();
        drop(input);
        assert!(import.wait().unwrap().success());
        check_interruption();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // The control groups of containers disappear only if the containers exit.
        if let Ok(all) = self.command(&["ps", "--all", "--quiet"]).output() {
            for id in String::from_utf8_lossy(&all.stdout).lines() {
                let _ = self.command(&["rm", "--force", id]).output();
            }
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Opens a file of an archive.
fn blob(archive: &Path, path: &str) -> impl Read + use<> {
    let mut tar = tar::Archive::new(BufReader::new(File::open(archive).unwrap()));
    let entries = tar.entries_with_seek().unwrap();
    let found = entries
        .map(Result::unwrap)
        .find(|entry| *entry.path_bytes() == *path.as_bytes())
        .unwrap_or_else(|| panic!("no {path} in {}", archive.display()));
    let (start, size) = (found.raw_file_position(), found.size());
    let mut file = File::open(archive).unwrap();
    io::Seek::seek(&mut file, io::SeekFrom::Start(start)).unwrap();
    BufReader::new(file.take(size))
}
