//! What is carried from one throw-away runner to the next: it is reused, it is never a wrong build, and each keeps to his own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::embedded::Machine;
use crate::harness::{Ci, Outcome, Project, git};
use crate::provisioned::Toolchain;
use crate::registry::Registry;
use crate::sources::{holds, is_from_2001, short};

const MAIN: &str = "api/src/main.rs";
const WORDS: &str = "\"listening\"";
const TOKEN: &str = "ghs_carried-by-nobody";

/// A machine whose engine can be thrown away, and a folder that is not.
struct Runner {
    machine: Machine,
    folder: tempfile::TempDir,
}

impl Runner {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("carried caches ")
            .tempdir()
            .unwrap();
        Self {
            machine: Machine::pulled(),
            folder,
        }
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// From now on the engine has pulled the toolchain's image and has done nothing else, and this machine has no cargo-auditable.
    fn is_new(&self) {
        self.machine.ci(&["engine", "down"]).run().exits(0);
        self.machine.has_only_pulled();
        for entry in std::fs::read_dir(self.machine.cache()).unwrap().flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("cargo-auditable-") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    /// A call that carries the caches.
    fn ci(&self, project: &Project, arguments: &[&str]) -> Ci {
        self.machine
            .ci_in(project, arguments)
            .env("LAB_CI_RUNNER_CACHE", self.folder().to_str().unwrap())
    }

    fn list(&self) -> Value {
        let text = std::fs::read_to_string(self.folder().join("cache.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Everything in the folder, byte for byte.
    fn content(&self) -> BTreeMap<PathBuf, String> {
        walkdir::WalkDir::new(self.folder())
            .into_iter()
            .map(Result::unwrap)
            .filter(|entry| entry.file_type().is_file())
            .map(|entry| {
                let sum = common::digest::sha256_of_file(entry.path()).unwrap();
                (entry.into_path(), sum)
            })
            .collect()
    }
}

/// A project that depends on something, and on something with a build script.
fn project(name: &str) -> Project {
    let project = Project::new(name);
    project.depend("itoa = \"1.0.1\"\nlibc = \"0.2.150\"");
    project.commit("dependencies");
    project
}

fn parts(report: &Value, list: &str) -> Vec<String> {
    let parts = report["cache"][list].as_array().unwrap().iter();
    parts
        .map(|it| it.get("part").unwrap_or(it).as_str().unwrap().to_owned())
        .collect()
}

fn log(run: &Outcome, root: &Path, step: &str) -> String {
    assert_eq!(run.status(step), "passed");
    std::fs::read_to_string(root.join(format!("target/ci/logs/{step}.log"))).unwrap()
}

/// The step was done, cargo has compiled `api` for it, and nothing else.
#[track_caller]
fn compiles_only_api(run: &Outcome, root: &Path, step: &str) {
    let log = log(run, root, step);
    for line in log.lines().map(str::trim_start) {
        let word = line.split(' ').next().unwrap();
        if matches!(
            word,
            "Compiling" | "Checking" | "Downloading" | "Downloaded" | "Updating"
        ) {
            assert!(line.contains(" api v1.2.3 "), "{step}: {log}");
        }
    }
    assert!(log.contains(" api v1.2.3 "), "{step}: {log}");
    assert_eq!(run.step(step)["cached"], false);
}

const CARGO_STEPS: [&str; 3] = ["test", "lint", "build"];

#[test]
fn a_new_engine_gets_what_the_last_one_had_and_compiles_what_has_changed() {
    let runner = Runner::new();
    let project = project("caches-new-engine");
    let commit = project.git(&["rev-parse", "HEAD"]);
    let cold = runner.ci(&project, &[]).run().exits(0);
    assert_eq!(cold.report["cache"]["domain"], "local");
    assert_eq!(parts(&cold.report, "restored"), [""; 0]);
    let mut saved = parts(&cold.report, "saved");
    saved.sort();
    let everything = [
        "build/dependencies",
        "build/workspace",
        "cargo",
        "lint/dependencies",
        "lint/workspace",
        "pass of build",
        "pass of fmt",
        "pass of lint",
        "pass of test",
        "test/dependencies",
        "test/workspace",
        "tool",
    ];
    assert_eq!(saved, everything);
    for step in CARGO_STEPS {
        let log = log(&cold, project.path(), step);
        assert!(
            log.contains(" itoa v1") && log.contains(" libc v0"),
            "{log}"
        );
    }

    // Elsewhere, where all is newly checked out, but for a change that looks old.
    runner.is_new();
    let clone = tempfile::tempdir().unwrap();
    let clone = clone.path().join("somewhere else");
    let top = project.path().to_str().unwrap();
    git(
        Path::new("/"),
        &["clone", "--quiet", top, clone.to_str().unwrap()],
    );
    let main = clone.join(MAIN);
    let text = std::fs::read_to_string(&main).unwrap();
    std::fs::write(&main, text.replace(WORDS, "\"marker of the change\"")).unwrap();
    is_from_2001(&main);
    let carried = |arguments: &[&str]| {
        runner
            .machine
            .here(Ci::new(&clone, arguments))
            .env("LAB_CI_ENGINE", "embedded")
            .env("LAB_CI_REPOSITORY", project.repository())
            .env("LAB_CI_RUNNER_CACHE", runner.folder().to_str().unwrap())
    };
    let warm = carried(&[])
        .run()
        .exits(0)
        .says("cache    brought tool, cargo, ");
    for step in CARGO_STEPS {
        compiles_only_api(&warm, &clone, step);
    }
    holds(&clone, "marker of the change", &[]);
    let mut restored = parts(&warm.report, "restored");
    restored.sort();
    let volumes: Vec<_> = everything
        .iter()
        .filter(|it| !it.starts_with("pass"))
        .collect();
    assert_eq!(restored.iter().collect::<Vec<_>>(), volumes);
    assert_eq!(
        warm.report["cache"]["measured_by"]["commit"],
        commit.as_str()
    );

    // What nobody has changed is not packed again.
    let saved = parts(&warm.report, "saved");
    assert!(
        saved.iter().any(|part| part == "test/workspace"),
        "{saved:?}"
    );
    let unchanged = parts(&warm.report, "unchanged");
    for part in [
        "tool",
        "cargo",
        "test/dependencies",
        "lint/dependencies",
        "build/dependencies",
    ] {
        assert!(
            unchanged.iter().any(|it| it == part),
            "{part} {unchanged:?}"
        );
    }
    let again = carried(&[]).run().exits(0);
    assert_eq!(parts(&again.report, "saved"), [""; 0]);
}

#[test]
fn what_has_passed_is_not_done_again_unless_something_has_changed_that_it_gets() {
    let runner = Runner::new();
    let project = project("caches-passes");
    // The test reads a file of which cargo is not told.
    project.write("api/expected.txt", "200");
    project.edit(
        MAIN,
        "contains(\" 200 \")",
        "contains(&std::fs::read_to_string(\"expected.txt\").unwrap())",
    );
    project.write(
        "ci.toml",
        "[paths]\nfmt = [\"**/*.rs\", \"**/Cargo.toml\", \"Cargo.lock\"]\nbuild = [\"**\", \"!*.md\", \"!api/expected.txt\"]\n\
         lint = [\"**\", \"!*.md\"]\ntest = [\"**\", \"!README.md\"]\n",
    );
    project.format("");
    let commit = project.commit("paths");
    let cold = runner.ci(&project, &[]).run().exits(0);
    let digest = cold.report["digest"].clone();
    let logs: BTreeMap<_, _> = ["test", "fmt", "lint", "build"]
        .map(|step| (step, log(&cold, project.path(), step)))
        .into();

    // The same commit: all that may be remembered is, and what was built then is what is shipped now.
    let again = runner
        .ci(&project, &[])
        .run()
        .exits(0)
        .says("passed before with the same inputs: test, fmt, lint, build");
    assert_eq!(again.report["digest"], digest);
    assert_eq!(parts(&again.report, "restored"), [""; 0]);
    for (step, before) in &logs {
        assert_eq!(again.step(step)["cached"], true);
        assert_eq!(again.step(step)["reused"]["commit"], commit.as_str());
        assert_eq!(&log(&again, project.path(), step), before);
    }
    assert_eq!(again.step("smoke")["cached"], false);

    // A commit that changes what none of them gets, but for the test.
    project.write("NOTES.md", "# Notes\n");
    project.commit("notes");
    let notes = runner.ci(&project, &[]).run().exits(0);
    for (step, cached) in [
        ("fmt", true),
        ("lint", true),
        ("build", true),
        ("test", false),
    ] {
        assert_eq!(notes.step(step)["cached"], cached, "{step}");
    }
    assert_ne!(notes.report["digest"], digest, "the image names its commit");
    project.write("README.md", "# What this is\n");
    project.commit("what this is");
    let readme = runner.ci(&project, &[]).run().exits(0);
    for step in logs.keys() {
        assert_eq!(readme.step(step)["cached"], true, "{step}");
    }

    // What the test reads makes it fail, and cargo has not been told.
    project.write("api/expected.txt", "500");
    project.commit("another expectation");
    let fails = || runner.ci(&project, &[]).run().exits(1).only_fails("test");
    assert_eq!(fails().step("build")["cached"], true);
    // A failure is not remembered: it is done again.
    let second = fails();
    assert_eq!(second.step("test")["cached"], false);
    assert!(second.step("test")["reused"].is_null());
    project.write("api/expected.txt", "200");
    project.commit("the old one");
    let mended = runner.ci(&project, &[]).run().exits(0);
    assert_eq!(mended.step("test")["cached"], true, "this one has passed");
}

/// Packs one file for which `path` and the kind are what they are, and puts it in the place of a part's blob.
fn forge(folder: &Path, entry: &mut Value, kind: tar::EntryType, path: &str) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o777);
    let content: &[u8] = if kind == tar::EntryType::Symlink {
        header.set_link_name("/etc").unwrap();
        b""
    } else {
        b"forged"
    };
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content).unwrap();
    let packed = zstd::encode_all(&tar.into_inner().unwrap()[..], 3).unwrap();
    let sum = common::digest::sha256(&packed);
    let sum = sum.strip_prefix("sha256:").unwrap();
    std::fs::write(folder.join("blobs").join(sum), &packed).unwrap();
    entry["sha256"] = json!(sum);
    entry["bytes"] = json!(packed.len());
    entry["unpacked"] = json!(content.len());
}

#[test]
fn who_is_killed_while_he_saves_leaves_nothing_that_looks_whole() {
    let runner = Runner::new();
    let project = project("caches-killed");
    let mut ci = runner
        .ci(&project, &["lint"])
        .into_command()
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let unfinished = || {
        let entries = std::fs::read_dir(runner.folder()).into_iter().flatten();
        entries.flatten().any(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with(".unfinished-")
        })
    };
    while !unfinished() {
        assert!(
            begun.elapsed() < Duration::from_secs(300),
            "nothing is saved"
        );
        assert!(ci.try_wait().unwrap().is_none(), "it has ended too early");
        std::thread::sleep(Duration::from_millis(2));
    }
    ci.kill().unwrap();
    ci.wait().unwrap();
    assert!(!runner.folder().join("cache.json").exists());
    let run = runner.ci(&project, &["lint"]).run().exits(0);
    assert!(parts(&run.report, "saved").contains(&"lint/dependencies".to_owned()));
    assert!(!unfinished(), "what was left is swept away");
}

