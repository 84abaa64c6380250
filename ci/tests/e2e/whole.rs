//! Publishes the current commit of this repository, and examines and runs the published image.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Ci, git};
use crate::image::decompress;
use crate::registry::Registry;

const REPOSITORY: &str = "upwind1647/status-api";
const TOKEN: &str = "ghs_whole-run-token";

#[test]
fn publishes_this_repository_as_one_static_binary() {
    let folder = tempfile::Builder::new()
        .prefix("whole run ")
        .tempdir()
        .unwrap();
    let clone = folder.path().join("clone");
    let origin = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    git(
        folder.path(),
        &[
            "clone",
            "--quiet",
            origin.to_str().unwrap(),
            clone.to_str().unwrap(),
        ],
    );
    let sha = git(&clone, &["rev-parse", "HEAD"]);
    let short = git(&clone, &["rev-parse", "--short=7", "HEAD"]);

    let registry = Registry::with_credential("somebody", TOKEN);
    let run = Ci::new(&clone, &["--registry", &registry.address()])
        .push_to_main(&sha, TOKEN)
        .run()
        .exits(0);

    // A new clone compiles its dependencies, as far as `ci` knows.
    let has_few_processors = std::thread::available_parallelism().unwrap().get() <= 2;
    assert_eq!(
        run.stderr.contains("with few processors: steps take turns"),
        has_few_processors
    );

    // Every gate passed, on the same image.
    for step in ["test", "fmt", "lint", "build", "scan", "smoke", "publish"] {
        assert_eq!(run.status(step), "passed", "{step}");
    }
    let digest = run.report["digest"].as_str().unwrap();
    for step in ["build", "scan", "smoke", "publish"] {
        assert_eq!(run.step(step)["digest"], digest, "{step}");
    }
    assert_eq!(
        ci::image::archive::read_digest(&clone.join("target/ci/image.tar")).unwrap(),
        digest
    );
    assert_eq!(run.report["publish"]["digest"], digest);
    assert_eq!(run.report["tag"], short);
    assert_eq!(
        registry.tags(REPOSITORY),
        json!([&short, &ci::image::attestations::fallback_tag(digest)])
    );
    let manifest = registry.manifest(REPOSITORY, &short);
    assert_eq!(common::digest::sha256(&manifest), digest);

    // The image has the right labels.
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
        compiler.starts_with(&format!("rustc {} ", common::pins::RUST)),
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
        "a label contains the short SHA"
    );
    assert_eq!(image["config"]["ExposedPorts"], json!({ "8000/tcp": {} }));

    // The image contains one file, and so neither a shell nor a library.
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1);
    let layer = registry.blob(REPOSITORY, layers[0]["digest"].as_str().unwrap());
    let rootfs = folder.path().join("bundle/rootfs");
    std::fs::create_dir_all(&rootfs).unwrap();
    let entries = unpack(&layer, &rootfs);
    assert_eq!(entries, [(PathBuf::from("api"), 0o755)]);

    run_read_only(&folder.path().join("bundle"), &image);
}

fn unpack(layer: &[u8], to: &Path) -> Vec<(PathBuf, u32)> {
    let plain = decompress(layer);
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

/// Runs the bundle with runc as the image's user, without capabilities, on a read-only root file system.
fn run_read_only(bundle: &Path, image: &Value) {
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
        is_healthy(port)
    });
    // Stops the container even if it did not answer.
    let stopped = runc(&["kill", &id, "TERM"]).status().unwrap();
    let status = child.wait().unwrap();
    let mut output = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut output)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut output)
        .unwrap();
    assert!(answered, "GET /health: {output}");
    assert!(stopped.success());
    assert_eq!(status.code(), Some(0), "exit code after SIGTERM: {output}");
    for line in output.lines() {
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

fn is_healthy(port: u16) -> bool {
    use std::io::Write;
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let sent = write!(
        stream,
        "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    );
    let mut answer = String::new();
    sent.is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200 ")
}
