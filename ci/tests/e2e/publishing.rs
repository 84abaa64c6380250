//! Publishing: its conditions, its results, and the protection of the credential.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ci::image::archive;
use ci::image::attestations::fallback_tag;
use common::digest;

use crate::harness::{Ci, Outcome, Project};
use crate::image::Image;
use crate::registry::{FakeRegistry, Registry, response, unused_address};
use crate::sources::short_sha;

/// The user name that `push_to_main` sets.
const USER: &str = "somebody";
/// Starts like a token of GitHub Actions, which is all that `ci` checks.
const TOKEN: &str = "ghs_0nly-for_this.test";
/// With this engine, every call that uses it exits with code 3.
const NO_ENGINE: [&str; 2] = ["--engine", "unix:///nonexistent/engine.sock"];

/// Asserts that no step ran.
#[track_caller]
fn assert_did_no_work(run: &Outcome) {
    for step in run.report["steps"].as_array().into_iter().flatten() {
        assert_eq!(step["status"], "skipped", "{:#}", run.report);
    }
    assert_eq!(run.report["publish"], serde_json::Value::Null);
}

#[test]
fn publishes_a_push_to_main_once() {
    let project = Project::new("push-to-main");
    let registry = Registry::with_credential(USER, TOKEN);
    let sha = project.git(&["rev-parse", "HEAD"]);
    let tag = short_sha(&project);
    let address = registry.address();
    let push = || {
        project
            .ci(&["run", "--registry", &address])
            .push_to_main(&sha, TOKEN)
            .run()
            .exits(0)
    };

    let run = push();
    let digest = registry.digest(project.repository(), &tag);
    for step in ["build", "scan", "smoke", "publish"] {
        assert_eq!(run.step(step)["digest"], digest.as_str(), "{step}");
    }
    assert_eq!(run.report["digest"], digest.as_str());
    let archive = project.path().join("target/ci/image.tar");
    assert_eq!(archive::read_digest(&archive).unwrap(), digest);
    let published = &run.report["publish"];
    assert_eq!(published["outcome"], "pushed");
    assert_eq!(published["digest"], digest.as_str());
    assert_eq!(
        published["image"],
        format!("{address}/{}:{tag}", project.repository())
    );
    assert_eq!(run.report["commit"], sha.as_str());
    // The registry lacks the referrers API, so the attestations are listed under a second tag.
    let list = fallback_tag(&digest);
    let mut tags = [list, tag.clone()];
    tags.sort();
    assert_eq!(registry.tags(project.repository()), serde_json::json!(tags));

    // The layer in the registry equals the one in the archive.
    let manifest = registry.manifest(project.repository(), &tag);
    let parsed: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layer = parsed["layers"][0]["digest"].as_str().unwrap();
    assert_eq!(
        registry.blob(project.repository(), layer),
        archive::read_entry(&archive, &archive::blob_path(layer)).unwrap()
    );

    let uploads = |method| registry.requests(method).len();
    let before = ["POST", "PATCH", "PUT"].map(uploads);
    let again = push();
    assert_eq!(again.report["publish"]["outcome"], "already-there");
    assert_eq!(again.report["digest"], digest.as_str());
    let after = ["POST", "PATCH", "PUT"].map(uploads);
    // One upload is started and cancelled, to check write access.
    assert_eq!(after, [before[0] + 1, before[1], before[2]]);
    assert_eq!(registry.digest(project.repository(), &tag), digest);

    // A rerun for an old commit, after a newer one was published, changes no tag.
    project.commit("a newer commit");
    let newer = project.git(&["rev-parse", "HEAD"]);
    let on = |sha: &str| {
        project
            .ci(&["--registry", &address])
            .push_to_main(sha, TOKEN)
            .env("GITHUB_RUN_ATTEMPT", "2")
    };
    assert_eq!(
        on(&newer).run().exits(0).report["publish"]["outcome"],
        "pushed"
    );
    let tags = registry.tags(project.repository());
    // If the wrong commit is checked out, nothing is published.
    on(&sha).run().exits(4).publishes_nothing();
    project.git(&["checkout", "--quiet", &sha]);
    let old = on(&sha).run().exits(0);
    assert_eq!(old.report["publish"]["outcome"], "already-there");
    assert_eq!(old.report["publish"]["digest"], digest.as_str());
    assert_eq!(registry.tags(project.repository()), tags);
}