#[test]
fn what_is_damaged_or_forged_is_passed_over_and_nothing_of_it_is_built() {
    let runner = Runner::new();
    let project = project("caches-damaged");
    project.edit(MAIN, WORDS, "\"marker before\"");
    project.commit("before");
    runner.ci(&project, &[]).run().exits(0);
    let folder = runner.folder();
    let mut list = runner.list();
    let blob = |entry: &Value| folder.join("blobs").join(entry["sha256"].as_str().unwrap());
    let mut wrongs = Vec::new();
    for entry in list["parts"].as_array_mut().unwrap() {
        let part = entry["part"].to_string().replace(['{', '}', '"'], "");
        let file = blob(entry);
        let bytes = std::fs::read(&file).unwrap();
        let why = match part.as_str() {
            "cargo" => {
                std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
                "truncated"
            }
            // A unit test damages it: it would take a minute to compile it anew.
            "tool" => continue,
            "dependencies:test" => {
                let mut damaged = bytes.clone();
                damaged[bytes.len() / 2] ^= 1;
                std::fs::write(&file, damaged).unwrap();
                "damaged"
            }
            "workspace:test" => {
                forge(&folder, entry, tar::EntryType::Symlink, "src/api");
                "there is a link in it"
            }
            "dependencies:lint" => {
                forge(
                    &folder,
                    entry,
                    tar::EntryType::Regular,
                    "target/../../../forged",
                );
                "leads out"
            }
            "workspace:lint" => {
                forge(&folder, entry, tar::EntryType::Regular, "lock");
                "does not belong there"
            }
            "dependencies:build" => {
                std::fs::remove_file(&file).unwrap();
                "not there"
            }
            "workspace:build" => {
                entry["unpacked"] = json!(17);
                "more in it than"
            }
            "pass:fmt" => {
                std::fs::write(&file, [&bytes[..], b"more"].concat()).unwrap();
                "larger than it says"
            }
            "pass:lint" => {
                forge(&folder, entry, tar::EntryType::Regular, "../log");
                "leads out"
            }
            "pass:test" => {
                entry["key"] = json!("0".repeat(64));
                continue;
            }
            "pass:build" => {
                let mut damaged = bytes.clone();
                damaged[40] ^= 1;
                std::fs::write(&file, damaged).unwrap();
                "damaged"
            }
            other => panic!("{other}"),
        };
        let (kind, step) = part.split_once(':').unwrap_or((&part, ""));
        let name = match kind {
            "pass" => format!("pass of {step}"),
            "cargo" => part.clone(),
            kind => format!("{step}/{kind}"),
        };
        wrongs.push((name, why));
    }
    assert_eq!(wrongs.len(), 10);
    std::fs::write(folder.join("cache.json"), list.to_string()).unwrap();

    runner.is_new();
    let run = runner.ci(&project, &[]).run().exits(0);
    for (part, why) in &wrongs {
        let words = format!("the cache's {part} is not used: ");
        let said = run.stderr.lines().find(|line| line.contains(&words));
        assert!(
            said.is_some_and(|it| it.contains(why)),
            "{part} {why}: {}",
            run.stderr
        );
    }
    assert_eq!(parts(&run.report, "restored"), ["tool"]);
    assert_eq!(parts(&run.report, "ignored").len(), wrongs.len());
    for step in ["test", "fmt", "lint", "build"] {
        assert_eq!(run.step(step)["cached"], false, "{step}");
    }
    holds(project.path(), "marker before", &["forged"]);
    assert!(!Path::new("/forged").exists() && !folder.join("forged").exists());

    // All of it is whole again.
    runner.is_new();
    project.edit(MAIN, "marker before", "marker after");
    project.commit("after");
    let run = runner.ci(&project, &[]).run().exits(0);
    assert_eq!(parts(&run.report, "ignored"), [""; 0]);
    for step in CARGO_STEPS {
        compiles_only_api(&run, project.path(), step);
    }
    holds(project.path(), "marker after", &["marker before"]);

    // A list of which nothing is known, and one of another toolchain.
    std::fs::write(folder.join("cache.json"), "{\"schema\": 99}").unwrap();
    runner
        .ci(&project, &["fmt"])
        .run()
        .exits(0)
        .says("another version (99, this is 2)");
    runner.ci(&project, &["lint"]).run().exits(0);
    let mut list = runner.list();
    for entry in list["parts"].as_array_mut().unwrap() {
        entry["key"] = json!("0123456789abcdef");
    }
    std::fs::write(folder.join("cache.json"), list.to_string()).unwrap();
    let run = runner
        .ci(&project, &["lint"])
        .run()
        .exits(0)
        .says("the cache's lint/dependencies is not used: it is of another toolchain");
    assert_eq!(parts(&run.report, "restored"), [""; 0]);
}

