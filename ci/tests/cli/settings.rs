//! Options, environment variables and `ci.toml`: invalid values are named, with exit code 2, before any work.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use ci::model::step::Step;
use serde_json::Value;

use crate::harness::{Ci, Outcome, Project};
use crate::{Assertions, ci, ci_in, refusing_registry, run_without_engine_setting};

#[test]
fn rejects_invalid_options_before_any_work() {
    let project = Project::new("options");
    for (arguments, words) in [
        (
            &["--repository", "upwind1647/status-api:latest"][..],
            "it has a tag or digest",
        ),
        (&["--repository", "upwind1647/status-api:"], "it has a tag"),
        (&["--repository", "a/b@sha256:00"], "it has a tag or digest"),
        (&["--repository", ""], "invalid repository ``: it is empty"),
        (
            &["--repository", "Upwind1647/status-api"],
            "Use upwind1647/status-api.",
        ),
        (&["--repository", "a//b"], "invalid repository"),
        (&["--registry", ""], "invalid registry ``: it is empty"),
        (&["--registry", "ghcr.io/upwind1647"], "it has a path"),
        (&["--registry", "https://ghcr.io"], "it has a scheme"),
        (&["--registry", "me@ghcr.io"], "it has a user name"),
        (&["--registry", "GHCR.io"], "lower-case"),
        (
            &["--registry", "ghcr.io:0"],
            "the port must be a number from 1 to 65535",
        ),
        (&["--event", "nonsense"], "invalid value 'nonsense'"),
        (&["--format", "xml"], "`xml` is not a format"),
        (&["--timeout", "soon"], "invalid time limit `soon`"),
        (&["--timeout", "0s"], "invalid time limit `0s`"),
        (&["--timeout=-5m"], "invalid time limit `-5m`"),
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
fn rejects_an_invalid_engine() {
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
fn rejects_invalid_path_patterns() {
    let project = Project::new("paths");
    for (file, words) in [
        (
            "[paths]\ntest = [\"[a\"]\n",
            "paths.test in ci.toml: invalid pattern `[a`",
        ),
        ("[paths]\ntest = [\"!docs/**\"]\n", "no files are included"),
        (
            "[paths]\nlint = [\"/etc/**\"]\n",
            "must be relative to the repository root",
        ),
        (
            "[paths]\nsmoke = [\"**\"]\n",
            "the smoke step does not read the sources",
        ),
        ("[paths]\nnonsense = [\"**\"]\n", "ci.toml is invalid"),
    ] {
        project.write("ci.toml", file);
        ci(&project, &[]).run().refuses(2, words);
    }
    project.write(
        "ci.toml",
        "[paths]\nfmt = [\"**/*.rs\", \"**/Cargo.*\", \"!x/**\"]\n",
    );
    ci(&project, &[]).run().finds_no_engine();
}

/// Each step needs the files of a complete workspace, because cargo rejects others.
#[test]
fn path_patterns_of_this_repository_give_each_step_a_workspace() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let file: toml::Table = std::fs::read_to_string(top.join("ci.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let table: BTreeMap<Step, Vec<String>> = file["paths"].clone().try_into().unwrap();
    for (step, paths) in ci::source::paths::resolve(table).unwrap() {
        let copy = tempfile::tempdir().unwrap();
        let is_source = |entry: &walkdir::DirEntry| {
            !matches!(entry.file_name().to_str(), Some("target" | ".git"))
        };
        for entry in walkdir::WalkDir::new(top)
            .into_iter()
            .filter_entry(is_source)
        {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(top).unwrap();
            if entry.file_type().is_file() && paths.includes(path) {
                let to = copy.path().join(path);
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
        let metadata = Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
            .current_dir(copy.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&metadata.stderr);
        assert!(metadata.status.success(), "{step}: {stderr}");
        let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
        for package in metadata["packages"].as_array().unwrap() {
            // `cargo metadata` silently omits targets whose files are missing.
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
fn rejects_a_cache_directory_among_the_sources() {
    let project = Project::new("cache-dir");
    std::fs::write(project.path().join("file"), "").unwrap();
    for (folder, words) in [
        ("caches", "is part of the sources"),
        ("api/target", "is part of the sources"),
        ("api/../caches", "is part of the sources"),
        ("file", "is not a directory"),
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
            .finds_no_engine();
    }
    ci(&project, &["cache", "save"]).run().refuses(2, "<DIR>");
    // Only a push to main writes main's caches.
    ci(
        &project,
        &["cache", "save", "target/caches", "--event", "push"],
    )
    .run()
    .refuses(4, "GITHUB_ACTIONS is not `true`");
}

#[test]
fn accepts_valid_options() {
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
        ci(&project, arguments).run().finds_no_engine();
    }
}

#[test]
fn rejects_unknown_keys_and_wrong_types_in_ci_toml() {
    let project = Project::new("toml");
    for (file, line, words) in [
        ("registry = \"ghcr.io\"\ncolour = 1\n", "line 2", "colour"),
        ("timeout = 30\n", "line 1", "expected a string"),
        ("\n\nfail-fast = \"yes\"\n", "line 3", "expected a boolean"),
        ("engine = \n", "line 1", "engine ="),
        ("# nothing\n[", "line 2", "["),
    ] {
        project.write("ci.toml", file);
        let outcome = run_with_engine_from_file(&project);
        outcome
            .refuses(2, "ci.toml is invalid")
            .says(line)
            .says(words);
    }
    for (file, words) in [
        ("repository = \"a/b:latest\"\n", "it has a tag"),
        ("registry = \"https://ghcr.io\"\n", "it has a scheme"),
        ("engine = \"nonsense\"\n", "`nonsense` is not an engine"),
        ("format = \"xml\"\n", "`xml` is not a format"),
        ("timeout = \"soon\"\n", "invalid time limit `soon`"),
    ] {
        project.write("ci.toml", file);
        run_with_engine_from_file(&project).refuses(2, words);
    }
}

/// Runs without `--engine` and `LAB_CI_ENGINE`, so that `ci.toml` can set the engine.
fn run_with_engine_from_file(project: &Project) -> Outcome {
    run_without_engine_setting(Ci::new(project.path(), &[]))
}

#[test]
fn prefers_the_command_line_to_the_environment_and_both_to_ci_toml() {
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
            .finds_no_engine();
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
    ci(&project, &[]).run().finds_no_engine();
    assert!(
        project.path().join("reports/report.json").exists(),
        "report-dir of ci.toml applies by default"
    );
}

#[test]
fn rejects_invalid_environment_variables() {
    let project = Project::new("environment");
    for (name, value, words) in [
        ("LAB_CI_REPOSITORY", "a/b:latest", "it has a tag"),
        ("LAB_CI_REGISTRY", "ghcr.io/x", "it has a path"),
        ("LAB_CI_EVENT", "nonsense", "invalid value 'nonsense'"),
        ("LAB_CI_FORMAT", "xml", "`xml` is not a format"),
        ("LAB_CI_TIMEOUT", "soon", "invalid time limit `soon`"),
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
fn ignores_the_variables_of_other_ci_systems() {
    let project = Project::new("gitlab");
    let outcome = ci(&project, &[])
        .env("CI", "true")
        .env("CI_REGISTRY", "https://registry.gitlab.com/group")
        .env("CI_REPOSITORY", "UPPER:latest")
        .env("CI_ENGINE", "nonsense")
        .env("CI_EVENT", "push")
        .env("CI_TIMEOUT", "soon")
        .run()
        .finds_no_engine();
    let image = outcome.report["image"].as_str().unwrap();
    assert!(
        image.starts_with("ghcr.io/upwind1647/status-api:"),
        "{image}"
    );
    assert_eq!(outcome.report["event"], "local");
}

#[test]
fn rejects_scan_exceptions_without_a_reason_or_an_expiry_date() {
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
    ci(&project, &["scan"]).run().finds_no_engine();
}

#[test]
fn graph_rejects_the_formats_of_other_commands() {
    let folder = tempfile::tempdir().unwrap();
    ci_in(folder.path(), &["graph", "--format", "human"])
        .run()
        .refuses(2, "`human` is not a format of `ci graph`");
}

#[test]
fn refuses_a_shell_that_cannot_be_opened() {
    let project = Project::new("shell");
    ci(&project, &["shell", "scan"])
        .run()
        .exits(2)
        .says("the container of step scan has no shell")
        .says("hint: Open a shell in one of these steps: test, fmt, lint, custom, build, smoke.");
    ci(&project, &["shell", "custom"])
        .run()
        .exits(2)
        .says("this project has no step custom");
    run_without_engine_setting(
        project
            .ci(&["shell", "test"])
            .env("DAGGER_SESSION_PORT", "1")
            .env("DAGGER_SESSION_TOKEN", "token"),
    )
    .exits(2)
    .says("a shell cannot be opened in the session of another process");
}

/// The variables that are options too.
const VARIABLES: [&str; 13] = [
    "LAB_CI_EVENT",
    "LAB_CI_ENGINE",
    "LAB_CI_WORKSPACE",
    "LAB_CI_PLATFORM",
    "LAB_CI_REGISTRY",
    "LAB_CI_REPOSITORY",
    "LAB_CI_REPORT_DIR",
    "LAB_CI_RUNNER_CACHE",
    "LAB_CI_FORMAT",
    "LAB_CI_FAIL_FAST",
    "LAB_CI_TIMEOUT",
    "LAB_CI_JOBS",
    "LAB_CI_MEMORY",
];

#[test]
fn empty_variables_count_as_not_set() {
    let project = Project::new("empty-variables");
    let mut call = ci(&project, &[]);
    for name in VARIABLES
        .into_iter()
        .filter(|name| *name != "LAB_CI_ENGINE")
    {
        call = call.env(name, "");
    }
    call.run().finds_no_engine();
}

#[test]
fn booleans_accept_every_usual_word() {
    let project = Project::new("booleans");
    for word in ["1", "true", "yes", "0", "false", "no"] {
        ci(&project, &[])
            .env("LAB_CI_FAIL_FAST", word)
            .run()
            .finds_no_engine();
    }
    ci(&project, &[])
        .env("LAB_CI_FAIL_FAST", "perhaps")
        .run()
        .exits(2)
        .says("perhaps");
}

#[test]
fn messages_name_the_option_the_variable_or_the_key() {
    let project = Project::new("places");
    ci(&project, &["--repository", "UPPER"])
        .run()
        .exits(2)
        .says("--repository: ");
    ci(&project, &[])
        .env("LAB_CI_PLATFORM", "plan9/mips")
        .run()
        .exits(2)
        .says("LAB_CI_PLATFORM: ");
    project.write("ci.toml", "timeout = \"soon\"\n");
    ci(&project, &[])
        .run()
        .exits(2)
        .says("timeout in ci.toml: ");
}

#[test]
fn places_that_cannot_be_written_are_found_before_any_work() {
    let project = Project::new("places-to-write");
    ci(&project, &[])
        .env("GITHUB_OUTPUT", "/nonexistent/output")
        .run()
        .exits(3)
        .says("cannot write GITHUB_OUTPUT, which names /nonexistent/output");
    ci(&project, &["build", "--output", "/nonexistent/image.tar"])
        .run()
        .exits(3)
        .says("cannot write /nonexistent/image.tar")
        .says("failed before the first step (exit code 3)");
    ci(&project, &["--profile", "/nonexistent/profile.json"])
        .run()
        .exits(3)
        .says("cannot write /nonexistent/profile.json");
}

#[test]
fn a_stale_session_gets_a_hint() {
    let project = Project::new("stale-session");
    let call = project
        .ci(&["fmt"])
        .env("DAGGER_SESSION_PORT", "1")
        .env("DAGGER_SESSION_TOKEN", "token");
    run_without_engine_setting(call)
        .exits(3)
        .says("no session listens on port 1, which DAGGER_SESSION_PORT names")
        .says("hint: Unset DAGGER_SESSION_PORT");
}

#[test]
fn a_push_that_publishes_nothing_says_why() {
    let project = Project::new("branches");
    let event = project.path().join("target/event.json");
    project.write(
        "target/event.json",
        "{\"repository\": {\"default_branch\": \"trunk\"}}",
    );
    let sha = project.git(&["rev-parse", "HEAD"]);
    let push = |branch: &str, arguments: &[&str]| {
        ci(&project, arguments)
            .push_to_main(&sha, "ghs_not-looked-at")
            .env("GITHUB_REF", &format!("refs/heads/{branch}"))
            .env("GITHUB_EVENT_PATH", event.to_str().unwrap())
            .run()
    };
    let other = push("main", &[]).says(
        "this push publishes nothing: it is to refs/heads/main, and only pushes to refs/heads/trunk are published",
    );
    assert_eq!(other.report["event"], "local");
    // Without write access to a registry, the run ends before any work; but it is a push.
    let registry = refusing_registry();
    let release = push("trunk", &["--registry", &registry]);
    assert!(
        !release.stderr.contains("publishes nothing"),
        "{}",
        release.stderr
    );
    let named = push(
        "stable",
        &["--registry", &registry, "--release-branch", "stable"],
    );
    assert!(
        !named.stderr.contains("publishes nothing"),
        "{}",
        named.stderr
    );
}

#[test]
fn init_prints_every_key_and_writes_the_default_branch() {
    let project = Project::new("init-print");
    project.write("ci.toml", "timeout = \"1h\"\n");
    let printed = ci(&project, &["init", "--print"]).run().exits(0).stdout;
    for key in ["stuck-after", "tag-length", "[smoke]", "[limits]"] {
        assert!(printed.contains(key), "{key}:\n{printed}");
    }
    assert_eq!(project.read("ci.toml"), "timeout = \"1h\"\n");
    assert!(!project.path().join(".github").exists());

    project.git(&["branch", "--move", "trunk"]);
    ci(&project, &["init"]).run().exits(0);
    let workflow = project.read(".github/workflows/docker-builder.yml");
    assert_eq!(
        workflow.matches("branches: [trunk]").count(),
        2,
        "{workflow}"
    );
}

#[test]
fn scan_accepts_a_vulnerability_for_some_days() {
    let project = Project::new("accept");
    let id = "CVE-2026-00000";
    let accept = [
        "scan",
        "--accept",
        id,
        "--days",
        "30",
        "--because",
        "not reachable",
    ];
    ci(&project, &accept)
        .run()
        .exits(0)
        .says("wrote    .trivyignore.yaml: CVE-2026-00000 is accepted until 2");
    let file = project.read(".trivyignore.yaml");
    assert!(file.contains("statement: \"not reachable\""), "{file}");
    // A run accepts the file.
    ci(&project, &["scan"]).run().finds_no_engine();
    ci(&project, &accept)
        .run()
        .exits(2)
        .says("has an exception for CVE-2026-00000 already");
    for bad in [
        &["--accept", id][..],
        &["--accept", id, "--days", "0", "--because", "x"],
        &["--days", "3"],
    ] {
        ci(&project, &[&["scan"], bad].concat()).run().exits(2);
    }
    assert_eq!(project.read(".trivyignore.yaml"), file);
}
