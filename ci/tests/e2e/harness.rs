//! A project to run the real binary on, in an environment without anything of the caller's.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// What the embedded engine and the toolchain need of the caller's environment; nothing else is handed on.
const KEPT: [&str; 14] = [
    "PATH",
    "HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "GOPROXY",
    "GOFLAGS",
    "GOSUMDB",
    "GOTOOLCHAIN",
    "LAB_CI_ENGINE",
    "LAB_CI_CACHE_DIR",
    "_EXPERIMENTAL_DAGGER_CLI_BIN",
    "XDG_CACHE_HOME",
];

/// A service of the standard library alone that is healthy.
pub const SERVICE: &str = include_str!("service.rs");

static MACHINE: Mutex<()> = Mutex::new(());

/// The machine for this test alone, among those that ask for it: some load it for minutes, and others are about seconds.
pub fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A git repository with a workspace whose package `api` is the service.
pub struct Project {
    folder: tempfile::TempDir,
    repository: String,
}

impl Project {
    /// A healthy project with one commit. `name` names its repository, and so its cache volumes.
    pub fn new(name: &str) -> Self {
        Self::of(
            name,
            &[
                (
                    "Cargo.toml",
                    "[workspace]\nmembers = [\"api\"]\nresolver = \"3\"\n",
                ),
                (
                    "api/Cargo.toml",
                    "[package]\nname = \"api\"\nversion = \"1.2.3\"\nedition = \"2024\"\n",
                ),
                (
                    "Cargo.lock",
                    "version = 4\n\n[[package]]\nname = \"api\"\nversion = \"1.2.3\"\n",
                ),
                (".gitignore", "/target\n"),
                ("api/src/main.rs", SERVICE),
            ],
        )
    }

    /// A project of these files, in one commit.
    pub fn of(name: &str, files: &[(&str, &str)]) -> Self {
        let project = Self {
            folder: tempfile::Builder::new()
                .prefix("ci test ")
                .tempdir()
                .unwrap(),
            repository: format!("e2e/{name}"),
        };
        for (path, content) in files {
            project.write(path, content);
        }
        project.git(&["init", "--quiet", "--initial-branch=main"]);
        project.commit("all of it");
        project
    }

    /// The top of the working tree; there is a space in it.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn write(&self, path: &str, content: &str) {
        let file = self.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }

    /// Replaces the one place in a file.
    pub fn edit(&self, path: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path().join(path)).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{from} in {path}");
        self.write(path, &text.replace(from, to));
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path)).unwrap()
    }

    /// Lets `api` depend on something of the package registry, by a line of its `Cargo.toml`.
    pub fn depend(&self, line: &str) {
        let manifest = self.read("api/Cargo.toml");
        self.write(
            "api/Cargo.toml",
            &format!("{manifest}\n[dependencies]\n{line}\n"),
        );
        self.lock("");
    }

    /// Makes the `Cargo.lock` of the workspace in `folder`.
    pub fn lock(&self, folder: &str) {
        self.cargo(folder, &["generate-lockfile", "--quiet"]);
    }

    /// Formats the code of the workspace in `folder`.
    pub fn format(&self, folder: &str) {
        self.cargo(folder, &["fmt", "--all"]);
    }

    fn cargo(&self, folder: &str, arguments: &[&str]) {
        let output = Command::new(env!("CARGO"))
            .args(arguments)
            .current_dir(self.path().join(folder))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        git(self.path(), arguments)
    }

    /// Commits everything, and returns the commit's SHA.
    pub fn commit(&self, message: &str) -> String {
        self.commit_with(message, &[])
    }

    /// Commits everything with this environment, in which the commit's time may be.
    pub fn commit_with(&self, message: &str, env: &[(&str, &str)]) -> String {
        self.git(&["add", "--all"]);
        let arguments = ["commit", "--quiet", "--allow-empty", "--message", message];
        git_with(self.path(), &arguments, env);
        self.git(&["rev-parse", "HEAD"])
    }

    /// A call of `ci` in this project.
    pub fn ci(&self, arguments: &[&str]) -> Ci {
        Ci::new(self.path(), arguments).env("LAB_CI_REPOSITORY", &self.repository)
    }

    /// The repository that images of this project go to.
    pub fn repository(&self) -> &str {
        &self.repository
    }
}

