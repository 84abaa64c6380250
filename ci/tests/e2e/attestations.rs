//! The attestations of a published image: fetched with ORAS, and validated with the reference libraries of their specifications.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use ci::image::attestations::{CYCLONEDX, IN_TOTO, fallback_tag};
use common::pins;
use common::progress::Silent;
use common::provision::{GoModule, build_go_tools};
use serde_json::Value;

use crate::harness::{Outcome, Project};
use crate::installed::{run, venv};
use crate::registry::{Registry, block_on};
use crate::sources::short_sha;

/// ORAS, and a registry with the referrers API.
const TOOLS: GoModule = GoModule {
    name: "test-tools",
    version: pins::ORAS,
    files: &[
        ("go.mod", include_str!("gomod/go.mod")),
        ("go.sum", include_str!("gomod/go.sum")),
        ("registry/main.go", include_str!("gomod/registry/main.go")),
    ],
    packages: &["oras.land/oras/cmd/oras", "tools/registry"],
    ldflags: "-s -w",
    env: &[],
    build_time: "less than a minute",
};

fn tool(name: &str) -> PathBuf {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    let bin = BIN.get_or_init(|| block_on(build_go_tools(&TOOLS, &Silent)).unwrap());
    bin.join(name)
}

/// A registry with the referrers API, and its address. It is stopped on drop.
struct ReferrersRegistry(Child, String);

impl ReferrersRegistry {
    fn start() -> Self {
        let mut child = Command::new(tool("registry"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap()
            .to_owned();
        Self(child, address)
    }
}

impl Drop for ReferrersRegistry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn oras(arguments: &[&str]) -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(tool("oras"))
        .args(arguments)
        .env_clear()
        .env("HOME", home.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "oras {arguments:?}: {stderr}");
    output.stdout
}

/// Artifact type and digest of each referrer of an image, discovered by ORAS with the API or the fallback tag.
fn find_referrers(image: &str, by: &str) -> Vec<(String, String)> {
    let arguments = [
        "discover",
        "--plain-http",
        "--format",
        "json",
        "--distribution-spec",
    ];
    let found = oras(&[&arguments[..], &[by, image]].concat());
    let found: Value = serde_json::from_slice(&found).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found = found["manifests"].as_array().unwrap().iter();
    found
        .map(|it| (text(&it["artifactType"]), text(&it["digest"])))
        .collect()
}

/// Asserts that the image has both attestations, equal to those in the report directory.
fn assert_has_attestations(project: &Project, run: &Outcome, address: &str, by: &str) {
    let repository = format!("{address}/{}", project.repository());
    let digest = run.report["digest"].as_str().unwrap();
    let found = find_referrers(&format!("{repository}@{digest}"), by);
    assert_eq!(found.len(), 2, "{found:?}");
    let reported = run.report["publish"]["referrers"].as_array().unwrap();
    let files = [
        (CYCLONEDX, "sbom.cdx.json"),
        (IN_TOTO, "provenance.intoto.json"),
    ];
    for ((kind, file), reported) in files.iter().zip(reported) {
        assert_eq!(reported["artifact_type"], *kind);
        let digest = reported["digest"].as_str().unwrap();
        assert!(
            found.iter().any(|(_, listed)| listed == digest),
            "{found:?}"
        );
        let manifest = format!("{repository}@{digest}");
        let manifest = oras(&["manifest", "fetch", "--plain-http", &manifest]);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["artifactType"], *kind);
        // ORAS verifies the digest.
        let blob = manifest["layers"][0]["digest"].as_str().unwrap();
        let blob = format!("{repository}@{blob}");
        let published = oras(&["blob", "fetch", "--plain-http", "--output", "-", &blob]);
        let local = std::fs::read(project.path().join("target/ci").join(file)).unwrap();
        assert_eq!(published, local, "{kind}");
    }
}

fn assert_valid(reports: &Path) {
    let attestation = format!("in-toto-attestation=={}", pins::IN_TOTO);
    let validation = format!("cyclonedx-python-lib[json-validation]=={}", pins::CYCLONEDX);
    let python = venv(
        "cyclonedx-python-lib",
        pins::CYCLONEDX,
        &[&validation, &attestation],
    );
    run(Command::new(python.join("bin/python3"))
        .args(["-c", include_str!("attestations.py")])
        .arg(reports.join("sbom.cdx.json"))
        .arg(reports.join("provenance.intoto.json")));
}

