//! This repository's own commit, all the way through its own workflow: what is shipped is what was promised.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{git, whole_machine};
use crate::registry::Registry;
use crate::workflow::{Event, Forge, GITOPS, Run, pull_request};

const REPOSITORY: &str = "upwind1647/status-api";
const TOKEN: &str = "ghs_whole-run-token";

#[test]
fn the_workflow_ships_a_push_of_this_commit_and_checks_pull_requests() {
    let _busy = whole_machine();
    let folder = tempfile::tempdir().unwrap();
    let forge = Forge::new();
    let clone = forge.checkout();
    let registry = Registry::with_credential("somebody", TOKEN);
    // The file as it is, and behind it somebody who uses what it puts out.
    let workflow = clone.join(".github/workflows/docker-builder.yml");
    let text = std::fs::read_to_string(&workflow).unwrap() + GITOPS;
    std::fs::write(&workflow, text).unwrap();
    git(
        &clone,
        &[
            "commit",
            "--quiet",
            "--all",
            "--message",
            "somebody uses it",
        ],
    );
    let sha = git(&clone, &["rev-parse", "HEAD"]);
    let short = git(&clone, &["rev-parse", "--short", "HEAD"]);

    let run = forge.runs(&Event {
        name: "push",
        payload: json!({ "ref": "refs/heads/main", "after": sha }),
        token: Some(TOKEN),
        registry: &registry.address(),
    });
    assert!(run.succeeded, "{}", run.log);
    assert_eq!(run.jobs(), ["Check and publish", "deploy"]);
    is_published(&run, &registry, &sha, &short, folder.path());
    let report = &run.report;
    let digest = report["digest"].as_str().unwrap();
    let image = report["image"].as_str().unwrap();
    assert_eq!(forge.gitops(&run), format!("{image} {short} {digest}\n"));
    let summary = std::fs::read_to_string(run.kept("github-step-summary")).unwrap();
    assert!(
        summary.contains("## passed") && summary.contains(digest),
        "{summary}"
    );
    assert_eq!(
        std::fs::read_to_string(run.kept("summary.md")).unwrap(),
        summary
    );
    assert!(!run.log.contains(TOKEN), "the token is in the log");
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
            "saved engine"
        ]
    );
    let tags = registry.tags(REPOSITORY);

    // A stranger's pull request, without a token, that a gate says no to; and one that is well.
    git(&clone, &["switch", "--quiet", "--create", "topic"]);
    let main = clone.join("api/src/main.rs");
    let text = std::fs::read_to_string(&main).unwrap();
    std::fs::write(&main, text.replace("fn main()", "fn  main()")).unwrap();
    git(
        &clone,
        &["commit", "--quiet", "--all", "--message", "not formatted"],
    );
    let ask = |number, fork, token| {
        let head = git(&clone, &["rev-parse", "HEAD"]);
        forge.runs(&Event {
            name: "pull_request",
            payload: pull_request(number, &head, fork),
            token,
            registry: &registry.address(),
        })
    };
    let strangers = ask(7, true, None);
    assert!(!strangers.succeeded, "{}", strangers.log);
    for step in ["test", "lint", "build", "scan", "smoke"] {
        let step = step_of(&strangers.report, step);
        assert_eq!(step["status"], "passed", "{step:#}");
        assert!(step["reused"].is_null(), "all gates have run: {step:#}");
    }
    assert_eq!(step_of(&strangers.report, "fmt")["status"], "failed");
    let restored = strangers.report["cache"]["restored"].as_array().unwrap();
    assert!(!restored.is_empty(), "{:#}", strangers.report["cache"]);
    git(&clone, &["revert", "--no-edit", "HEAD"]);
    let well = ask(8, false, Some(TOKEN));
    assert!(well.succeeded, "{}", well.log);
    for step in ["test", "fmt", "lint", "build"] {
        let step = step_of(&well.report, step);
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
        assert_eq!(step_of(report, "publish")["status"], "skipped");
        assert_eq!(report["publish"], Value::Null);
        // They have what main has left, and leave nothing.
        assert_eq!(report["cache"]["read_only"], true);
    }
    assert_eq!(forge.scopes(), ["refs_heads_main"]);
    assert_eq!(registry.tags(REPOSITORY), tags);
}

fn step_of<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == name).unwrap()
}