#[test]
fn a_pull_request_reads_what_main_has_left_and_writes_nothing_of_it() {
    let runner = Runner::new();
    let project = project("caches-domains");
    let registry = Registry::with_credential("somebody", TOKEN);
    let address = registry.address();
    let sha = project.git(&["rev-parse", "HEAD"]);
    let on_main = |sha: &str| {
        runner
            .ci(&project, &["--registry", &address])
            .push_to_main(sha, TOKEN)
            .run()
            .exits(0)
    };
    let main = on_main(&sha);
    assert_eq!(main.report["cache"]["domain"], "main");
    assert_eq!(main.report["publish"]["outcome"], "pushed");
    assert_eq!(runner.list()["domain"], "main");
    let mains = runner.content();

    // The volumes of pull requests are empty yet.
    project.git(&["switch", "--quiet", "--create", "topic"]);
    project.edit(MAIN, WORDS, "\"marker of the pull request\"");
    project.commit("a pull request");
    let ask = |arguments: &[&str]| {
        runner
            .ci(&project, arguments)
            .env("GITHUB_ACTIONS", "true")
            .env("GITHUB_EVENT_NAME", "pull_request")
            .env("GITHUB_REF", "refs/pull/1/merge")
    };
    let theirs = ask(&[])
        .run()
        .exits(0)
        .says("is left as it is: it is main's")
        .publishes_nothing();
    assert_eq!(theirs.report["cache"]["read_only"], true);
    for step in CARGO_STEPS {
        compiles_only_api(&theirs, project.path(), step);
    }
    let folder = runner.folder();
    let folder = folder.to_str().unwrap();
    ask(&["cache", "save", folder])
        .run()
        .exits(3)
        .says("is main's, and is not written by this run");
    runner
        .ci(&project, &["cache", "save", folder])
        .run()
        .exits(3)
        .says("Only a push to main writes it");
    assert_eq!(runner.content(), mains);

    // A folder of their own they may write, and main does not look at it.
    std::fs::remove_dir_all(folder).unwrap();
    ask(&["lint"]).run().exits(0);
    assert_eq!(runner.list()["domain"], "pr");
    project.git(&["switch", "--quiet", "main"]);
    let main = on_main(&sha).says("is pr's, and not for main: it is not used");
    assert_eq!(parts(&main.report, "restored"), [""; 0]);
    assert_eq!(parts(&main.report, "passed_before"), [""; 0]);
    assert_eq!(main.report["publish"]["outcome"], "already-there");
    assert_eq!(runner.list()["domain"], "main");
    assert_eq!(
        registry.tags(project.repository())[0],
        short(&project).as_str()
    );
}