#[test]
fn publishes_two_valid_attestations_under_the_fallback_tag() {
    let project = Project::new("attestations");
    project.add_dependency("itoa = \"=1.0.15\"");
    let sha = project.commit("a dependency");
    let registry = Registry::open();
    let address = registry.address();
    let publish = || {
        project
            .ci(&["publish", "--registry", &address])
            .run()
            .exits(0)
    };
    let run = publish();
    assert_has_attestations(&project, &run, &address, "v1.1-referrers-tag");
    let reports = project.path().join("target/ci");
    assert_valid(&reports);

    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(reports.join(name)).unwrap()).unwrap()
    };
    let components = read("sbom.cdx.json")["components"].take();
    let components = components.as_array().unwrap();
    let has = |purl: &str| components.iter().any(|it| it["purl"] == purl);
    assert!(
        has("pkg:cargo/itoa@1.0.15") && has("pkg:cargo/api@1.2.3"),
        "{components:#?}"
    );

    let provenance = read("provenance.intoto.json");
    let digest = run.report["digest"].as_str().unwrap();
    assert_eq!(
        format!(
            "sha256:{}",
            provenance["subject"][0]["digest"]["sha256"]
                .as_str()
                .unwrap()
        ),
        digest
    );
    let definition = &provenance["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["revision"], sha.as_str());
    assert_eq!(definition["externalParameters"]["clean"], true);
    let dependencies = definition["resolvedDependencies"].as_array().unwrap();
    let dependency = |name: &str| dependencies.iter().find(|it| it["name"] == name).unwrap();
    assert_eq!(dependency("source")["digest"]["gitCommit"], sha.as_str());
    let lockfile = common::digest::sha256(project.read("Cargo.lock").as_bytes());
    assert_eq!(
        format!(
            "sha256:{}",
            dependency("Cargo.lock")["digest"]["sha256"]
                .as_str()
                .unwrap()
        ),
        lockfile
    );
    let toolchain = dependency("toolchain")["digest"]["sha256"]
        .as_str()
        .unwrap();
    let stand_ins = run.report["stand_ins"].to_string();
    assert!(toolchain.len() == 64, "{toolchain}");
    assert!(
        stand_ins == "[]" || stand_ins.contains(toolchain),
        "{stand_ins}"
    );

    // Existing artifacts are not pushed again, but a missing attestation is added.
    let again = publish().says("with the same digest; nothing was pushed");
    assert_eq!(again.report["publish"]["outcome"], "already-there");
    for attestation in again.report["publish"]["referrers"].as_array().unwrap() {
        assert_eq!(attestation["outcome"], "already-there");
    }
    let list = fallback_tag(digest);
    let mut index: Value =
        serde_json::from_slice(&registry.index(project.repository(), &list)).unwrap();
    index["manifests"]
        .as_array_mut()
        .unwrap()
        .retain(|it| it["artifactType"] == IN_TOTO);
    registry.put_index(project.repository(), &list, index.to_string().into_bytes());
    let tags = registry
        .requests("PUT")
        .iter()
        .filter(|it| it.ends_with(&short_sha(&project)))
        .count();
    let repaired = publish().says("missing attestations were added");
    assert_eq!(repaired.report["publish"]["outcome"], "already-there");
    let outcomes = repaired.report["publish"]["referrers"]
        .as_array()
        .unwrap()
        .iter();
    let outcomes: Vec<_> = outcomes
        .map(|it| (it["artifact_type"].clone(), it["outcome"].clone()))
        .collect();
    assert_eq!(
        outcomes,
        [
            (CYCLONEDX.into(), "pushed".into()),
            (IN_TOTO.into(), "already-there".into())
        ]
    );
    let image = format!("{address}/{}@{digest}", project.repository());
    let found = find_referrers(&image, "v1.1-referrers-tag");
    let mut kinds: Vec<_> = found.iter().map(|(kind, _)| kind.as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [CYCLONEDX, IN_TOTO]);
    let tagged = registry
        .requests("PUT")
        .iter()
        .filter(|it| it.ends_with(&short_sha(&project)))
        .count();
    assert_eq!(tagged, tags, "the image's tag was pushed again");
}

#[test]
fn sets_no_fallback_tag_if_the_registry_has_the_referrers_api() {
    let project = Project::new("attestations-api");
    let registry = ReferrersRegistry::start();
    let run = project
        .ci(&["publish", "--registry", &registry.1])
        .run()
        .exits(0);
    assert_has_attestations(&project, &run, &registry.1, "v1.1-referrers-api");
    let tags = oras(&[
        "repo",
        "tags",
        "--plain-http",
        &format!("{}/{}", registry.1, project.repository()),
    ]);
    assert_eq!(String::from_utf8(tags).unwrap().trim(), short_sha(&project));
}

#[test]
fn provenance_names_the_github_workflow_and_run() {
    let project = Project::new("attestations-github");
    project
        .ci(&["build"])
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_EVENT_NAME", "pull_request")
        .env("GITHUB_SERVER_URL", "https://github.com")
        .env("GITHUB_REPOSITORY", "o/r")
        .env("GITHUB_RUN_ID", "17")
        .env("GITHUB_RUN_ATTEMPT", "2")
        .env(
            "GITHUB_WORKFLOW_REF",
            "o/r/.github/workflows/w.yml@refs/pull/1/merge",
        )
        .run()
        .exits(0);
    let text = project.read("target/ci/provenance.intoto.json");
    let details = serde_json::from_str::<Value>(&text).unwrap()["predicate"]["runDetails"].take();
    assert_eq!(
        details["builder"]["id"],
        "https://github.com/o/r/.github/workflows/w.yml@refs/pull/1/merge"
    );
    assert_eq!(
        details["metadata"]["invocationId"],
        "https://github.com/o/r/actions/runs/17/attempts/2"
    );
}