#[test]
fn never_overwrites_a_tag_with_another_digest() {
    let project = Project::new("taken");
    let registry = Registry::open();
    let address = registry.address();
    let publish = || project.ci(&["publish", "--registry", &address]).run();

    // GitHub's conditions do not apply to loopback registries.
    let run = publish().exits(0);
    assert_eq!(run.report["publish"]["outcome"], "pushed");
    let first = short_sha(&project);
    let other = registry.manifest(project.repository(), &first);
    assert_eq!(run.report["digest"], digest::sha256(&other).as_str());

    project.commit("another one");
    let tag = short_sha(&project);
    registry.put_manifest(project.repository(), &tag, other.clone());
    let writes = registry.requests("PUT").len() + registry.requests("PATCH").len();
    let run = publish()
        .exits(4)
        .says("already exists as the image of another commit")
        .says(&digest::sha256(&other))
        .says(&project.git(&["rev-parse", "HEAD"]))
        .says(&project.git(&["rev-parse", "HEAD~"]));
    let ours = run.report["digest"].as_str().unwrap().to_owned();
    assert_ne!(ours, digest::sha256(&other));
    run.says(&ours).only_fails("publish");
    assert_eq!(registry.manifest(project.repository(), &tag), other);
    let now = registry.requests("PUT").len() + registry.requests("PATCH").len();
    assert_eq!(now, writes);

    // The same commit, but an image with another digest.
    project.git(&["checkout", "--quiet", "HEAD~"]);
    let mut manifest: serde_json::Value = serde_json::from_slice(&other).unwrap();
    manifest["annotations"] = serde_json::json!({ "built": "otherwise" });
    let otherwise = manifest.to_string().into_bytes();
    registry.put_manifest(project.repository(), &first, otherwise.clone());
    publish()
        .exits(4)
        .says("already exists with another digest")
        .says(&digest::sha256(&other))
        .says(&digest::sha256(&otherwise))
        .only_fails("publish");
    assert_eq!(registry.manifest(project.repository(), &first), otherwise);
}

#[test]
fn publishes_nothing_when_a_gate_fails() {
    let project = Project::new("failing-push");
    project.edit("api/src/main.rs", "fn main() {", "fn  main() {");
    let sha = project.commit("badly formatted");
    let registry = Registry::with_credential(USER, TOKEN);
    let run = project
        .ci(&["--registry", &registry.address()])
        .push_to_main(&sha, TOKEN)
        .run()
        .exits(1)
        .only_fails("fmt");
    assert_eq!(run.status("smoke"), "passed");
    assert_eq!(run.status("publish"), "skipped");
    registry.assert_empty();
}

#[test]
fn rejects_a_wrong_credential_before_any_gate() {
    let project = Project::new("wrong-credential");
    let registry = Registry::with_credential(USER, "ghs_another");
    let sha = project.git(&["rev-parse", "HEAD"]);
    let run = project
        .ci(&["run", "--registry", &registry.address()])
        .env("LAB_CI_ENGINE", NO_ENGINE[1])
        .push_to_main(&sha, TOKEN)
        .run()
        .exits(4)
        .says("UNAUTHORIZED");
    assert_did_no_work(&run);
    registry.assert_empty();
}

#[test]
fn fails_before_any_gate_when_the_registry_is_unreachable() {
    let project = Project::new("no-registry");
    let sha = project.git(&["rev-parse", "HEAD"]);
    let address = unused_address();
    let run = project
        .ci(&["run", "--registry", &address])
        .env("LAB_CI_ENGINE", NO_ENGINE[1])
        .push_to_main(&sha, TOKEN)
        .run()
        .exits(3)
        .says(&format!("cannot reach the registry {address}"));
    assert_did_no_work(&run);
}