/// `ci cache save` and `ci cache restore`, and with them the scanner's database.
#[test]
fn the_two_halves_work_by_themselves() {
    let runner = Runner::new();
    let project = project("caches-commands");
    let folder = runner.folder();
    let folder = folder.to_str().unwrap();
    let ci = |arguments: &[&str]| runner.machine.ci_in(&project, arguments);
    // Nothing is there yet.
    ci(&["cache", "restore", folder])
        .run()
        .exits(0)
        .says("there was nothing to carry");
    // Where it is downloaded the database lies here, which no machine without a registry can see happen.
    let content = format!("{:?}", Instant::now());
    in_volume(
        &runner,
        &format!("mkdir -p /volume/db && printf '{content}' > /volume/db/trivy.db"),
    );
    ci(&["lint"]).run().exits(0);
    let saved = ci(&["cache", "save", folder, "--format", "json"])
        .run()
        .exits(0);
    let said: Value = serde_json::from_str(&saved.stdout).unwrap();
    let names: Vec<_> = said["saved"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["part"])
        .collect();
    assert_eq!(
        names,
        ["cargo", "database", "lint/dependencies", "lint/workspace"]
    );
    ci(&["cache", "save", folder])
        .run()
        .exits(0)
        .says("all of it was there already");
    assert!(saved.report.is_null(), "the report stays the run's");

    runner.is_new();
    ci(&["cache", "restore", folder])
        .run()
        .exits(0)
        .says("brought cargo, database, lint/dependencies, lint/workspace");
    assert_eq!(in_volume(&runner, "cat /volume/db/trivy.db"), content);
    let run = ci(&["lint"]).run().exits(0);
    let said = log(&run, project.path(), "lint");
    assert!(
        !said.contains("Checking") && !said.contains("Downloaded"),
        "{said}"
    );
    // An engine that has something keeps it.
    ci(&["cache", "restore", folder])
        .run()
        .exits(0)
        .says("there was nothing to carry");

    project.write("target/file", "");
    for (name, code, why) in [
        ("target/file", 2, "is not a folder"),
        ("target/file/x", 3, "is not kept: cannot write into"),
    ] {
        let path = project.path().join(name);
        ci(&["cache", "save", path.to_str().unwrap()])
            .run()
            .exits(code)
            .says(why);
    }
}

/// Runs a script with the volume of the scanner's database.
fn in_volume(runner: &Runner, script: &str) -> String {
    let up = runner.machine.ci(&["engine", "up"]).run().exits(0);
    Toolchain {
        cli: &runner.machine.programs().join("bin/dagger"),
        engine: up.stdout.trim(),
        stand_ins: &runner.machine.cache().join("stand-ins"),
    }
    .runs(script, Some("infrastructure-lab-ci/local/trivy"))
}
