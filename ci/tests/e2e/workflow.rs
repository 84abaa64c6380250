//! Runs the workflow with a real workflow runner on this machine: for a push to main, a pull request, and a pull request from a
//! fork.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

use common::pins;
use common::progress::Silent;
use common::provision::{GoModule, build_go_tools};
use serde_json::{Value, json};

use crate::forges::check_main_with_cron;
use crate::harness::{Project, SERVICE};
use crate::registry::{Registry, block_on};
use crate::reports::assert_valid_sarif;
use crate::sources::short_sha;

/// [act](https://nektosact.com), the workflow runner.
const ACT: GoModule = GoModule {
    name: "test-act",
    version: pins::ACT,
    files: &[
        ("go.mod", include_str!("act/go.mod")),
        ("go.sum", include_str!("act/go.sum")),
    ],
    packages: &["github.com/nektos/act"],
    ldflags: "-s -w -X main.version=VERSION",
    env: &[],
    build_time: "about a minute",
};
const PATH: &str = ".github/workflows/docker-builder.yml";
const WORKFLOW: &str = include_str!("../../../.github/workflows/docker-builder.yml");
const TOKEN: &str = "ghs_the-runs-own-token";
/// Replacements for actions, which cannot be fetched without access to GitHub.
const ACTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/act/actions");

fn act() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| block_on(build_go_tools(&ACT, &Silent)).unwrap().join("act"))
}

/// A fake GitHub with a repository, its caches and its artifacts.
pub struct Forge {
    /// The repository's working tree.
    pub project: Project,
    folder: tempfile::TempDir,
}

/// The result of a run of the workflow.
pub struct Run {
    /// Whether all jobs succeeded.
    pub succeeded: bool,
    /// The output of the runner.
    pub log: String,
    /// `report.json` from the uploaded artifact.
    pub report: Value,
    artifact: PathBuf,
}

impl Run {
    /// The path of a file in the uploaded artifact.
    pub fn artifact_file(&self, name: &str) -> PathBuf {
        self.artifact.join(name)
    }

    /// The names of the jobs that ran.
    pub fn jobs(&self) -> Vec<&str> {
        let mut jobs: Vec<_> = self
            .log
            .lines()
            .filter(|line| line.contains("Job succeeded") || line.contains("Job failed"))
            .filter_map(|line| line.split_once(']')?.0.split_once('/'))
            .map(|(_, job)| job.trim())
            .collect();
        jobs.sort_unstable();
        jobs.dedup();
        jobs
    }
}

/// The event that triggers the workflow.
pub struct Event<'a> {
    /// GitHub's name of the event.
    pub name: &'a str,
    /// GitHub's payload of the event.
    pub payload: Value,
    /// The token of the run, if any.
    pub token: Option<&'a str>,
    /// The registry to which images are published.
    pub registry: &'a str,
}

/// The package `ci` of the test repository, which runs the tested binary instead of compiling it.
const CI: &str = r#"//! Runs `ci`.
fn main() {
    use std::os::unix::process::CommandExt;
    let error = std::process::Command::new(env!("CI")).args(std::env::args_os().skip(1)).exec();
    panic!("{error}");
}
"#;

impl Forge {
    /// A forge with a repository of a small service, `ci`, and this repository's workflow.
    pub fn new() -> Self {
        let ci = format!("{:?}", env!("CARGO_BIN_EXE_ci"));
        // A unique name, so that the cache volumes contain only restored caches.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let name = format!("workflow-{}", now.unwrap().as_nanos());
        let project = Project::of(
            &name,
            &[
                (
                    "Cargo.toml",
                    "[workspace]\nmembers = [\"api\", \"ci\"]\nresolver = \"3\"\n",
                ),
                (
                    "api/Cargo.toml",
                    "[package]\nname = \"api\"\nversion = \"1.2.3\"\nedition = \"2024\"\n",
                ),
                ("api/src/main.rs", SERVICE),
                (
                    "ci/Cargo.toml",
                    "[package]\nname = \"ci\"\nversion = \"0.1.0\"\nedition = \"2024\"\n",
                ),
                ("ci/src/main.rs", &CI.replace("env!(\"CI\")", &ci)),
                ("ci.toml", &format!("repository = \"e2e/{name}\"\n")),
                (".gitignore", "/target\n"),
                (
                    "rust-toolchain.toml",
                    include_str!("../../../rust-toolchain.toml"),
                ),
                // The unchanged workflow, and a job that uses its outputs.
                (PATH, &format!("{WORKFLOW}{DEPLOY_JOB}")),
            ],
        );
        project.add_dependency("itoa = \"1.0.1\"");
        project.format("");
        project.commit("a service with a dependency");
        project.git(&["remote", "add", "origin", env!("CARGO_PKG_REPOSITORY")]);
        let folder = tempfile::Builder::new().prefix("forge").tempdir().unwrap();
        let forge = Self { folder, project };
        // An empty home for the runner, except for the machine's settings for the package registry.
        let home = forge.path("home/.cargo");
        std::fs::create_dir_all(&home).unwrap();
        for name in ["config.toml", "config", "credentials.toml"] {
            let _ = std::fs::copy(cargo_home().join(name), home.join(name));
        }
        std::fs::create_dir_all(forge.path("caches")).unwrap();
        forge
    }

