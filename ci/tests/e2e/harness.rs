//! Test projects, and calls of the real binary in an environment without the caller's settings.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ci::model::step::Step;
use serde_json::Value;

/// Environment variables that the embedded engine and the toolchain need; no others are passed on.
const INHERITED: [&str; 14] = [
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

/// The source of a healthy service that uses only the standard library.
pub const SERVICE: &str = include_str!("service.rs");

/// A statement for the service's unit test that announces its start on the real standard error, which libtest does not capture.
pub const TEST_RUNS: &str =
    r#"std::io::Write::write_all(&mut std::io::stderr(), b"the test runs\n").unwrap();"#;

/// The place of temporary files, for the tests and the calls of `ci`. That of `cli` is in memory, if there is enough: on ext4, a new
/// file takes long after thousands were removed. The images of the other suites are too large for it.
static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let free = nix::sys::statvfs::statvfs(memory)
        .map_or(0, |disk| disk.blocks_available() * disk.fragment_size());
    if env!("CARGO_CRATE_NAME") == "cli" && free >= 1 << 30 {
        // Fails if a test has chosen another place.
        let _ = tempfile::env::override_temp_dir(memory);
    }
    tempfile::env::temp_dir()
});

/// A process that is killed on drop.
pub struct KillOnDrop(pub std::process::Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // If the test passed, the process has exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file lock. It also excludes other processes, because nextest runs each test in its own process.
#[must_use]
pub struct Lock(#[expect(dead_code, reason = "closing the file releases the lock")] File);

/// Waits until no other test holds the lock of this name.
pub fn lock_named(name: &str) -> Lock {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.lock"));
    let file = File::create(path).unwrap();
    let begun = Instant::now();
    file.lock().unwrap();
    record_wait("lock", begun.elapsed());
    Lock(file)
}

/// Waits for one of the slots that limit how many tests use the engine at the same time. nextest has its own limit, but plain
/// `cargo test` starts more tests at once than an engine on two cores can serve.
fn acquire_slot() -> Option<Lock> {
    if std::env::var_os("NEXTEST").is_some() {
        return None;
    }
    loop {
        for number in 0..4 {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("slot-{number}.lock"));
            let file = File::create(path).unwrap();
            if file.try_lock().is_ok() {
                return Some(Lock(file));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sleeps, and records the wait for `just test-times`.
pub fn sleep(time: Duration) {
    std::thread::sleep(time);
    record_wait("sleep", time);
}

/// Records for `just test-times` how long this test has waited, as a line of JSON in a file of this test run.
fn record_wait(what: &str, time: Duration) {
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
    // A single write, because other tests append to the same file.
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Excludes all other tests that take this lock, for assertions on durations. nextest runs no other test meanwhile, because of
/// the group `machine` in `.config/nextest.toml`.
pub fn lock_machine() -> Lock {
    lock_named("whole-machine")
}

/// A git repository with a workspace whose package `api` is the service.
pub struct Project {
    folder: tempfile::TempDir,
    repository: String,
}

impl Project {
    /// A healthy project with one commit. `name` becomes part of its repository, and so of the names of its cache volumes.
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

    /// A project with these files in one commit.
    pub fn of(name: &str, files: &[(&str, &str)]) -> Self {
        let project = Self {
            folder: tempfile::Builder::new()
                .prefix("ci test ")
                .tempdir_in(&*PLACE)
                .unwrap(),
            repository: format!("e2e/{name}"),
        };
        for (path, content) in files {
            project.write(path, content);
        }
        init(project.path());
        project.commit("all of it");
        project
    }

    /// The top of the working tree. Its path contains a space.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn write(&self, path: &str, content: &str) {
        let file = self.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }

    /// Writes a file as Git LFS does: its pointer, and its content in the clone's store, whose path is returned.
    pub fn add_to_lfs(&self, path: &str, content: &str) -> PathBuf {
        let digest = common::digest::sha256(content.as_bytes());
        let oid = digest.strip_prefix("sha256:").unwrap();
        let pointer = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {}\n",
            content.len()
        );
        self.write(path, &pointer);
        let store = format!(".git/lfs/objects/{}/{}/{oid}", &oid[..2], &oid[2..4]);
        self.write(&store, content);
        self.path().join(store)
    }

    /// Replaces the only occurrence of `from` in a file.
    pub fn edit(&self, path: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path().join(path)).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{from} in {path}");
        self.write(path, &text.replace(from, to));
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path)).unwrap()
    }

    /// Adds statements to the beginning of the service's unit test.
    pub fn extend_test(&self, statements: &str) {
        self.edit(
            "api/src/main.rs",
            "    fn answers_with_200() {\n",
            &format!("    fn answers_with_200() {{\n        {statements}\n"),
        );
    }

    /// Adds a dependency to `api`, as a line of its `Cargo.toml`.
    pub fn add_dependency(&self, line: &str) {
        let manifest = self.read("api/Cargo.toml");
        self.write(
            "api/Cargo.toml",
            &format!("{manifest}\n[dependencies]\n{line}\n"),
        );
        self.lock("");
    }

    /// Generates the `Cargo.lock` of the workspace in `folder`.
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

    /// Commits all changes and returns the commit's SHA.
    pub fn commit(&self, message: &str) -> String {
        self.commit_with(message, &[])
    }

    /// Commits all changes with additional environment variables, for example for the commit's time.
    pub fn commit_with(&self, message: &str, env: &[(&str, &str)]) -> String {
        self.git(&["add", "--all"]);
        let arguments = ["commit", "--quiet", "--allow-empty", "--message", message];
        git_with(self.path(), &arguments, env);
        self.head()
    }

    /// The SHA of HEAD. Most often it is in the file of the branch, and needs no process.
    fn head(&self) -> String {
        let folder = self.path().join(".git");
        let read = |path: &str| std::fs::read_to_string(folder.join(path)).ok();
        let branch = read("HEAD").and_then(|head| read(head.strip_prefix("ref: ")?.trim()));
        match branch {
            Some(sha) => sha.trim().to_owned(),
            None => self.git(&["rev-parse", "HEAD"]),
        }
    }

    /// A call of `ci` in this project, with its repository.
    pub fn ci(&self, arguments: &[&str]) -> Ci {
        Ci::new(self.path(), arguments).env("LAB_CI_REPOSITORY", &self.repository)
    }

    /// The repository to which images of this project are published.
    pub fn repository(&self) -> &str {
        &self.repository
    }
}

/// A shell that runs `script` with mounts that no other process sees.
pub fn with_own_mounts(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private"])
        .args(["sh", "-c", script, "sh"])
        .stdin(Stdio::null());
    command
}

/// Makes `folder` a repository with the branch `main`, as `git init` does, but without a process, and without the samples of hooks.
fn init(folder: &Path) {
    let git = folder.join(".git");
    for name in ["objects", "refs/heads"] {
        std::fs::create_dir_all(git.join(name)).unwrap();
    }
    std::fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    std::fs::write(
        git.join("config"),
        "[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tlogallrefupdates = true\n",
    )
    .unwrap();
}

/// Runs git with a test identity and without the caller's configuration.
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
            // Each commit would start two more processes.
            "-c",
            "maintenance.auto=false",
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
            // Without it, each call would first try the container runtimes that some tests install.
            .env("LAB_CI_ENGINE", "embedded")
            // On every machine, steps run at the same time unless a test changes it.
            .env("LAB_CI_MEMORY", "1TiB")
            .env("TMPDIR", &*PLACE)
            .stdin(Stdio::null());
        for name in INHERITED {
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

    /// Wraps the call in another program, for example `taskset`, with the call as its last arguments.
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

    /// The command, for tests that start the process themselves.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs the call until it exits.
    pub fn run(mut self) -> Outcome {
        // The report of an earlier run must not be mistaken for this one's.
        let report = self.directory.join("target/ci/report.json");
        let _ = std::fs::remove_file(&report);
        let _slot = acquire_slot();
        let begun = Instant::now();
        let output = self.command.output().unwrap();
        let outcome = Outcome::new(output, &report);
        outcome.record_waits(begun.elapsed());
        outcome
    }
}

/// Start and end of a record, in milliseconds since the epoch.
fn span(record: &Value) -> Option<(i64, i64)> {
    let start: jiff::Timestamp = record["start"].as_str()?.parse().ok()?;
    let start = start.as_millisecond();
    Some((start, start + record["duration_ms"].as_i64()?))
}

/// Asserts that each step started after all the steps that it needs had passed, that gates ran after lint, and that other steps
/// without needs did not wait unless they take turns.
fn assert_step_order(report: &Value, take_turns: bool) {
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
        if *step == Step::Custom {
            let lint = record(Step::Lint).and_then(span);
            assert!(
                lint.is_none_or(|(_, end)| end <= start),
                "the gates did not wait for lint: {report:#}"
            );
        } else if needs.is_empty() {
            roots.push((start, end));
        }
        for (need, record) in needs.iter().filter_map(|need| Some((need, record(*need)?))) {
            let over = span(record).is_some_and(|(_, end)| end <= start);
            assert!(
                over && record["status"] == "passed",
                "{step} started before {need} had passed: {report:#}"
            );
        }
    }
    let last_start = roots.iter().map(|(start, _)| start).max();
    let first_end = roots.iter().map(|(_, end)| end).min();
    assert!(
        take_turns || last_start <= first_end,
        "a step without needs waited for another: {report:#}"
    );
}

