//! What reaches a registry, when, and what the credential does not reach.

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
use crate::registry::{Impostor, Registry, answer, nobody};
use crate::sources::short;

/// The name that `push_to_main` gives.
const USER: &str = "somebody";
/// Like GitHub's own in what `ci` may look at: its beginning.
const TOKEN: &str = "ghs_0nly-for_this.test";
/// Whoever touches an engine fails with exit code 3.
const NO_ENGINE: [&str; 2] = ["--engine", "unix:///nonexistent/engine.sock"];

/// No step ran: the refusal came before.
#[track_caller]
fn did_no_work(run: &Outcome) {
    for step in run.report["steps"].as_array().into_iter().flatten() {
        assert_eq!(step["status"], "skipped", "{:#}", run.report);
    }
    assert_eq!(run.report["publish"], serde_json::Value::Null);
}

#[test]
fn a_push_to_main_publishes_the_image_of_all_gates_once() {
    let project = Project::new("push-to-main");
    let registry = Registry::with_credential(USER, TOKEN);
    let sha = project.git(&["rev-parse", "HEAD"]);
    let tag = short(&project);
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
    // Beside the one tag there is the list of the papers, as this registry has no referrers API.
    let list = fallback_tag(&digest);
    let mut tags = [list, tag.clone()];
    tags.sort();
    assert_eq!(registry.tags(project.repository()), serde_json::json!(tags));

    // What is in the registry is what is in the archive, down to the layer.
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
    // The one upload that is begun, and cancelled, is the proof of write access.
    assert_eq!(after, [before[0] + 1, before[1], before[2]]);
    assert_eq!(registry.digest(project.repository(), &tag), digest);

    // The run of an old commit, run again when main has gone on: its own tag, and no other.
    project.commit("main goes on");
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
    // GitHub checks the old commit out for it; where somebody else's is, nothing is published.
    on(&sha).run().exits(4).publishes_nothing();
    project.git(&["checkout", "--quiet", &sha]);
    let old = on(&sha).run().exits(0);
    assert_eq!(old.report["publish"]["outcome"], "already-there");
    assert_eq!(old.report["publish"]["digest"], digest.as_str());
    assert_eq!(registry.tags(project.repository()), tags);
}

#[test]
fn a_tag_that_is_there_with_another_digest_is_not_overwritten() {
    let project = Project::new("taken");
    let registry = Registry::open();
    let address = registry.address();
    let publish = || project.ci(&["publish", "--registry", &address]).run();

    // On loopback none of GitHub's conditions is needed.
    let run = publish().exits(0);
    assert_eq!(run.report["publish"]["outcome"], "pushed");
    let first = short(&project);
    let other = registry.manifest(project.repository(), &first);
    assert_eq!(run.report["digest"], digest::sha256(&other).as_str());

    project.commit("another one");
    let tag = short(&project);
    registry.put_manifest(project.repository(), &tag, other.clone());
    let writes = registry.requests("PUT").len() + registry.requests("PATCH").len();
    let run = publish()
        .exits(4)
        .says("is there already, as the image of another commit")
        .says(&digest::sha256(&other))
        .says(&project.git(&["rev-parse", "HEAD"]))
        .says(&project.git(&["rev-parse", "HEAD~"]));
    let ours = run.report["digest"].as_str().unwrap().to_owned();
    assert_ne!(ours, digest::sha256(&other));
    run.says(&ours).only_fails("publish");
    assert_eq!(registry.manifest(project.repository(), &tag), other);
    let now = registry.requests("PUT").len() + registry.requests("PATCH").len();
    assert_eq!(now, writes);

    // The same commit, built by something else.
    project.git(&["checkout", "--quiet", "HEAD~"]);
    let mut manifest: serde_json::Value = serde_json::from_slice(&other).unwrap();
    manifest["annotations"] = serde_json::json!({ "built": "otherwise" });
    let otherwise = manifest.to_string().into_bytes();
    registry.put_manifest(project.repository(), &first, otherwise.clone());
    publish()
        .exits(4)
        .says("is there already with another digest")
        .says(&digest::sha256(&other))
        .says(&digest::sha256(&otherwise))
        .only_fails("publish");
    assert_eq!(registry.manifest(project.repository(), &first), otherwise);
}

#[test]
fn a_gate_that_fails_on_a_push_to_main_publishes_nothing() {
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
    registry.is_empty();
}

#[test]
fn a_wrong_credential_fails_with_the_registrys_word_before_any_gate() {
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
    did_no_work(&run);
    registry.is_empty();
}

