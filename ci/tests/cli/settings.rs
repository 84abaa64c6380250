//! Options, environment and `ci.toml`: what is not valid ends with exit code 2, by its name, before any work.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use ci::model::step::Step;
use serde_json::Value;

use crate::harness::{Ci, Outcome, Project};
use crate::{Ends, ci, ci_in, without_a_named_engine};

#[test]
fn an_option_that_is_not_valid_is_named_before_any_work() {
    let project = Project::new("options");
    for (arguments, words) in [
        (
            &["--repository", "upwind1647/status-api:latest"][..],
            "it has a tag or digest",
        ),
        (&["--repository", "upwind1647/status-api:"], "it has a tag"),
        (&["--repository", "a/b@sha256:00"], "it has a tag or digest"),
        (&["--repository", ""], "is not a repository: it is empty"),
        (
            &["--repository", "Upwind1647/status-api"],
            "Write upwind1647/status-api.",
        ),
        (&["--repository", "a//b"], "is not a repository"),
        (&["--registry", ""], "is not a registry: it is empty"),
        (&["--registry", "ghcr.io/upwind1647"], "it has a path"),
        (&["--registry", "https://ghcr.io"], "it has a scheme"),
        (&["--registry", "me@ghcr.io"], "it has a user name"),
        (&["--registry", "GHCR.io"], "lower-case"),
        (&["--registry", "ghcr.io:0"], "its port"),
        (&["--event", "nonsense"], "invalid value 'nonsense'"),
        (&["--format", "xml"], "`xml` is not a format"),
        (&["--timeout", "soon"], "`soon` is not a time limit"),
        (&["--timeout", "0s"], "`0s` is not a time limit"),
        (&["--timeout=-5m"], "`-5m` is not a time limit"),
        (&["--timeout"], "a value is required"),
        (&["--quiet", "--verbose"], "cannot be used with"),
        (&["--no-such-option"], "unexpected argument"),
        (&["no-such-command"], "unrecognized subcommand"),
        (&["test", "something"], "unexpected argument"),
        (&["engine"], "Usage: ci engine"),
        (&["engine", "sideways"], "unrecognized subcommand"),
    ] {
        ci(&project, arguments).run().refuses(2, words);
    }
}

#[test]
fn an_engine_that_is_none_refuses() {
    let project = Project::new("engine");
    for engine in ["nonsense", "", "Docker", "http://127.0.0.1:1234", "tcp://"] {
        project
            .ci(&["--engine", engine])
            .run()
            .refuses(2, "is not an engine")
            .says("hint: --engine takes auto, docker, embedded, or a URL");
    }
}

#[test]
fn a_step_is_given_what_patterns_of_paths_say() {
    let project = Project::new("paths");
    for (file, words) in [
        (
            "[paths]\ntest = [\"[a\"]\n",
            "paths.test in ci.toml: `[a` is not a pattern",
        ),
        ("[paths]\ntest = [\"!docs/**\"]\n", "nothing is left"),
        (
            "[paths]\nlint = [\"/etc/**\"]\n",
            "not a pattern of paths in the repository",
        ),
        (
            "[paths]\nsmoke = [\"**\"]\n",
            "smoke does not look at the sources",
        ),
        ("[paths]\nnonsense = [\"**\"]\n", "ci.toml is not valid"),
    ] {
        project.write("ci.toml", file);
        ci(&project, &[]).run().refuses(2, words);
    }
    project.write(
        "ci.toml",
        "[paths]\nfmt = [\"**/*.rs\", \"**/Cargo.*\", \"!x/**\"]\n",
    );
    ci(&project, &[]).run().misses_the_engine();
}