/// Asserts that a report is valid against its documented schema.
fn assert_schema(report: &Value) {
    static VALIDATOR: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/report.schema.json");
        let schema = std::fs::read_to_string(path).unwrap();
        jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap()
    });
    if !report.is_null()
        && let Err(error) = VALIDATOR.validate(report)
    {
        panic!("{error} at {}: {report:#}", error.instance_path());
    }
}

/// The total time that these spans cover, each given by start and end in milliseconds.
fn covered_time(mut spans: Vec<(i64, i64)>) -> Duration {
    spans.sort_unstable();
    let (mut covered, mut until) = (0, i64::MIN);
    for (start, end) in spans {
        covered += (end - start.max(until)).max(0);
        until = until.max(end);
    }
    Duration::from_millis(covered.unsigned_abs())
}

/// The result of a call.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// `report.json`, or null if there is none.
    pub report: Value,
}

impl Outcome {
    fn new(output: Output, report: &Path) -> Self {
        let report = std::fs::read_to_string(report)
            .map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_step_order(&report, stderr.contains("steps take turns"));
        assert_schema(&report);
        Self {
            code: output.status.code().expect("the process was not killed"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr,
            report,
        }
    }

    /// Records how the time of a call was spent, according to its report.
    fn record_waits(&self, whole: Duration) {
        let spans = |list: &str, wanted: &dyn Fn(&Value) -> bool| -> Vec<_> {
            let list = self.report[list].as_array().into_iter().flatten();
            list.filter(|it| wanted(it)).filter_map(span).collect()
        };
        let compiles = |it: &Value| {
            matches!(it["name"].as_str(), Some("test" | "lint" | "build")) && it["cached"] == false
        };
        for part in self.report["prepared"].as_array().into_iter().flatten() {
            let time = Duration::from_millis(part["duration_ms"].as_u64().unwrap_or_default());
            record_wait(part["what"].as_str().unwrap_or_default(), time);
        }
        let provisioning = covered_time(spans("prepared", &|_| true));
        let compiler = covered_time(spans("steps", &compiles));
        // A step does not compile while it waits for provisioning.
        let compiler = compiler.saturating_sub(provisioning);
        record_wait("provisioning", provisioning);
        record_wait("compiler", compiler);
        record_wait("engine", whole.saturating_sub(provisioning + compiler));
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stderr:\n{}\nreport:\n{:#}",
            self.stderr, self.report
        );
        self
    }

    /// Asserts that this text was printed on standard error.
    #[track_caller]
    pub fn says(self, words: &str) -> Self {
        assert!(
            self.stderr.contains(words),
            "`{words}` is not in:\n{}",
            self.stderr
        );
        self
    }

    /// The step's record in the report.
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

    /// The step's status in the report.
    #[track_caller]
    pub fn status(&self, name: &str) -> &str {
        self.step(name)["status"].as_str().unwrap()
    }

    /// Asserts that this step failed and every other step passed or was skipped.
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

    /// Asserts that nothing was published.
    #[track_caller]
    pub fn publishes_nothing(self) -> Self {
        assert!(self.report["publish"].is_null(), "{:#}", self.report);
        self
    }
}
