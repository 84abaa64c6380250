//! Options, environment and `ci.toml`: what is not valid ends with exit code 2, by its name, before any work.

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
