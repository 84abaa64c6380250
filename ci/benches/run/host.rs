//! The peers on the host: cargo, and the usual way to build, scan and try an image.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::pins;

use crate::cases::Peer;
use crate::docker::Docker;
use crate::process::seconds;
use crate::projects::Project;
use crate::results::Round;

/// The environment variables that commands on the host get. What `cargo bench` sets would make cargo compile everything again.
const INHERITED: [&str; 9] = [
    "PATH",
    "HOME",
    "RUSTUP_HOME",
    "CARGO_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];
const CLIPPY: &str = "clippy --workspace --all-targets --all-features --locked -- --deny warnings";
/// The name of the image.
const IMAGE: &str = "bench";
/// Starts the image and polls it.
const SMOKE: &str = r#"set -eu
container=$(docker run --detach --network host --env "PORT=$PORT" "$IMAGE")
for _ in $(seq 200); do
    if curl --silent --fail --output /dev/null "http://127.0.0.1:$PORT/health"; then
        docker rm --force "$container"
        exit
    fi
    sleep 0.1
done
docker logs "$container"
exit 1
"#;

/// A command in `folder`, with the environment of a user's shell.
fn command(program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env_clear();
    command.env("RUSTUP_TOOLCHAIN", pins::RUST);
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Cargo of the pinned toolchain.
pub fn cargo(folder: &Path) -> Command {
    command("cargo", folder)
}

/// A project on the host, with its own downloads and build outputs.
pub struct Host<'bench> {
    folder: PathBuf,
    cargo_home: PathBuf,
    gate: Option<&'static str>,
    docker: &'bench Docker,
    trivy: &'bench Trivy,
}

/// Trivy with its database.
pub struct Trivy {
    pub program: PathBuf,
    pub cache: PathBuf,
}

impl<'bench> Host<'bench> {
    /// `project`, whose working tree is in `folder`.
    pub fn new(
        project: &Project,
        folder: PathBuf,
        docker: &'bench Docker,
        trivy: &'bench Trivy,
    ) -> Self {
        let host = Self {
            cargo_home: folder.with_file_name("cargo-home"),
            folder,
            gate: project.gate,
            docker,
            trivy,
        };
        host.empty();
        host
    }

    /// The working tree.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes all caches.
    pub fn empty(&self) {
        for folder in [&self.folder.join("target"), &self.cargo_home] {
            let _ = std::fs::remove_dir_all(folder);
        }
        std::fs::create_dir_all(&self.cargo_home).unwrap();
        // Registry and proxy of this machine.
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let user = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
        for name in ["config.toml", "credentials.toml"] {
            if let Some(home) = home.as_ref().or(user.as_ref()) {
                let _ = std::fs::copy(home.join(name), self.cargo_home.join(name));
            }
        }
        self.docker.prune();
    }

    /// Runs the cargo commands that both peers share, then the rest of each. The limit is left out if the caches are cold.
    pub fn round(&self, cold: bool) -> Round {
        let mut round = Round::default();
        let mut usual = 0.0;
        let mut limit = 0.0;
        let commands = [
            ("cargo test", Some("test --workspace --locked")),
            ("cargo fmt", Some("fmt --all --check")),
            ("cargo clippy", Some(CLIPPY)),
            ("gate", self.gate),
        ];
        for (name, arguments) in commands {
            let Some(arguments) = arguments else { continue };
            let mut command = self.cargo(arguments);
            if Some(arguments) == self.gate {
                command.env("RUSTDOCFLAGS", "-D warnings");
            }
            let took = seconds(command);
            usual += took;
            limit += took;
            round.parts.push((name.to_owned(), took));
        }
        if !cold {
            let took = seconds(self.cargo("build --release --locked --package api"));
            limit += took;
            round.parts.push(("cargo build".to_owned(), took));
            round.peers.push((Peer::Limit, limit));
        }
        for (name, command) in [
            ("docker build", self.build()),
            ("docker save", self.save()),
            ("trivy", self.scan()),
            ("docker run, curl", self.smoke()),
        ] {
            let took = seconds(command);
            usual += took;
            round.parts.push((name.to_owned(), took));
        }
        round.peers.push((Peer::Usual, usual));
        round
    }

    fn cargo(&self, arguments: &str) -> Command {
        let mut command = cargo(&self.folder);
        command
            .args(arguments.split(' '))
            .env("CARGO_HOME", &self.cargo_home);
        command
    }

    fn build(&self) -> Command {
        let base = format!("BASE={}", self.docker.base);
        let mut build = self.docker.command(&["build", "--quiet"]);
        build
            .args(["--network", "host", "--tag", IMAGE])
            .args(["--build-arg", &base, "--build-arg", "PACKAGE=api", "."])
            .current_dir(&self.folder);
        build
    }

    /// Trivy may have a client that is too new for the daemon, so it gets an archive.
    fn archive(&self) -> PathBuf {
        self.trivy.cache.join("image.tar")
    }

    fn save(&self) -> Command {
        let archive = self.archive();
        self.docker
            .command(&["save", "--output", archive.to_str().unwrap(), IMAGE])
    }

    fn scan(&self) -> Command {
        let mut scan = command(&self.trivy.program, &self.folder);
        scan.args(["image", "--quiet", "--scanners", "vuln", "--offline-scan"])
            .args(["--skip-db-update", "--skip-java-db-update"])
            .args(["--skip-version-check", "--severity", "HIGH,CRITICAL"])
            .args(["--ignore-unfixed", "--exit-code", "1", "--cache-dir"])
            .arg(&self.trivy.cache)
            .arg("--input")
            .arg(self.archive());
        scan
    }

    fn smoke(&self) -> Command {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = port.local_addr().unwrap().port();
        let docker = self.docker.command(&[]);
        let mut smoke = command("sh", &self.folder);
        // The same client as for the other commands.
        let script = SMOKE.replace("docker ", &format!("{} ", docker.get_program().display()));
        smoke
            .args(["-c", &script])
            .envs(
                docker
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("PORT", port.to_string())
            .env("IMAGE", IMAGE);
        smoke
    }
}