/// What is in the registry is this commit's image, it is what all gates saw, and it runs.
fn is_published(run: &Run, registry: &Registry, sha: &str, short: &str, folder: &Path) {
    // Every gate passed, and all that saw the image saw the same.
    for step in ["test", "fmt", "lint", "build", "scan", "smoke", "publish"] {
        assert_eq!(step_of(&run.report, step)["status"], "passed", "{step}");
    }
    let digest = run.report["digest"].as_str().unwrap();
    for step in ["build", "scan", "smoke", "publish"] {
        assert_eq!(step_of(&run.report, step)["digest"], digest, "{step}");
    }
    assert_eq!(
        ci::oci::read_digest(&run.kept("image.tar")).unwrap(),
        digest
    );
    assert_eq!(run.report["publish"]["digest"], digest);
    assert_eq!(run.report["tag"], short);
    assert_eq!(
        registry.tags(REPOSITORY),
        json!([short, ci::referrer::fallback_tag(digest)])
    );
    let manifest = registry.manifest(REPOSITORY, short);
    assert_eq!(ci::oci::sha256(&manifest), digest);

    // The image says what it is.
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let config = registry.blob(REPOSITORY, manifest["config"]["digest"].as_str().unwrap());
    let image: Value = serde_json::from_slice(&config).unwrap();
    let labels = &image["config"]["Labels"];
    assert_eq!(labels["org.opencontainers.image.revision"], sha);
    assert_eq!(
        labels["org.opencontainers.image.version"],
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(
        labels["org.opencontainers.image.source"],
        env!("CARGO_PKG_REPOSITORY")
    );
    let compiler = labels["io.github.upwind1647.infrastructure-lab.compiler"]
        .as_str()
        .unwrap();
    assert!(
        compiler.starts_with(&format!("rustc {} ", ci::pins::RUST)),
        "{compiler}"
    );
    assert!(
        labels["io.github.upwind1647.infrastructure-lab.linker"]
            .as_str()
            .unwrap()
            .contains("ld")
    );
    assert!(
        !labels.to_string().contains(&format!("\"{short}\"")),
        "the short SHA is only in the tag"
    );
    assert_eq!(image["config"]["ExposedPorts"], json!({ "8000/tcp": {} }));

    // It holds one file and nothing else: no shell, no library.
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1);
    let layer = registry.blob(REPOSITORY, layers[0]["digest"].as_str().unwrap());
    let rootfs = folder.join("bundle/rootfs");
    std::fs::create_dir_all(&rootfs).unwrap();
    let entries = unpack(&layer, &rootfs);
    assert_eq!(entries, [(PathBuf::from("api"), 0o755)]);

    runs_read_only(&folder.join("bundle"), &image);
}

fn unpack(layer: &[u8], to: &Path) -> Vec<(PathBuf, u32)> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(layer)
        .read_to_end(&mut plain)
        .unwrap();
    let mut archive = tar::Archive::new(&plain[..]);
    let mut entries = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        entries.push((
            entry.path().unwrap().into_owned(),
            entry.header().mode().unwrap(),
        ));
        entry.unpack_in(to).unwrap();
    }
    entries
}

/// Runs the bundle with runc: as the image's own user, without a capability, on a read-only root file system.
fn runs_read_only(bundle: &Path, image: &Value) {
    let config = &image["config"];
    let (uid, gid) = config["User"].as_str().unwrap().split_once(':').unwrap();
    let (uid, gid): (u32, u32) = (uid.parse().unwrap(), gid.parse().unwrap());
    assert!(uid > 0 && gid > 0);
    let port = free_port();
    let mut env = config["Env"].as_array().unwrap().clone();
    env.retain(|variable| !variable.as_str().unwrap().starts_with("PORT="));
    env.push(json!(format!("PORT={port}")));
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": uid, "gid": gid },
            "args": config["Entrypoint"],
            "env": env,
            "cwd": config["WorkingDir"],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        // The host's network, so that the test reaches the port.
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }] },
    });
    std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let state = bundle.join("state");
    let id = format!("ci-e2e-{port}");
    let runc = |arguments: &[&str]| {
        let mut command = Command::new("runc");
        command
            .arg("--root")
            .arg(&state)
            .args(arguments)
            .current_dir(bundle)
            .stdin(Stdio::null());
        command
    };
    let mut child = runc(&["run", &id])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let answered = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        answers(port)
    });
    // Also where nothing answered, so that nothing is left running.
    let stopped = runc(&["kill", &id, "TERM"]).status().unwrap();
    let status = child.wait().unwrap();
    let mut said = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(answered, "GET /health: {said}");
    assert!(stopped.success());
    assert_eq!(status.code(), Some(0), "SIGTERM ends it well: {said}");
    for line in said.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn answers(port: u16) -> bool {
    use std::io::Write;
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let asked = write!(
        stream,
        "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    );
    let mut answer = String::new();
    asked.is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200 ")
}