#[test]
fn refuses_before_any_work_when_a_publish_condition_is_missing() {
    let project = Project::new("conditions");
    let sha = project.git(&["rev-parse", "HEAD"]);
    let registry = FakeRegistry::untouched();
    let address = registry.address();
    let here: &[&str] = &["run", "--registry", &address];
    // Not a loopback address, so GitHub's conditions apply. The name is never resolved.
    let away: &[&str] = &["publish", "--registry", "registry.invalid"];
    let refused = |arguments: &[&str], changes: &[(&str, &str)], condition: &str| {
        let arguments = [arguments, &NO_ENGINE].concat();
        let mut ci = project.ci(&arguments).push_to_main(&sha, TOKEN);
        for (name, value) in changes {
            ci = ci.env(name, value);
        }
        let run = ci.run().exits(4).says(condition);
        assert!(!run.stderr.contains(TOKEN), "{}", run.stderr);
        assert!(!project.path().join("target").exists(), "{condition}");
    };
    let zeros = "0".repeat(40);

    // Conditions for `ci run` on a push to main.
    refused(here, &[("GITHUB_SHA", &zeros)], "GITHUB_SHA");
    refused(here, &[("GITHUB_TOKEN", "")], "GITHUB_TOKEN is not set");
    refused(here, &[("GITHUB_TOKEN", "ghp_personal")], "`ghs_`");
    refused(here, &[("GITHUB_ACTOR", "")], "GITHUB_ACTOR is not set");
    refused(
        &["run"],
        &[("LAB_CI_REGISTRY", "registry.invalid")],
        "must be set with --registry on the command line",
    );
    // Conditions for `ci publish`, which `ci run` skips.
    refused(
        away,
        &[("GITHUB_ACTIONS", "")],
        "GITHUB_ACTIONS is not `true`",
    );
    refused(
        away,
        &[("GITHUB_EVENT_NAME", "pull_request")],
        "GITHUB_EVENT_NAME",
    );
    refused(away, &[("GITHUB_REF", "refs/heads/topic")], "GITHUB_REF");
    refused(away, &[("GITHUB_REF", "refs/tags/main")], "GITHUB_REF");
    refused(&[away, &["--event", "local"]].concat(), &[], "--event");
    // `--event push` does not replace a condition.
    let raise: &[&str] = &[here, &["--event", "push"]].concat();
    refused(raise, &[("GITHUB_ACTIONS", "")], "GITHUB_ACTIONS");
    refused(
        raise,
        &[("GITHUB_EVENT_NAME", "pull_request")],
        "GITHUB_EVENT_NAME",
    );
    refused(raise, &[("GITHUB_REF", "refs/heads/topic")], "GITHUB_REF");
    // `ci.toml` cannot select another registry for a push.
    project.write("ci.toml", "registry = \"registry.invalid\"\n");
    let with_settings = project.commit("another registry");
    refused(&["run"], &[("GITHUB_SHA", &with_settings)], "--registry");

    project.write("new.txt", "uncommitted");
    let head: &[(&str, &str)] = &[("GITHUB_SHA", &with_settings)];
    refused(here, head, "uncommitted");
    // This applies to loopback registries, too.
    refused(&["publish", "--registry", &address], head, "uncommitted");
    assert_eq!(registry.requests(), Vec::<String>::new());
}

#[test]
fn a_local_run_cannot_claim_to_be_a_push() {
    let project = Project::new("laptop");
    let run = project
        .ci(&[&["run", "--event", "push"], &NO_ENGINE[..]].concat())
        .run()
        .exits(4)
        .says("GITHUB_ACTIONS");
    assert_did_no_work(&run);
}

#[test]
fn lowered_and_local_runs_never_contact_the_registry() {
    let project = Project::new("lowered");
    let sha = project.git(&["rev-parse", "HEAD"]);
    let registry = FakeRegistry::untouched();
    let address = registry.address();
    let lowered = project
        .ci(&["run", "--event", "local", "--registry", &address])
        .push_to_main(&sha, TOKEN)
        .run();
    let local = project.ci(&["run", "--registry", &address]).run();
    for run in [lowered, local] {
        let run = run.exits(0);
        assert_eq!(run.report["event"], "local");
        assert_eq!(run.status("smoke"), "passed");
        assert_eq!(run.status("publish"), "skipped");
        assert_eq!(run.report["publish"], serde_json::Value::Null);
    }
    assert_eq!(registry.requests(), Vec::<String>::new());
}