/// What cargo has to see of this repository, whatever a step is about.
#[test]
fn what_the_steps_of_this_repository_are_given_is_a_workspace() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let file: toml::Table = std::fs::read_to_string(top.join("ci.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let table: BTreeMap<Step, Vec<String>> = file["paths"].clone().try_into().unwrap();
    for (step, paths) in ci::source::paths::resolve(table).unwrap() {
        let given = tempfile::tempdir().unwrap();
        let ours = |entry: &walkdir::DirEntry| {
            !matches!(entry.file_name().to_str(), Some("target" | ".git"))
        };
        for entry in walkdir::WalkDir::new(top).into_iter().filter_entry(ours) {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(top).unwrap();
            if entry.file_type().is_file() && paths.has(path) {
                let to = given.path().join(path);
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
        let seen = Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
            .current_dir(given.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&seen.stderr);
        assert!(seen.status.success(), "{step}: {said}");
        let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
        for package in seen["packages"].as_array().unwrap() {
            // It leaves out what is not there, and says so only when it builds.
            let found = package["targets"].as_array().unwrap().iter();
            let found: Vec<_> = found
                .map(|target| target["name"].as_str().unwrap())
                .collect();
            let manifest = std::fs::read_to_string(package["manifest_path"].as_str().unwrap());
            let manifest: toml::Table = manifest.unwrap().parse().unwrap();
            for kind in ["bin", "test", "bench", "example"] {
                let declared = manifest.get(kind).and_then(toml::Value::as_array);
                for target in declared.into_iter().flatten() {
                    let name = target["name"].as_str().unwrap();
                    assert!(found.contains(&name), "{step} lacks the {kind} {name}");
                }
            }
        }
    }
}

#[test]
fn the_caches_of_a_throw_away_runner_are_no_sources() {
    let project = Project::new("cache-dir");
    std::fs::write(project.path().join("file"), "").unwrap();
    for (folder, words) in [
        ("caches", "the caches would be among the sources"),
        ("api/target", "the caches would be among the sources"),
        ("api/../caches", "the caches would be among the sources"),
        ("file", "is not a folder, and the caches go into one"),
    ] {
        ci(&project, &["--cache-dir", folder])
            .run()
            .refuses(2, words);
        for command in ["save", "restore"] {
            ci(&project, &["cache", command, folder])
                .run()
                .refuses(2, words);
        }
    }
    for folder in [
        "target",
        "target/new/caches",
        "api/../target",
        "../no-such-caches",
        "/tmp/no-such-caches",
    ] {
        ci(&project, &["--cache-dir", folder])
            .run()
            .misses_the_engine();
    }
    ci(&project, &["cache", "save"]).run().refuses(2, "<DIR>");
    // Main's are for main.
    ci(
        &project,
        &["cache", "save", "target/caches", "--event", "push"],
    )
    .run()
    .refuses(4, "GITHUB_ACTIONS is not `true`");
}

#[test]
fn valid_options_go_as_far_as_the_engine() {
    let project = Project::new("valid");
    for arguments in [
        &[][..],
        &["run"],
        &["--registry", "127.0.0.1:5000", "run"],
        &[
            "run",
            "--repository",
            "a__b/c.d",
            "--registry",
            "[::1]:5000",
        ],
        &["--timeout", "1h 30m", "test"],
        &["--event", "pull-request"],
        &["--event", "local", "-q"],
        &["--fail-fast", "--keep-going", "-vv"],
        &["build", "--output", "somewhere.tar"],
    ] {
        ci(&project, arguments).run().misses_the_engine();
    }
}

#[test]
fn ci_toml_is_held_to_its_keys_and_types() {
    let project = Project::new("toml");
    for (file, line, words) in [
        ("registry = \"ghcr.io\"\ncolour = 1\n", "line 2", "colour"),
        ("timeout = 30\n", "line 1", "expected a string"),
        ("\n\nfail-fast = \"yes\"\n", "line 3", "expected a boolean"),
        ("engine = \n", "line 1", "engine ="),
        ("# nothing\n[", "line 2", "["),
    ] {
        project.write("ci.toml", file);
        let outcome = without_engine(&project);
        outcome
            .refuses(2, "ci.toml is not valid")
            .says(line)
            .says(words);
    }
    for (file, words) in [
        ("repository = \"a/b:latest\"\n", "it has a tag"),
        ("registry = \"https://ghcr.io\"\n", "it has a scheme"),
        ("engine = \"nonsense\"\n", "`nonsense` is not an engine"),
        ("format = \"xml\"\n", "`xml` is not a format"),
        ("timeout = \"soon\"\n", "`soon` is not a time limit"),
    ] {
        project.write("ci.toml", file);
        without_engine(&project).refuses(2, words);
    }
}

/// Where `ci.toml` may name the engine itself.
fn without_engine(project: &Project) -> Outcome {
    without_a_named_engine(Ci::new(project.path(), &[]))
}

#[test]
fn the_command_line_wins_over_the_environment_which_wins_over_the_file() {
    let project = Project::new("order");
    project.write(
        "ci.toml",
        "engine = \"nonsense\"\nregistry = \"file.example.com\"\nrepository = \"from/file\"\nreport-dir = \"reports\"\n",
    );
    let image = |arguments: &[&str], registry: &str| {
        let outcome = ci(&project, arguments)
            .env("LAB_CI_REPORT_DIR", "target/ci")
            .env("LAB_CI_REGISTRY", registry)
            .run()
            .misses_the_engine();
        outcome.report["image"].as_str().unwrap().to_owned()
    };
    let by_flag = image(&["--registry", "flag.example.com"], "env.example.com");
    assert!(
        by_flag.starts_with("flag.example.com/from/file:"),
        "{by_flag}"
    );
    let by_environment = image(&[], "env.example.com");
    assert!(
        by_environment.starts_with("env.example.com/from/file:"),
        "{by_environment}"
    );
    ci(&project, &[]).run().misses_the_engine();
    assert!(
        project.path().join("reports/report.json").exists(),
        "the file's report-dir counts where nothing else was said"
    );
}

#[test]
fn what_the_environment_says_is_held_to_the_same_rules() {
    let project = Project::new("environment");
    for (name, value, words) in [
        ("LAB_CI_REPOSITORY", "a/b:latest", "it has a tag"),
        ("LAB_CI_REPOSITORY", "", "it is empty"),
        ("LAB_CI_REGISTRY", "ghcr.io/x", "it has a path"),
        ("LAB_CI_EVENT", "nonsense", "invalid value 'nonsense'"),
        ("LAB_CI_FORMAT", "xml", "`xml` is not a format"),
        ("LAB_CI_TIMEOUT", "soon", "`soon` is not a time limit"),
    ] {
        ci(&project, &[]).env(name, value).run().refuses(2, words);
    }
    project
        .ci(&[])
        .env("LAB_CI_ENGINE", "nonsense")
        .run()
        .refuses(2, "`nonsense` is not an engine");
}

#[test]
fn the_settings_of_other_forges_are_not_ours() {
    let project = Project::new("gitlab");
    let outcome = ci(&project, &[])
        .env("CI", "true")
        .env("CI_REGISTRY", "https://registry.gitlab.com/group")
        .env("CI_REPOSITORY", "UPPER:latest")
        .env("CI_ENGINE", "nonsense")
        .env("CI_EVENT", "push")
        .env("CI_TIMEOUT", "soon")
        .run()
        .misses_the_engine();
    let image = outcome.report["image"].as_str().unwrap();
    assert!(
        image.starts_with("ghcr.io/upwind1647/status-api:"),
        "{image}"
    );
    assert_eq!(outcome.report["event"], "local");
}

#[test]
fn an_exception_from_the_scan_needs_a_reason_and_an_end() {
    let project = Project::new("exceptions");
    for (yaml, words) in [
        (
            "vulnerabilities:\n  - id: CVE-2026-1\n    expired_at: 2027-01-31\n",
            "CVE-2026-1 has no statement",
        ),
        (
            "vulnerabilities:\n  - id: CVE-2026-1\n    statement: not reachable\n",
            "CVE-2026-1 has no expired_at",
        ),
        (
            "vulnerabilities:\n  - id: CVE-2026-1\n    statement: not reachable\n    expired_at: never\n",
            "not a date",
        ),
        (
            "vulnerabilities:\n  - statement: not reachable\n    expired_at: 2027-01-31\n",
            "entry 1 has no id",
        ),
        ("vulnerabilities: [\n", ".trivyignore.yaml"),
    ] {
        project.write(".trivyignore.yaml", yaml);
        project.commit("an exception");
        ci(&project, &[]).run().refuses(2, words);
        ci(&project, &["scan"]).run().refuses(2, words);
    }
    project.write(
        ".trivyignore.yaml",
        "vulnerabilities:\n  - id: CVE-2026-1\n    statement: not reachable\n    expired_at: 2027-01-31\n",
    );
    project.commit("a whole exception");
    ci(&project, &["scan"]).run().misses_the_engine();
}

#[test]
fn a_graph_has_formats_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    ci_in(folder.path(), &["graph", "--format", "human"])
        .run()
        .refuses(2, "`human` is not a format of `ci graph`");
}
