//! The program as a process, and the packages that the tests need.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use common::provision::{Package, Probe};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

#[path = "../../../ci/tests/e2e/installed.rs"]
pub mod installed;
pub use installed::{install, run, venv};

/// A Debian package that contains `program`.
pub const fn package(name: &'static str, program: &'static str) -> Package {
    Package {
        name,
        purpose: "tests the service",
        probe: Probe::Program(program),
    }
}

/// A port without a listener.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The running program, which is killed when dropped.
pub struct Service {
    pub child: Child,
    pub port: u16,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Service {
    /// Starts the program with this configuration and only these environment variables.
    pub fn start(configuration: &str, environment: &[(&str, &str)]) -> Self {
        let mut file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        file.write_all(configuration.as_bytes()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_api"));
        command
            .args(["serve", "--config"])
            .arg(file.path())
            .env_clear()
            .envs(environment.iter().copied());
        Self::spawn(command)
    }

    /// Spawns `command`, which runs the program, on a free port. Returns once it listens.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .env("PORT", "0")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut next = {
            let log = log.clone();
            move || {
                let line: Value = serde_json::from_str(&lines.next()?.ok()?).unwrap();
                log.lock().unwrap().push(line.clone());
                Some(line)
            }
        };
        let port = loop {
            let line = next().expect("the program exited before it listened");
            if line["message"] == "listening" {
                break line["port"].as_u64().unwrap().try_into().unwrap();
            }
        };
        thread::spawn(move || while next().is_some() {});
        Self { child, port, log }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// The log lines so far.
    pub fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
