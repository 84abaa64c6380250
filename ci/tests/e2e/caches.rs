//! The caches of ephemeral runners: they are reused, they never lead to a wrong build, and each domain has its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::embedded::Machine;
use crate::harness::{Ci, Outcome, Project, git};
use crate::provisioned::Toolchain;
use crate::registry::Registry;
use crate::sources::{assert_binary_contains, set_mtime_to_2001, short_sha};

const MAIN: &str = "api/src/main.rs";
const WORDS: &str = "\"listening\"";
const TOKEN: &str = "ghs_never-in-a-cache";

/// A machine whose engine can be reset, and a cache folder that survives the reset.
struct Runner {
    machine: Machine,
    folder: tempfile::TempDir,
}

impl Runner {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("runner caches ")
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

    /// Resets the engine to one that has only pulled the toolchain's image, and removes the compiled cargo-auditable.
    fn reset(&self) {
        self.machine.ci(&["engine", "down"]).run().exits(0);
        self.machine.reset_to_pulled_image();
        for entry in std::fs::read_dir(self.machine.cache()).unwrap().flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("cargo-auditable-") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    /// A call that restores and saves the caches.
    fn ci(&self, project: &Project, arguments: &[&str]) -> Ci {
        self.machine
            .ci_in(project, arguments)
            .env("LAB_CI_RUNNER_CACHE", self.folder().to_str().unwrap())
    }

    fn read_index(&self) -> Value {
        let text = std::fs::read_to_string(self.folder().join("cache.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The digest of each file in the folder.
    fn hash_files(&self) -> BTreeMap<PathBuf, String> {
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

/// A project with two dependencies, one of which has a build script.
fn project_with_dependencies(name: &str) -> Project {
    let project = Project::new(name);
    project.add_dependency("itoa = \"1.0.1\"\nlibc = \"0.2.150\"");
    project.commit("dependencies");
    project
}

fn part_names(report: &Value, list: &str) -> Vec<String> {
    let parts = report["cache"][list].as_array().unwrap().iter();
    parts
        .map(|it| it.get("part").unwrap_or(it).as_str().unwrap().to_owned())
        .collect()
}

fn read_log(run: &Outcome, root: &Path, step: &str) -> String {
    assert_eq!(run.status(step), "passed");
    std::fs::read_to_string(root.join(format!("target/ci/logs/{step}.log"))).unwrap()
}

/// Asserts that the step ran and that cargo compiled only `api` for it.
#[track_caller]
fn compiles_only_api(run: &Outcome, root: &Path, step: &str) {
    let log = read_log(run, root, step);
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
fn restores_caches_into_a_new_engine_and_compiles_only_changes() {
    let runner = Runner::new();
    let project = project_with_dependencies("caches-new-engine");
    let commit = project.git(&["rev-parse", "HEAD"]);
    let cold = runner.ci(&project, &[]).run().exits(0);
    assert_eq!(cold.report["cache"]["domain"], "local");
    assert_eq!(part_names(&cold.report, "restored"), [""; 0]);
    let mut saved = part_names(&cold.report, "saved");
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
        let log = read_log(&cold, project.path(), step);
        assert!(
            log.contains(" itoa v1") && log.contains(" libc v0"),
            "{log}"
        );
    }

    // A new clone at another path, with a change that has an old modification time.
    runner.reset();
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
    set_mtime_to_2001(&main);
    let ci = |arguments: &[&str]| {
        runner
            .machine
            .with_cache(Ci::new(&clone, arguments))
            .env("LAB_CI_ENGINE", "embedded")
            .env("LAB_CI_REPOSITORY", project.repository())
            .env("LAB_CI_RUNNER_CACHE", runner.folder().to_str().unwrap())
    };
    let warm = ci(&[])
        .run()
        .exits(0)
        .says("cache    restored tool, cargo, ");
    for step in CARGO_STEPS {
        compiles_only_api(&warm, &clone, step);
    }
    assert_binary_contains(&clone, "marker of the change", &[]);
    let mut restored = part_names(&warm.report, "restored");
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

    // Unchanged parts are not saved again.
    let saved = part_names(&warm.report, "saved");
    assert!(
        saved.iter().any(|part| part == "test/workspace"),
        "{saved:?}"
    );
    let unchanged = part_names(&warm.report, "unchanged");
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
    let again = ci(&[]).run().exits(0);
    assert_eq!(part_names(&again.report, "saved"), [""; 0]);
}

#[test]
fn skips_passed_steps_until_their_inputs_change() {
    let runner = Runner::new();
    let project = project_with_dependencies("caches-passes");
    // The test reads a file that cargo does not know about.
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
        .map(|step| (step, read_log(&cold, project.path(), step)))
        .into();

    // The same commit: all cacheable steps are skipped, and the image is the same.
    let again = runner
        .ci(&project, &[])
        .run()
        .exits(0)
        .says("reused results for the same inputs: test, fmt, lint, build");
    assert_eq!(again.report["digest"], digest);
    assert_eq!(part_names(&again.report, "restored"), [""; 0]);
    for (step, before) in &logs {
        assert_eq!(again.step(step)["cached"], true);
        assert_eq!(again.step(step)["reused"]["commit"], commit.as_str());
        assert_eq!(&read_log(&again, project.path(), step), before);
    }
    assert_eq!(again.step("smoke")["cached"], false);

    // A commit that changes only inputs of the test.
    project.write("NOTES.md", "# Notes\n");
    project.commit("notes");
    // As on a new runner, only the caches remember the last pass.
    std::fs::remove_dir_all(project.path().join("target/ci")).unwrap();
    let notes = runner.ci(&project, &[]).run().exits(0);
    let why = &notes.step("test")["why"];
    assert_eq!(why["since"]["commit"], commit.as_str());
    assert_eq!(why["reasons"][0]["first"], json!(["NOTES.md"]));
    for (step, cached) in [
        ("fmt", true),
        ("lint", true),
        ("build", true),
        ("test", false),
    ] {
        assert_eq!(notes.step(step)["cached"], cached, "{step}");
    }
    assert_ne!(
        notes.report["digest"], digest,
        "the image contains the commit"
    );
    project.write("README.md", "# What this is\n");
    project.commit("what this is");
    let readme = runner.ci(&project, &[]).run().exits(0);
    for step in logs.keys() {
        assert_eq!(readme.step(step)["cached"], true, "{step}");
    }

    // The file makes the test fail, although cargo does not know about it.
    project.write("api/expected.txt", "500");
    project.commit("another expectation");
    let fails = || runner.ci(&project, &[]).run().exits(1).only_fails("test");
    assert_eq!(fails().step("build")["cached"], true);
    // A failure is not cached: the step runs again.
    let second = fails();
    assert_eq!(second.step("test")["cached"], false);
    assert!(second.step("test")["reused"].is_null());
    project.write("api/expected.txt", "200");
    project.commit("the old one");
    let fixed = runner.ci(&project, &[]).run().exits(0);
    assert_eq!(
        fixed.step("test")["cached"],
        true,
        "these inputs have passed"
    );
}

/// Replaces a part's blob with an archive that has one entry of this kind and path.
fn forge_part(folder: &Path, entry: &mut Value, kind: tar::EntryType, path: &str) {
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
fn a_killed_save_leaves_no_valid_cache() {
    let runner = Runner::new();
    let project = project_with_dependencies("caches-killed");
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
            "no save started"
        );
        assert!(ci.try_wait().unwrap().is_none(), "ci exited too early");
        std::thread::sleep(Duration::from_millis(2));
    }
    ci.kill().unwrap();
    ci.wait().unwrap();
    assert!(!runner.folder().join("cache.json").exists());
    let run = runner.ci(&project, &["lint"]).run().exits(0);
    assert!(part_names(&run.report, "saved").contains(&"lint/dependencies".to_owned()));
    assert!(!unfinished(), "leftovers are removed");
}

#[test]
fn ignores_damaged_and_forged_caches() {
    let runner = Runner::new();
    let project = project_with_dependencies("caches-damaged");
    project.edit(MAIN, WORDS, "\"marker before\"");
    project.commit("before");
    runner.ci(&project, &[]).run().exits(0);
    let folder = runner.folder();
    let mut index = runner.read_index();
    let blob = |entry: &Value| folder.join("blobs").join(entry["sha256"].as_str().unwrap());
    let mut ignored = Vec::new();
    for entry in index["parts"].as_array_mut().unwrap() {
        let part = entry["part"].to_string().replace(['{', '}', '"'], "");
        let file = blob(entry);
        let bytes = std::fs::read(&file).unwrap();
        let why = match part.as_str() {
            "cargo" => {
                std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
                "truncated"
            }
            // Left intact, because compiling the tool again takes a minute; a unit test covers its damage.
            "tool" => continue,
            "dependencies:test" => {
                let mut damaged = bytes.clone();
                damaged[bytes.len() / 2] ^= 1;
                std::fs::write(&file, damaged).unwrap();
                "damaged"
            }
            "workspace:test" => {
                forge_part(&folder, entry, tar::EntryType::Symlink, "src/api");
                "it contains a link"
            }
            "dependencies:lint" => {
                forge_part(
                    &folder,
                    entry,
                    tar::EntryType::Regular,
                    "target/../../../forged",
                );
                "leads outside"
            }
            "workspace:lint" => {
                forge_part(&folder, entry, tar::EntryType::Regular, "lock");
                "it contains an unexpected path"
            }
            "dependencies:build" => {
                std::fs::remove_file(&file).unwrap();
                "its file is missing"
            }
            "workspace:build" => {
                entry["unpacked"] = json!(17);
                "its content is larger than the recorded"
            }
            "pass:fmt" => {
                std::fs::write(&file, [&bytes[..], b"more"].concat()).unwrap();
                "larger than recorded"
            }
            "pass:lint" => {
                forge_part(&folder, entry, tar::EntryType::Regular, "../log");
                "leads outside"
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
        ignored.push((name, why));
    }
    assert_eq!(ignored.len(), 10);
    std::fs::write(folder.join("cache.json"), index.to_string()).unwrap();

    runner.reset();
    let run = runner.ci(&project, &[]).run().exits(0);
    for (part, why) in &ignored {
        let words = format!("ignoring the cached {part}: ");
        let warning = run.stderr.lines().find(|line| line.contains(&words));
        assert!(
            warning.is_some_and(|it| it.contains(why)),
            "{part} {why}: {}",
            run.stderr
        );
    }
    assert_eq!(part_names(&run.report, "restored"), ["tool"]);
    assert_eq!(part_names(&run.report, "ignored").len(), ignored.len());
    for step in ["test", "fmt", "lint", "build"] {
        assert_eq!(run.step(step)["cached"], false, "{step}");
    }
    assert_binary_contains(project.path(), "marker before", &["forged"]);
    assert!(!Path::new("/forged").exists() && !folder.join("forged").exists());

    // The caches are valid again.
    runner.reset();
    project.edit(MAIN, "marker before", "marker after");
    project.commit("after");
    let run = runner.ci(&project, &[]).run().exits(0);
    assert_eq!(part_names(&run.report, "ignored"), [""; 0]);
    for step in CARGO_STEPS {
        compiles_only_api(&run, project.path(), step);
    }
    assert_binary_contains(project.path(), "marker after", &["marker before"]);

    // An index of an unknown version, and one of another toolchain.
    std::fs::write(folder.join("cache.json"), "{\"schema\": 99}").unwrap();
    runner
        .ci(&project, &["fmt"])
        .run()
        .exits(0)
        .says("its schema version is 99, not 3");
    runner.ci(&project, &["lint"]).run().exits(0);
    let mut index = runner.read_index();
    for entry in index["parts"].as_array_mut().unwrap() {
        entry["key"] = json!("0123456789abcdef");
    }
    std::fs::write(folder.join("cache.json"), index.to_string()).unwrap();
    let run = runner
        .ci(&project, &["lint"])
        .run()
        .exits(0)
        .says("ignoring the cached lint/dependencies: made with another toolchain");
    assert_eq!(part_names(&run.report, "restored"), [""; 0]);
}

#[test]
fn pull_requests_read_the_caches_of_main_and_never_change_them() {
    let runner = Runner::new();
    let project = project_with_dependencies("caches-domains");
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
    assert_eq!(runner.read_index()["domain"], "main");
    let files_of_main = runner.hash_files();

    // The volumes of pull requests are still empty.
    project.git(&["switch", "--quiet", "--create", "topic"]);
    project.edit(MAIN, WORDS, "\"marker of the pull request\"");
    project.commit("a pull request");
    let on_pull_request = |arguments: &[&str]| {
        runner
            .ci(&project, arguments)
            .env("GITHUB_ACTIONS", "true")
            .env("GITHUB_EVENT_NAME", "pull_request")
            .env("GITHUB_REF", "refs/pull/1/merge")
    };
    let theirs = on_pull_request(&[])
        .run()
        .exits(0)
        .says("is read-only for this run: it belongs to main")
        .publishes_nothing();
    assert_eq!(theirs.report["cache"]["read_only"], true);
    for step in CARGO_STEPS {
        compiles_only_api(&theirs, project.path(), step);
    }
    let folder = runner.folder();
    let folder = folder.to_str().unwrap();
    on_pull_request(&["cache", "save", folder])
        .run()
        .exits(3)
        .says("belongs to main and is read-only for this run");
    runner
        .ci(&project, &["cache", "save", folder])
        .run()
        .exits(3)
        .says("only a push to main can write to this one");
    assert_eq!(runner.hash_files(), files_of_main);

    // Pull requests write their own folder, and main ignores it.
    std::fs::remove_dir_all(folder).unwrap();
    on_pull_request(&["lint"]).run().exits(0);
    assert_eq!(runner.read_index()["domain"], "pr");
    project.git(&["switch", "--quiet", "main"]);
    let main = on_main(&sha).says("it belongs to pr, and main does not read it");
    assert_eq!(part_names(&main.report, "restored"), [""; 0]);
    assert_eq!(part_names(&main.report, "passed_before"), [""; 0]);
    assert_eq!(main.report["publish"]["outcome"], "already-there");
    assert_eq!(runner.read_index()["domain"], "main");
    assert_eq!(
        registry.tags(project.repository())[0],
        short_sha(&project).as_str()
    );
}

/// Covers the scanner's database, too.
#[test]
fn saves_and_restores_with_separate_commands() {
    let runner = Runner::new();
    let project = project_with_dependencies("caches-commands");
    let folder = runner.folder();
    let folder = folder.to_str().unwrap();
    let ci = |arguments: &[&str]| runner.machine.ci_in(&project, arguments);
    // The folder is still empty.
    ci(&["cache", "restore", folder])
        .run()
        .exits(0)
        .says("nothing to save or restore");
    // The scan downloads its database into this volume; without access to a registry, this file takes its place.
    let content = format!("{:?}", Instant::now());
    run_in_volume(
        &runner,
        &format!("mkdir -p /volume/db && printf '{content}' > /volume/db/trivy.db"),
    );
    ci(&["lint"]).run().exits(0);
    let saved = ci(&["cache", "save", folder, "--format", "json"])
        .run()
        .exits(0);
    let printed: Value = serde_json::from_str(&saved.stdout).unwrap();
    let names: Vec<_> = printed["saved"]
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
        .says("cache    already up to date");
    assert!(saved.report.is_null(), "only a run writes a report");

    runner.reset();
    ci(&["cache", "restore", folder])
        .run()
        .exits(0)
        .says("restored cargo, database, lint/dependencies, lint/workspace");
    assert_eq!(run_in_volume(&runner, "cat /volume/db/trivy.db"), content);
    let run = ci(&["lint"]).run().exits(0);
    let log = read_log(&run, project.path(), "lint");
    assert!(
        !log.contains("Checking") && !log.contains("Downloaded"),
        "{log}"
    );
    // Existing volumes are not overwritten.
    ci(&["cache", "restore", folder])
        .run()
        .exits(0)
        .says("nothing to save or restore");

    project.write("target/file", "");
    for (name, code, why) in [
        ("target/file", 2, "is not a directory"),
        (
            "target/file/x",
            3,
            "cannot save the cache of cargo: cannot write to",
        ),
    ] {
        let path = project.path().join(name);
        ci(&["cache", "save", path.to_str().unwrap()])
            .run()
            .exits(code)
            .says(why);
    }
}

/// Runs a script in a container with the volume of the scanner's database.
fn run_in_volume(runner: &Runner, script: &str) -> String {
    let up = runner.machine.ci(&["engine", "up"]).run().exits(0);
    Toolchain {
        cli: &runner.machine.programs().join("bin/dagger"),
        engine: up.stdout.trim(),
        stand_ins: &runner.machine.cache().join("stand-ins"),
    }
    .run(script, Some("infrastructure-lab-ci/local/trivy"))
}
