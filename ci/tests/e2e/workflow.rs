//! The workflow's own file, run by a real workflow runner with this machine as its host: as a push to main, as a pull request, as a
//! stranger's pull request.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

use common::pins;
use common::progress::Silent;
use common::provision::{GoModule, go_tools};
use serde_json::{Value, json};

use crate::forges::a_cron_host_checks_main;
use crate::harness::{Project, SERVICE};
use crate::registry::{Registry, block_on};

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
    usually: "about a minute",
};
const PATH: &str = ".github/workflows/docker-builder.yml";
const WORKFLOW: &str = include_str!("../../../.github/workflows/docker-builder.yml");
const TOKEN: &str = "ghs_the-runs-own-token";
/// What takes the place of actions that no machine without GitHub can fetch.
const ACTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/act/actions");

fn act() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| block_on(go_tools(&ACT, &Silent)).unwrap().join("act"))
}

/// GitHub, as far as a workflow sees it: a repository, its caches and its artifacts.
pub struct Forge {
    /// The repository's working tree.
    pub project: Project,
    folder: tempfile::TempDir,
}

/// What came of a run of the workflow.
pub struct Run {
    /// Whether every job that ran has succeeded.
    pub succeeded: bool,
    /// What the runner has written.
    pub log: String,
    /// The report that was kept.
    pub report: Value,
    artifact: PathBuf,
}

impl Run {
    /// A file of the artifact that was kept.
    pub fn kept(&self, name: &str) -> PathBuf {
        self.artifact.join(name)
    }

    /// The jobs that ran, by their names.
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

/// What the workflow is run for.
pub struct Event<'a> {
    /// As GitHub calls it.
    pub name: &'a str,
    /// What GitHub sends.
    pub payload: Value,
    /// The run's own token, where it has one.
    pub token: Option<&'a str>,
    /// Where images go.
    pub registry: &'a str,
}

/// The program `ci` of the repository: the one that is tested, without the minutes that it takes to compile.
const CI: &str = r#"//! Is `ci`.
fn main() {
    use std::os::unix::process::CommandExt;
    let error = std::process::Command::new(env!("CI")).args(std::env::args_os().skip(1)).exec();
    panic!("{error}");
}
"#;

impl Forge {
    /// With a repository of a small service and of `ci`, whose workflow is ours.
    pub fn new() -> Self {
        let ci = format!("{:?}", env!("CARGO_BIN_EXE_ci"));
        // No run before had volumes of this name: what is in them has come from the caches.
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
                // As it is, and behind it somebody who uses what it puts out.
                (PATH, &format!("{WORKFLOW}{GITOPS}")),
            ],
        );
        project.depend("itoa = \"1.0.1\"");
        project.format("");
        project.commit("a service with a dependency");
        project.git(&["remote", "add", "origin", env!("CARGO_PKG_REPOSITORY")]);
        let folder = tempfile::Builder::new().prefix("forge").tempdir().unwrap();
        let forge = Self { folder, project };
        // The runner's own home, in which nobody has built anything yet, but with the machine's way to the registry.
        let home = forge.path("home/.cargo");
        std::fs::create_dir_all(&home).unwrap();
        for name in ["config.toml", "config", "credentials.toml"] {
            let _ = std::fs::copy(cargo_home().join(name), home.join(name));
        }
        std::fs::create_dir_all(forge.path("caches")).unwrap();
        forge
    }

    /// A path of the forge's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Brings what main has left into another working tree.
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

    /// What was restored and saved, in its order.
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

    /// Runs the workflow to its end.
    pub fn runs(&self, event: &Event<'_>) -> Run {
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
            .envs(kept())
            .env("HOME", self.path("home"))
            .env("CACHES", self.path("caches"))
            .env("ARTIFACTS", &artifacts)
            .env("GITOPS", artifacts.join("gitops"))
            .env("LAB_CI_REGISTRY", event.registry)
            .stdin(Stdio::null());
        // Not in the runner's environment, which every step would have.
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

    /// What the job behind the publishing one was told.
    pub fn gitops(&self, run: &Run) -> String {
        std::fs::read_to_string(run.artifact.parent().unwrap().join("gitops")).unwrap()
    }
}

fn home() -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").unwrap())
}

pub fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}