    /// A path in the folder of the forge.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Restores main's caches into another working tree.
    pub fn restore_into(&self, tree: &Path) {
        let caches = std::fs::read_dir(self.path("caches/refs_heads_main")).unwrap();
        for cache in caches.flatten() {
            let unpacked = Command::new("tar")
                .args(["--extract", "--absolute-names", "--file"])
                .arg(cache.path())
                .arg("--directory")
                .arg(tree)
                .status();
            assert!(unpacked.unwrap().success());
        }
    }

    /// All restores and saves of caches, in order.
    pub fn caches(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("caches/log")).unwrap_or_default();
        log.lines().map(ToOwned::to_owned).collect()
    }

    /// The branches that have a cache.
    pub fn scopes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("caches")).unwrap().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        folders
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Runs the workflow until it finishes.
    pub fn run_workflow(&self, event: &Event<'_>) -> Run {
        let artifacts = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let payload = artifacts.join("event.json");
        std::fs::write(&payload, event.payload.to_string()).unwrap();
        let mut command = Command::new(act());
        command
            .args([event.name, "--workflows", PATH])
            .args([
                "--platform",
                "ubuntu-24.04=-self-hosted",
                "--actor",
                "somebody",
            ])
            .args([
                "--no-cache-server",
                "--pull=false",
                "--defaultbranch",
                "main",
            ])
            .args(["--env-file", "/dev/null"])
            .args(["--var-file", "/dev/null", "--input-file", "/dev/null"])
            .arg("--eventpath")
            .arg(&payload)
            .arg("--action-cache-path")
            .arg(self.path("runner"));
        for action in pins::ACTIONS {
            let (name, rest) = action.split_once('@').unwrap();
            let commit = rest.split(' ').next().unwrap();
            let mut parts = name.split('/');
            let (owner, repository) = (parts.next().unwrap(), parts.next().unwrap());
            command.arg("--local-repository").arg(format!(
                "{owner}/{repository}@{commit}={ACTIONS}/{repository}"
            ));
        }
        command
            .current_dir(self.project.path())
            .env_clear()
            .envs(runner_environment())
            .env("HOME", self.path("home"))
            .env("CACHES", self.path("caches"))
            .env("ARTIFACTS", &artifacts)
            .env("GITOPS", artifacts.join("gitops"))
            .env("LAB_CI_REGISTRY", event.registry)
            .stdin(Stdio::null());
        // Not in the runner's environment, which is visible to all steps.
        let secrets = artifacts.join("secrets");
        let text = event.token.map(|token| format!("GITHUB_TOKEN={token}\n"));
        std::fs::write(&secrets, text.unwrap_or_default()).unwrap();
        command.arg("--secret-file").arg(&secrets);
        let output = command.output().unwrap();
        let log = [&output.stdout[..], &output.stderr].concat();
        let log = String::from_utf8_lossy(&log).into_owned();
        let artifact = artifacts.join("ci");
        let report = std::fs::read_to_string(artifact.join("report.json"))
            .map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
        Run {
            succeeded: output.status.success(),
            log,
            report,
            artifact,
        }
    }

    /// The outputs that the job after the publishing one received.
    pub fn read_outputs(&self, run: &Run) -> String {
        std::fs::read_to_string(run.artifact.parent().unwrap().join("gitops")).unwrap()
    }
}

fn home() -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").unwrap())
}

fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}

/// The environment of the runner, with this machine's toolchain, shared engine, and settings for package registries.
pub fn runner_environment() -> Vec<(String, std::ffi::OsString)> {
    let root = common::provision::cache_root().unwrap();
    let rustup = std::env::var_os("RUSTUP_HOME").unwrap_or_else(|| home().join(".rustup").into());
    let mut environment = vec![
        ("PATH".to_owned(), std::env::var_os("PATH").unwrap()),
        ("RUSTUP_HOME".to_owned(), rustup),
        ("LAB_CI_CACHE_DIR".to_owned(), root.into()),
    ];
    for name in [
        "GOPROXY",
        "GOFLAGS",
        "GOSUMDB",
        "GOTOOLCHAIN",
        "LAB_CI_ENGINE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "_EXPERIMENTAL_DAGGER_CLI_BIN",
    ] {
        environment.extend(std::env::var_os(name).map(|value| (name.to_owned(), value)));
    }
    environment
}

/// GitHub's payload for a pull request.
fn pull_request(number: u32, head: &str, fork: bool) -> Value {
    let owner = if fork { "stranger" } else { "upwind1647" };
    json!({
        "action": "synchronize",
        "number": number,
        "pull_request": {
            "number": number,
            "head": {
                "ref": "topic",
                "sha": head,
                "repo": { "full_name": format!("{owner}/infrastructure-lab"), "fork": fork },
            },
            "base": { "ref": "main", "repo": { "full_name": "upwind1647/infrastructure-lab", "fork": false } },
        },
    })
}

