//! The workflow's own file, run by a real workflow runner with this machine as its host: as a push to main, as a pull request, as a
//! stranger's pull request.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use ci::narrator::Silent;
use ci::pins;
use ci::provision::{GoModule, go_tools};
use serde_json::{Value, json};

use crate::harness::git;
use crate::registry::block_on;

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
const WORKFLOW: &str = ".github/workflows/docker-builder.yml";
/// What takes the place of actions that no machine without GitHub can fetch.
const ACTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/act/actions");

fn act() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| block_on(go_tools(&ACT, &Silent)).unwrap().join("act"))
}

/// GitHub, as far as a workflow sees it: a repository, its caches and its artifacts.
pub struct Forge {
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

impl Forge {
    /// With this repository's own commit.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("forge").tempdir().unwrap();
        let forge = Self { folder };
        let origin = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let (origin, clone) = (origin.to_str().unwrap(), forge.checkout());
        git(
            Path::new("/"),
            &["clone", "--quiet", origin, clone.to_str().unwrap()],
        );
        git(&clone, &["checkout", "--quiet", "-B", "main"]);
        let url = env!("CARGO_PKG_REPOSITORY");
        git(&clone, &["remote", "set-url", "origin", url]);
        // The runner's own home, in which nobody has built anything yet, but with the machine's way to the registry.
        let home = forge.path("home/.cargo");
        std::fs::create_dir_all(&home).unwrap();
        for name in ["config.toml", "config", "credentials.toml"] {
            let _ = std::fs::copy(cargo_home().join(name), home.join(name));
        }
        std::fs::create_dir_all(forge.path("caches")).unwrap();
        forge
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The repository's working tree.
    pub fn checkout(&self) -> PathBuf {
        self.path("infrastructure-lab")
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
            .args([event.name, "--workflows", WORKFLOW])
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
            .current_dir(self.checkout())
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

fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}

/// What the runner has of this machine: the toolchain, the engine that everybody uses, and the way to the registries of packages.
fn kept() -> Vec<(String, std::ffi::OsString)> {
    let root = ci::provision::cache_root().unwrap();
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
pub fn pull_request(number: u32, head: &str, fork: bool) -> Value {
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

/// The job of another repository's that takes what was published, as the workflow's readers are told.
pub const GITOPS: &str = r#"
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