/// What the runner has of this machine: the toolchain, the engine that everybody uses, and the way to the registries of packages.
pub fn kept() -> Vec<(String, std::ffi::OsString)> {
    let root = common::provision::cache_root().unwrap();
    let rustup = std::env::var_os("RUSTUP_HOME").unwrap_or_else(|| home().join(".rustup").into());
    let path = std::env::var_os("PATH").unwrap();
    let mut programs: Vec<_> = std::env::split_paths(&path).collect();
    // rustup's programs are in the home that the runner does not have.
    programs.insert(0, cargo_home().join("bin"));
    let mut kept = vec![
        ("PATH".to_owned(), std::env::join_paths(programs).unwrap()),
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
        kept.extend(std::env::var_os(name).map(|value| (name.to_owned(), value)));
    }
    kept
}

/// What GitHub sends of a pull request.
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

/// A job that takes what was published, as one of GitOps would.
const GITOPS: &str = r#"
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
fn it_publishes_a_push_to_main_and_checks_pull_requests_and_so_does_cron() {
    let forge = Forge::new();
    let project = &forge.project;
    let repository = project.repository();
    let registry = Registry::with_credential("somebody", TOKEN);
    let address = registry.address();
    let sha = project.git(&["rev-parse", "HEAD"]);
    let short = project.git(&["rev-parse", "--short", "HEAD"]);

    let run = forge.runs(&Event {
        name: "push",
        payload: json!({ "ref": "refs/heads/main", "after": sha }),
        token: Some(TOKEN),
        registry: &address,
    });
    assert!(run.succeeded, "{}", run.log);
    assert_eq!(run.jobs(), ["Check and publish", "deploy"]);
    let report = &run.report;
    assert_eq!(report["commit"], sha.as_str());
    assert_eq!(report["event"], "push");
    assert_eq!(report["publish"]["outcome"], "pushed");
    let digest = registry.digest(repository, &short);
    assert_eq!(report["digest"], digest.as_str());
    let archive = run.kept("image.tar");
    assert_eq!(ci::image::archive::read_digest(&archive).unwrap(), digest);
    let image = format!("{address}/{repository}:{short}");
    assert_eq!(forge.gitops(&run), format!("{image} {short} {digest}\n"));
    let summary = std::fs::read_to_string(run.kept("summary.md")).unwrap();
    assert!(summary.starts_with("## passed") && summary.contains(&digest));
    // What GitHub would show beside the run, the runner says.
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

    // A stranger's pull request, without a token, that a gate says no to; and one that is well.
    project.git(&["switch", "--quiet", "--create", "topic"]);
    project.edit("api/src/main.rs", "fn main() {", "fn  main() {");
    project.commit("not formatted");
    let ask = |number, fork, token| {
        let head = project.git(&["rev-parse", "HEAD"]);
        forge.runs(&Event {
            name: "pull_request",
            payload: pull_request(number, &head, fork),
            token,
            registry: &address,
        })
    };
    let strangers = ask(7, true, None);
    assert!(!strangers.succeeded, "{}", strangers.log);
    for name in ["test", "lint", "build", "scan", "smoke"] {
        let step = step(&strangers.report, name);
        assert_eq!(step["status"], "passed", "{step:#}");
        assert!(step["reused"].is_null(), "all gates have run: {step:#}");
    }
    assert_eq!(step(&strangers.report, "fmt")["status"], "failed");
    let restored = strangers.report["cache"]["restored"].to_string();
    for part in [
        "test/dependencies",
        "lint/dependencies",
        "build/dependencies",
    ] {
        assert!(restored.contains(part), "{restored}\n{}", strangers.log);
    }
    project.git(&["revert", "--no-edit", "HEAD"]);
    let well = ask(8, false, Some(TOKEN));
    assert!(well.succeeded, "{}", well.log);
    for name in ["test", "fmt", "lint", "build"] {
        let step = step(&well.report, name);
        assert_eq!(step["status"], "passed");
        assert_eq!(
            step["reused"]["commit"], sha,
            "the same sources have passed on main"
        );
    }
    for run in [&strangers, &well] {
        assert_eq!(run.jobs(), ["Check the pull request"]);
        let report = &run.report;
        assert_eq!(report["event"], "pull-request");
        assert_eq!(step(report, "publish")["status"], "skipped");
        assert_eq!(report["publish"], Value::Null);
        // They have what main has left, and leave nothing.
        assert_eq!(report["cache"]["read_only"], true);
    }
    assert_eq!(forge.scopes(), ["refs_heads_main"]);

    project.git(&["switch", "--quiet", "main"]);
    a_cron_host_checks_main(&forge);
    assert_eq!(registry.tags(repository), tags);
}