/// A job that uses the outputs of the publishing job.
const DEPLOY_JOB: &str = r#"
  deploy:
    needs: main
    runs-on: ubuntu-24.04
    steps:
      - run: echo "$IMAGE $TAG $DIGEST" > "$GITOPS"
        env:
          IMAGE: ${{ needs.main.outputs.image }}
          TAG: ${{ needs.main.outputs.tag }}
          DIGEST: ${{ needs.main.outputs.digest }}
"#;

fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == name).unwrap()
}

#[test]
fn workflow_publishes_main_and_checks_pull_requests() {
    let forge = Forge::new();
    let project = &forge.project;
    let repository = project.repository();
    let registry = Registry::with_credential("somebody", TOKEN);
    let address = registry.address();
    let sha = project.git(&["rev-parse", "HEAD"]);
    let short = short_sha(project);

    let run = forge.run_workflow(&Event {
        name: "push",
        payload: json!({ "ref": "refs/heads/main", "after": sha }),
        token: Some(TOKEN),
        registry: &address,
    });
    assert!(run.succeeded, "{}", run.log);
    assert_eq!(
        run.jobs(),
        ["Check and publish", "Show the vulnerabilities", "deploy"]
    );
    let report = &run.report;
    assert_eq!(report["commit"], sha.as_str());
    assert_eq!(report["event"], "push");
    assert_eq!(report["publish"]["outcome"], "pushed");
    let digest = registry.digest(repository, &short);
    assert_eq!(report["digest"], digest.as_str());
    let archive = run.artifact_file("image.tar");
    assert_eq!(ci::image::archive::read_digest(&archive).unwrap(), digest);
    let image = format!("{address}/{repository}:{short}");
    assert_eq!(
        forge.read_outputs(&run),
        format!("{image} {short} {digest}\n")
    );
    let uploaded = run.artifact_file("../code-scanning/ci.sarif");
    assert_valid_sarif(&uploaded);
    let summary = std::fs::read_to_string(run.artifact_file("summary.md")).unwrap();
    assert!(summary.starts_with("## passed") && summary.contains(&digest));
    // The runner prints the summary that GitHub would show.
    let shown = format!("Summary - {}", summary.lines().next().unwrap());
    assert!(run.log.contains(&shown), "{}", run.log);
    assert!(!run.log.contains(TOKEN), "{}", run.log);
    assert_eq!(report["cache"]["domain"], "main");
    let caches = forge.caches();
    let words: Vec<_> = caches
        .iter()
        .map(|line| line.split('-').next().unwrap())
        .collect();
    assert_eq!(
        words,
        [
            "restored nothing for cargo",
            "restored nothing for engine",
            "saved cargo",
            "saved engine",
        ]
    );
    let tags = registry.tags(repository);

    // A pull request from a fork, without a token, that fails a gate, and one from this repository that passes.
    project.git(&["switch", "--quiet", "--create", "topic"]);
    project.edit("api/src/main.rs", "fn main() {", "fn  main() {");
    project.commit("not formatted");
    let run_pull_request = |number, fork, token| {
        let head = project.git(&["rev-parse", "HEAD"]);
        forge.run_workflow(&Event {
            name: "pull_request",
            payload: pull_request(number, &head, fork),
            token,
            registry: &address,
        })
    };
    let from_fork = run_pull_request(7, true, None);
    assert!(!from_fork.succeeded, "{}", from_fork.log);
    for name in ["test", "lint", "build", "scan", "smoke"] {
        let step = step(&from_fork.report, name);
        assert_eq!(step["status"], "passed", "{step:#}");
        assert!(step["reused"].is_null(), "the step did not run: {step:#}");
    }
    assert_eq!(step(&from_fork.report, "fmt")["status"], "failed");
    let restored = from_fork.report["cache"]["restored"].to_string();
    for part in [
        "test/dependencies",
        "lint/dependencies",
        "build/dependencies",
    ] {
        assert!(restored.contains(part), "{restored}\n{}", from_fork.log);
    }
    project.git(&["revert", "--no-edit", "HEAD"]);
    let passing = run_pull_request(8, false, Some(TOKEN));
    assert!(passing.succeeded, "{}", passing.log);
    for name in ["test", "fmt", "lint", "build"] {
        let step = step(&passing.report, name);
        assert_eq!(step["status"], "passed");
        assert_eq!(
            step["reused"]["commit"], sha,
            "the step did not reuse the result of main"
        );
    }
    for (run, jobs) in [
        (&from_fork, ["Check the pull request"].as_slice()),
        (
            &passing,
            &["Check the pull request", "Show the vulnerabilities"],
        ),
    ] {
        assert_eq!(run.jobs(), jobs);
        let report = &run.report;
        assert_eq!(report["event"], "pull-request");
        assert_eq!(step(report, "publish")["status"], "skipped");
        assert_eq!(report["publish"], Value::Null);
        // Pull requests read main's caches and save none.
        assert_eq!(report["cache"]["read_only"], true);
    }
    assert_eq!(forge.scopes(), ["refs_heads_main"]);

    project.git(&["switch", "--quiet", "main"]);
    check_main_with_cron(&forge);
    assert_eq!(registry.tags(repository), tags);
}