/// Runs git with an identity of its own and without the caller's configuration.
pub fn git(directory: &Path, arguments: &[&str]) -> String {
    git_with(directory, arguments, &[])
}

fn git_with(directory: &Path, arguments: &[&str], env: &[(&str, &str)]) -> String {
    let output = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args([
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@example.com",
            "-c",
            "commit.gpgsign=false",
        ])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A call of the real binary.
pub struct Ci {
    command: Command,
    directory: PathBuf,
}

impl Ci {
    pub fn new(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ci"));
        command
            .args(arguments)
            .current_dir(directory)
            .env_clear()
            .stdin(Stdio::null());
        for name in KEPT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Self {
            command,
            directory: directory.to_owned(),
        }
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// The environment of a push to main on GitHub Actions, of the commit `sha`.
    pub fn push_to_main(self, sha: &str, token: &str) -> Self {
        self.env("GITHUB_ACTIONS", "true")
            .env("GITHUB_EVENT_NAME", "push")
            .env("GITHUB_REF", "refs/heads/main")
            .env("GITHUB_SHA", sha)
            .env("GITHUB_ACTOR", "somebody")
            .env("GITHUB_TOKEN", token)
    }

    /// The same call, started by another program, whose last arguments are a command.
    pub fn under(mut self, program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .current_dir(&self.directory)
            .env_clear()
            .stdin(Stdio::null());
        for (name, value) in self.command.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        self.command = command;
        self
    }

    /// The command, for a test that starts it by itself.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Outcome {
        // A report that an earlier run left must not be taken for this one's.
        let report = self.directory.join("target/ci/report.json");
        let _ = std::fs::remove_file(&report);
        let output = self.command.output().unwrap();
        Outcome::new(output, &report)
    }
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// `report.json`, or null where there is none.
    pub report: Value,
}

impl Outcome {
    fn new(output: Output, report: &Path) -> Self {
        let report = std::fs::read_to_string(report)
            .map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
        Self {
            code: output.status.code().expect("it was not killed"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            report,
        }
    }

    /// It ended with this code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stderr:\n{}\nreport:\n{:#}",
            self.stderr, self.report
        );
        self
    }

    /// It said this to the person at the terminal.
    #[track_caller]
    pub fn says(self, words: &str) -> Self {
        assert!(
            self.stderr.contains(words),
            "`{words}` is not in:\n{}",
            self.stderr
        );
        self
    }

    /// A step's line in the report.
    #[track_caller]
    pub fn step(&self, name: &str) -> &Value {
        let steps = self.report["steps"]
            .as_array()
            .expect("a report with steps");
        steps
            .iter()
            .find(|step| step["name"] == name)
            .unwrap_or_else(|| panic!("no step {name} in {:#}", self.report))
    }

    /// What became of a step.
    #[track_caller]
    pub fn status(&self, name: &str) -> &str {
        self.step(name)["status"].as_str().unwrap()
    }

    /// This step failed, and every other one passed or did not start.
    #[track_caller]
    pub fn only_fails(self, name: &str) -> Self {
        for step in self.report["steps"]
            .as_array()
            .expect("a report with steps")
        {
            let (step, status) = (
                step["name"].as_str().unwrap(),
                step["status"].as_str().unwrap(),
            );
            let expected: &[&str] = if step == name {
                &["failed"]
            } else {
                &["passed", "skipped"]
            };
            assert!(
                expected.contains(&status),
                "{step} {status}:\n{}",
                self.stderr
            );
        }
        self.publishes_nothing()
    }

    /// Nothing reached a registry.
    #[track_caller]
    pub fn publishes_nothing(self) -> Self {
        assert!(self.report["publish"].is_null(), "{:#}", self.report);
        self
    }
}