#[test]
fn a_registry_that_is_not_there_ends_the_run_before_any_gate() {
    let project = Project::new("no-registry");
    let sha = project.git(&["rev-parse", "HEAD"]);
    let address = nobody();
    let run = project
        .ci(&["run", "--registry", &address])
        .env("LAB_CI_ENGINE", NO_ENGINE[1])
        .push_to_main(&sha, TOKEN)
        .run()
        .exits(3)
        .says(&format!("the registry {address} cannot be reached"));
    did_no_work(&run);
}

#[test]
fn each_missing_condition_of_the_publish_rule_refuses_before_any_work() {
    let project = Project::new("conditions");
    let sha = project.git(&["rev-parse", "HEAD"]);
    let registry = Impostor::silent();
    let address = registry.address();
    let here: &[&str] = &["run", "--registry", &address];
    // Not on loopback, and never resolved: the trial's exception does not hold.
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

    // What a push to main needs beside being one.
    refused(here, &[("GITHUB_SHA", &zeros)], "GITHUB_SHA");
    refused(here, &[("GITHUB_TOKEN", "")], "GITHUB_TOKEN is not set");
    refused(here, &[("GITHUB_TOKEN", "ghp_personal")], "`ghs_`");
    refused(here, &[("GITHUB_ACTOR", "")], "GITHUB_ACTOR is not set");
    refused(
        &["run"],
        &[("LAB_CI_REGISTRY", "registry.invalid")],
        "has to be named by --registry on the command line",
    );
    // What only `ci publish` would try at all.
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
    // No flag raises authority.
    let raise: &[&str] = &[here, &["--event", "push"]].concat();
    refused(raise, &[("GITHUB_ACTIONS", "")], "GITHUB_ACTIONS");
    refused(
        raise,
        &[("GITHUB_EVENT_NAME", "pull_request")],
        "GITHUB_EVENT_NAME",
    );
    refused(raise, &[("GITHUB_REF", "refs/heads/topic")], "GITHUB_REF");
    // The settings of the commit itself are not the command line, either.
    project.write("ci.toml", "registry = \"registry.invalid\"\n");
    let with_settings = project.commit("a registry of one's own");
    refused(&["run"], &[("GITHUB_SHA", &with_settings)], "--registry");

    project.write("new.txt", "uncommitted");
    let head: &[(&str, &str)] = &[("GITHUB_SHA", &with_settings)];
    refused(here, head, "uncommitted");
    // Also where nothing of GitHub's is asked.
    refused(&["publish", "--registry", &address], head, "uncommitted");
    assert_eq!(registry.requests(), Vec::<String>::new());
}

#[test]
fn a_laptop_cannot_raise_itself_to_a_push() {
    let project = Project::new("laptop");
    let run = project
        .ci(&[&["run", "--event", "push"], &NO_ENGINE[..]].concat())
        .run()
        .exits(4)
        .says("GITHUB_ACTIONS");
    did_no_work(&run);
}