#[test]
fn sends_the_token_to_no_other_host() {
    let project = Project::new("pointing");
    let sha = project.git(&["rev-parse", "HEAD"]);
    let other_host = Arc::new(FakeRegistry::new("127.0.0.2", |_| {
        response("200 OK", &[], r#"{"token":"x"}"#)
    }));
    let other_address = other_host.address();
    let realm = format!(r#"Bearer realm="http://{other_address}/token",service="x""#);
    let by_realm = FakeRegistry::new("127.0.0.1", move |_| {
        response("401 Unauthorized", &[("www-authenticate", &realm)], "")
    });
    let location = format!("http://{other_address}/v2/");
    let by_redirect = FakeRegistry::new("127.0.0.1", move |head| {
        if head.starts_with("GET") {
            let basic = ("www-authenticate", r#"Basic realm="x""#);
            return response("401 Unauthorized", &[basic], "");
        }
        response("307 Temporary Redirect", &[("location", &location)], "")
    });
    for (registry, words) in [(&by_realm, "is another host"), (&by_redirect, "307")] {
        let run = project
            .ci(&["run", "--registry", &registry.address()])
            .env("LAB_CI_ENGINE", NO_ENGINE[1])
            .push_to_main(&sha, TOKEN)
            .run()
            .exits(4)
            .says(words);
        assert_did_no_work(&run);
        assert!(!registry.requests().is_empty());
    }
    assert_eq!(other_host.requests(), Vec::<String>::new());
    let requests = by_realm.requests().concat().to_lowercase();
    assert!(!requests.contains("authorization"), "{requests}");
}

#[test]
fn masks_a_credential_that_the_registry_echoes() {
    let project = Project::new("repeating");
    let secret = Secret::new(TOKEN);
    let sha = project.git(&["rev-parse", "HEAD"]);
    let registry = FakeRegistry::new("127.0.0.1", |head| {
        if head.starts_with("GET") {
            let basic = ("www-authenticate", r#"Basic realm="x""#);
            return response("401 Unauthorized", &[basic], "");
        }
        response("403 Forbidden", &[], &format!("no: {head} {TOKEN}"))
    });
    for format in ["human", "json", "github"] {
        let run = project
            .ci(&[
                "run",
                "-vv",
                "--format",
                format,
                "--registry",
                &registry.address(),
            ])
            .env("LAB_CI_ENGINE", NO_ENGINE[1])
            .push_to_main(&sha, TOKEN)
            .run()
            .exits(4)
            .says("authorization: Basic ***");
        let everything = [run.stdout.as_bytes(), run.stderr.as_bytes()].concat();
        secret.assert_not_in(format, &everything);
        secret.assert_not_below(&project.path().join("target/ci"));
    }
    assert!(
        secret.is_in(registry.requests().concat().as_bytes()),
        "the registry did not receive the credential"
    );
}

#[test]
fn the_token_appears_nowhere_while_in_use() {
    let project = Project::new("token");
    // A token that no concurrent test uses.
    let token = "ghs_nowhere.to-be_seen";
    let registry = Registry::with_credential(USER, token);
    let address = registry.address();
    for (format, log) in [
        ("human", "ci=debug"),
        ("json", "trace"),
        ("github", "ci=debug"),
    ] {
        // A new commit, so that each run pushes an image.
        let sha = project.commit(format);
        let ci = project
            .ci(&["run", "-vv", "--format", format, "--registry", &address])
            .env("LAB_CI_LOG", log)
            .push_to_main(&sha, token);
        let seen = run_watched(&project, ci, token);
        assert_eq!(
            registry.digest(project.repository(), &short_sha(&project)),
            archive::read_digest(&project.path().join("target/ci/image.tar")).unwrap()
        );
        assert!(
            seen.iter().any(|line| line.contains("dagger session")),
            "{seen:#?}"
        );
    }
}

#[test]
fn a_pull_request_uses_neither_the_registry_nor_the_token() {
    let project = Project::new("pull-request");
    let token = "ghs_not.even_used";
    let sha = project.git(&["rev-parse", "HEAD"]);
    let registry = FakeRegistry::untouched();
    let ci = project
        .ci(&["run", "-vv", "--registry", &registry.address()])
        .push_to_main(&sha, token)
        .env("GITHUB_EVENT_NAME", "pull_request")
        .env("GITHUB_REF", "refs/pull/7/merge");
    run_watched(&project, ci, token);
    let text = std::fs::read_to_string(project.path().join("target/ci/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["event"], "pull-request");
    assert_eq!(report["publish"], serde_json::Value::Null);
    assert_eq!(registry.requests(), Vec::<String>::new());
}

/// A token in its plain and encoded forms.
#[derive(Clone)]
struct Secret([String; 3]);

impl Secret {
    fn new(token: &str) -> Self {
        Self([
            token.to_owned(),
            STANDARD.encode(token),
            // The form in the authorization header.
            STANDARD.encode(format!("{USER}:{token}")),
        ])
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        let found = |form: &String| memchr::memmem::find(bytes, form.as_bytes()).is_some();
        self.0.iter().any(found)
    }

    #[track_caller]
    fn assert_not_in(&self, place: &str, bytes: &[u8]) {
        assert!(
            !self.is_in(bytes),
            "the token is in {place}:\n{}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(20_000)])
        );
    }

    #[track_caller]
    fn assert_not_below(&self, folder: &Path) {
        for entry in walkdir::WalkDir::new(folder) {
            let entry = entry.unwrap();
            if entry.file_type().is_file() {
                let content = std::fs::read(entry.path()).unwrap();
                self.assert_not_in(&entry.path().display().to_string(), &content);
            }
        }
    }
}

/// Runs `ci` successfully, and asserts that the token is neither in its output and files nor in other processes. Returns the
/// command lines of all processes that ran on this machine meanwhile.
fn run_watched(project: &Project, ci: Ci, token: &str) -> BTreeSet<String> {
    let secret = Secret::new(token);
    let folder = tempfile::tempdir().unwrap();
    let folder_name = folder.path().display().to_string();
    let mut command = ci
        .env("TMPDIR", &folder_name)
        .env("GITHUB_OUTPUT", &format!("{folder_name}/output"))
        .env("GITHUB_STEP_SUMMARY", &format!("{folder_name}/summary"))
        .into_command();
    // A forked child shows this command line until it executes another program.
    let own: Vec<u8> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .flat_map(|word| [word.as_encoded_bytes(), b"\0"].concat())
        .collect();
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let watcher = std::thread::spawn({
        let ended = Arc::clone(&ended);
        let (secret, pid) = (secret.clone(), child.id());
        move || watch(&secret, pid, &own, &ended)
    });
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    ended.store(true, Ordering::Relaxed);
    let (seen, leaks) = watcher.join().unwrap();

    let stderr_text = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(0), "{stderr_text}");
    assert_eq!(leaks, BTreeSet::new());
    secret.assert_not_in("standard output", &stdout);
    secret.assert_not_in("standard error", &stderr);
    let reports = project.path().join("target/ci");
    assert!(reports.join("logs/smoke.log").is_file());
    secret.assert_not_below(&reports);
    secret.assert_not_below(folder.path());
    let image = Image::read(&reports);
    secret.assert_not_in("the image's configuration", &image.config_bytes);
    secret.assert_not_in("the image's layer", image.layer());
    seen
}

/// Examines the command line and environment of every process on this machine, including those in the engine's containers, until
/// `ended`. Returns all command lines, and those of processes with the token. `ci` itself is skipped, because the caller sets its
/// environment.
fn watch(
    secret: &Secret,
    ci: u32,
    own: &[u8],
    ended: &AtomicBool,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let read =
        |pid: &str, what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let (mut seen, mut leaks) = (BTreeSet::new(), BTreeSet::new());
    while !ended.load(Ordering::Relaxed) {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if !pid.bytes().all(|byte| byte.is_ascii_digit()) || pid == ci.to_string() {
                continue;
            }
            let arguments = read(&pid, "cmdline");
            // A forked child of `ci` that has not executed another program yet.
            if arguments == own {
                continue;
            }
            let line = String::from_utf8_lossy(&arguments).replace('\0', " ");
            if secret.is_in(&arguments) || secret.is_in(&read(&pid, "environ")) {
                leaks.insert(line.clone());
            }
            seen.insert(line);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    (seen, leaks)
}

#[test]
fn publishes_to_every_address_of_this_machine() {
    let project = Project::new("addresses");
    let tag = short_sha(&project);
    for (listening, named) in [
        ("127.0.0.1", "localhost"),
        ("127.0.0.2", "127.0.0.2"),
        ("[::1]", "[::1]"),
    ] {
        let registry = Registry::open_on(listening);
        let port = registry.address().rsplit(':').next().unwrap().to_owned();
        let run = project
            .ci(&["publish", "--registry", &format!("{named}:{port}")])
            .run()
            .exits(0);
        assert_eq!(
            run.report["publish"]["digest"],
            registry.digest(project.repository(), &tag).as_str(),
            "{named}"
        );
    }
}
