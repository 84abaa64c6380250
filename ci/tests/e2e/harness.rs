//! A project to run the real binary on, in an environment without anything of the caller's.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ci::model::step::Step;
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

/// A statement for the service's unit test: it says, past the harness of the tests, that it runs.
pub const TEST_RUNS: &str =
    r#"std::io::Write::write_all(&mut std::io::stderr(), b"the test runs\n").unwrap();"#;

/// A process that does not outlive its test.
pub struct Ended(pub std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It has ended already, where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Held by at most one test at a time, in whatever process it runs: nextest gives each test one of its own.
#[must_use]
pub struct Turn(#[expect(dead_code, reason = "the lock ends with the file")] File);

/// Waits until no other test holds the turn of this name.
pub fn turn(name: &str) -> Turn {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.lock"));
    let file = File::create(path).unwrap();
    let begun = Instant::now();
    file.lock().unwrap();
    waited("lock", begun.elapsed());
    Turn(file)
}

/// A place among those who may use the engine at the same time. nextest sees to that by itself; plain `cargo test` starts more tests at
/// once than an engine on two cores has room for.
fn place() -> Option<Turn> {
    if std::env::var_os("NEXTEST").is_some() {
        return None;
    }
    loop {
        for number in 0..4 {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("place-{number}.lock"));
            let file = File::create(path).unwrap();
            if file.try_lock().is_ok() {
                return Some(Turn(file));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits on purpose.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
    waited("sleep", time);
}

/// Notes for `just test-times` what this test has waited for: a line of JSON in a file of this run's.
fn waited(what: &str, time: Duration) {
    let (Ok(run), Ok(test)) = (
        std::env::var("NEXTEST_RUN_ID"),
        std::env::var("NEXTEST_TEST_NAME"),
    ) else {
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("waits");
    std::fs::create_dir_all(&folder).unwrap();
    let line = serde_json::json!({ "test": test, "what": what, "seconds": time.as_secs_f64() });
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(folder.join(format!("{run}.jsonl")))
        .unwrap();
    // In one piece, as other tests write, too.
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// The machine for this test alone, among those that ask for it, for claims about seconds. nextest runs nothing else beside them, by
/// the group `machine` in `.config/nextest.toml`.
pub fn whole_machine() -> Turn {
    turn("whole-machine")
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

    /// Lets the service's unit test do something before it passes.
    pub fn test_does(&self, what: &str) {
        self.edit(
            "api/src/main.rs",
            "    fn it_answers_well() {\n",
            &format!("    fn it_answers_well() {{\n        {what}\n"),
        );
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
        let _place = place();
        let begun = Instant::now();
        let output = self.command.output().unwrap();
        let outcome = Outcome::new(output, &report);
        outcome.note_waits(begun.elapsed());
        outcome
    }
}

/// When it began and ended, in milliseconds since the epoch.
fn span(record: &Value) -> Option<(i64, i64)> {
    let start: jiff::Timestamp = record["start"].as_str()?.parse().ok()?;
    let start = start.as_millisecond();
    Some((start, start + record["duration_ms"].as_i64()?))
}

/// What holds in every report: a step has started after all that it needs had passed, and what needs nothing has waited for nothing.
fn follows_the_needs(report: &Value) {
    let record = |step: Step| {
        let mut records = report["steps"].as_array().into_iter().flatten();
        records.find(|it| it["name"] == step.name())
    };
    let mut roots = Vec::new();
    for step in Step::all() {
        let Some((start, end)) = record(*step).and_then(span) else {
            continue;
        };
        let needs = step.needs();
        if needs.is_empty() {
            roots.push((start, end));
        }
        for (need, record) in needs.iter().filter_map(|need| Some((need, record(*need)?))) {
            let over = span(record).is_some_and(|(_, end)| end <= start);
            assert!(
                over && record["status"] == "passed",
                "{step} has started before {need} had passed: {report:#}"
            );
        }
    }
    let last_start = roots.iter().map(|(start, _)| start).max();
    let first_end = roots.iter().map(|(_, end)| end).min();
    assert!(
        last_start <= first_end,
        "a step that needs nothing has waited for another: {report:#}"
    );
}

/// The time that these spans cover together, each from and to in milliseconds.
fn union(mut spans: Vec<(i64, i64)>) -> Duration {
    spans.sort_unstable();
    let (mut covered, mut until) = (0, i64::MIN);
    for (start, end) in spans {
        covered += (end - start.max(until)).max(0);
        until = until.max(end);
    }
    Duration::from_millis(covered.unsigned_abs())
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
        follows_the_needs(&report);
        Self {
            code: output.status.code().expect("it was not killed"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            report,
        }
    }

    /// Notes what a call of this length has waited for, by its own report.
    fn note_waits(&self, whole: Duration) {
        let spans = |list: &str, wanted: &dyn Fn(&Value) -> bool| -> Vec<_> {
            let list = self.report[list].as_array().into_iter().flatten();
            list.filter(|it| wanted(it)).filter_map(span).collect()
        };
        let compiles = |it: &Value| {
            matches!(it["name"].as_str(), Some("test" | "lint" | "build")) && it["cached"] == false
        };
        for part in self.report["prepared"].as_array().into_iter().flatten() {
            let time = Duration::from_millis(part["duration_ms"].as_u64().unwrap_or_default());
            waited(part["what"].as_str().unwrap_or_default(), time);
        }
        let provisioning = union(spans("prepared", &|_| true));
        let compiler = union(spans("steps", &compiles));
        // A step that waits for a part of the provisioning compiles nothing meanwhile.
        let compiler = compiler.saturating_sub(provisioning);
        waited("provisioning", provisioning);
        waited("compiler", compiler);
        waited("engine", whole.saturating_sub(provisioning + compiler));
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