#[test]
fn a_lowered_push_and_a_local_run_pass_without_the_registry() {
    let project = Project::new("lowered");
    let sha = project.git(&["rev-parse", "HEAD"]);
    let registry = Impostor::silent();
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
fn the_token_is_not_sent_where_the_registry_points_to() {
    let project = Project::new("pointing");
    let sha = project.git(&["rev-parse", "HEAD"]);
    let thief = Arc::new(Impostor::new("127.0.0.2", |_| {
        answer("200 OK", &[], r#"{"token":"x"}"#)
    }));
    let there = thief.address();
    let realm = format!(r#"Bearer realm="http://{there}/token",service="x""#);
    let by_realm = Impostor::new("127.0.0.1", move |_| {
        answer("401 Unauthorized", &[("www-authenticate", &realm)], "")
    });
    let location = format!("http://{there}/v2/");
    let by_redirect = Impostor::new("127.0.0.1", move |head| {
        if head.starts_with("GET") {
            let basic = ("www-authenticate", r#"Basic realm="x""#);
            return answer("401 Unauthorized", &[basic], "");
        }
        answer("307 Temporary Redirect", &[("location", &location)], "")
    });
    for (registry, words) in [(&by_realm, "which is another host"), (&by_redirect, "307")] {
        let run = project
            .ci(&["run", "--registry", &registry.address()])
            .env("LAB_CI_ENGINE", NO_ENGINE[1])
            .push_to_main(&sha, TOKEN)
            .run()
            .exits(4)
            .says(words);
        did_no_work(&run);
        assert!(!registry.requests().is_empty());
    }
    assert_eq!(thief.requests(), Vec::<String>::new());
    let said = by_realm.requests().concat().to_lowercase();
    assert!(!said.contains("authorization"), "{said}");
}

#[test]
fn a_registry_that_repeats_the_credential_does_not_get_it_printed() {
    let project = Project::new("repeating");
    let secret = Secret::new(TOKEN);
    let sha = project.git(&["rev-parse", "HEAD"]);
    let registry = Impostor::new("127.0.0.1", |head| {
        if head.starts_with("GET") {
            let basic = ("www-authenticate", r#"Basic realm="x""#);
            return answer("401 Unauthorized", &[basic], "");
        }
        answer("403 Forbidden", &[], &format!("no: {head} {TOKEN}"))
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
        secret.is_not_in(format, &everything);
        secret.is_not_below(&project.path().join("target/ci"));
    }
    assert!(
        secret.is_in(registry.requests().concat().as_bytes()),
        "it did get it"
    );
}

#[test]
fn the_token_shows_up_nowhere_while_it_is_used() {
    let project = Project::new("token");
    // This test's own: other tests use theirs at the same time.
    let token = "ghs_nowhere.to-be_seen";
    let registry = Registry::with_credential(USER, token);
    let address = registry.address();
    for (format, log) in [
        ("human", "ci=debug"),
        ("json", "trace"),
        ("github", "ci=debug"),
    ] {
        // Another commit is another image: each run has something to push.
        let sha = project.commit(format);
        let ci = project
            .ci(&["run", "-vv", "--format", format, "--registry", &address])
            .env("LAB_CI_LOG", log)
            .push_to_main(&sha, token);
        let seen = run_watched(&project, ci, token);
        assert_eq!(
            registry.digest(project.repository(), &short(&project)),
            archive::read_digest(&project.path().join("target/ci/image.tar")).unwrap()
        );
        assert!(
            seen.iter().any(|line| line.contains("dagger session")),
            "{seen:#?}"
        );
    }
}

#[test]
fn a_pull_request_neither_talks_to_the_registry_nor_uses_the_token() {
    let project = Project::new("pull-request");
    let token = "ghs_not.even_used";
    let sha = project.git(&["rev-parse", "HEAD"]);
    let registry = Impostor::silent();
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

/// A token in the forms that it has on its way.
#[derive(Clone)]
struct Secret([String; 3]);

impl Secret {
    fn new(token: &str) -> Self {
        Self([
            token.to_owned(),
            STANDARD.encode(token),
            // What a registry gets to see.
            STANDARD.encode(format!("{USER}:{token}")),
        ])
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes);
        self.0.iter().any(|form| text.contains(form))
    }

    #[track_caller]
    fn is_not_in(&self, place: &str, bytes: &[u8]) {
        assert!(
            !self.is_in(bytes),
            "the token is in {place}:\n{}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(20_000)])
        );
    }

    #[track_caller]
    fn is_not_below(&self, folder: &Path) {
        for entry in walkdir::WalkDir::new(folder) {
            let entry = entry.unwrap();
            if entry.file_type().is_file() {
                let content = std::fs::read(entry.path()).unwrap();
                self.is_not_in(&entry.path().display().to_string(), &content);
            }
        }
    }
}

/// Runs `ci` to a good end, and looks for the token in all that it says, writes, leaves behind and starts. Returns the
/// command lines of what ran on this machine meanwhile.
fn run_watched(project: &Project, ci: Ci, token: &str) -> BTreeSet<String> {
    let secret = Secret::new(token);
    let folder = tempfile::tempdir().unwrap();
    let folder_name = folder.path().display().to_string();
    let mut command = ci
        .env("TMPDIR", &folder_name)
        .env("GITHUB_OUTPUT", &format!("{folder_name}/output"))
        .env("GITHUB_STEP_SUMMARY", &format!("{folder_name}/summary"))
        .into_command();
    // Linux does not show it yet when a process has only just become the program.
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
    secret.is_not_in("standard output", &stdout);
    secret.is_not_in("standard error", &stderr);
    let reports = project.path().join("target/ci");
    assert!(reports.join("logs/smoke.log").is_file());
    secret.is_not_below(&reports);
    secret.is_not_below(folder.path());
    let image = Image::of(&reports);
    secret.is_not_in("the image's configuration", &image.config_bytes);
    secret.is_not_in("the image's layer", image.layer());
    seen
}

/// Looks at the command line and environment of every process on this machine, those in the engine's containers among
/// them, until `ended`: what was seen, and where the token was. `ci` itself got its environment from the caller.
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
            // A child that `ci` has forked and that has not become another program yet.
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
