//! Help, version and graph, and the documentation's tables of commands, options, `ci.toml` keys and exit codes.

use std::collections::BTreeSet;
use std::path::Path;

use ci::settings::Cli;
use clap::CommandFactory;
use common::failure::ExitCode;

use crate::ci_in;
use crate::harness::Project;

const README: &str = "README.md";
/// Lists the commands and their own options.
const COMMANDS: &str = "ci/docs/commands.md";
/// Lists the options of all commands, with their environment variables, and the keys of `ci.toml`.
const CONFIGURATION: &str = "ci/docs/configuration.md";

/// Reads a page when the test runs: the pipeline's lint does not get `ci/docs`.
fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// Runs the command outside a repository and returns its standard output.
pub(crate) fn stdout_of(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    // The help shows the current values of environment variables.
    let outcome =
        crate::run_without_engine_setting(crate::harness::Ci::new(folder.path(), arguments))
            .exits(0);
    assert_eq!(outcome.stderr, "");
    outcome.stdout
}

#[test]
fn help_of_every_command_matches_its_snapshot() {
    insta::assert_snapshot!("help", stdout_of(&["--help"]));
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        insta::assert_snapshot!(format!("help-{name}"), stdout_of(&[name, "--help"]));
        for below in command.get_subcommands() {
            let inner = below.get_name();
            insta::assert_snapshot!(
                format!("help-{name}-{inner}"),
                stdout_of(&[name, inner, "--help"])
            );
        }
    }
}

#[test]
fn prints_the_graph_without_a_repository_or_an_engine() {
    insta::assert_snapshot!("graph-mermaid", stdout_of(&["graph"]));
    insta::assert_snapshot!("graph-dot", stdout_of(&["graph", "--format", "dot"]));
    insta::assert_snapshot!("graph-json", stdout_of(&["graph", "--format", "json"]));
    assert_eq!(
        stdout_of(&["graph"]),
        stdout_of(&["graph", "--format", "mermaid"])
    );
}

#[test]
fn prints_the_version_and_the_commit_of_its_sources() {
    let printed = stdout_of(&["--version"]);
    let version = format!("ci {}", env!("CARGO_PKG_VERSION"));
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The pipeline's containers have no repository.
    if !sources.join("../.git").exists() {
        assert_eq!(printed, format!("{version}\n"));
        return;
    }
    let commit = crate::harness::git(sources, &["rev-parse", "HEAD"]);
    let rest = printed.strip_prefix(&format!("{version} (commit {commit}"));
    assert!(
        matches!(rest, Some(")\n" | "-dirty)\n")),
        "{printed}, {commit}"
    );
}

#[test]
fn help_and_documentation_list_every_exit_code() {
    let help = stdout_of(&["--help"]);
    let codes = help
        .split_once("Exit codes:")
        .unwrap()
        .1
        .split("\n\n")
        .next()
        .unwrap();
    let words: BTreeSet<_> = codes.split_whitespace().collect();
    for code in ExitCode::ALL {
        let number = (code as u8).to_string();
        assert!(words.contains(number.as_str()), "{number} in: {codes}");
        for name in [README, COMMANDS] {
            assert!(
                page(name).contains(&format!("\n| {number} | ")),
                "the table of {name} has no row for exit code {number}"
            );
        }
    }
}

#[test]
fn documentation_lists_every_command_and_option() {
    let cli = Cli::command();
    let commands = page(COMMANDS);
    for command in cli.get_subcommands() {
        let name = command.get_name();
        assert!(commands.contains(&format!("| `ci {name}")), "ci {name}");
        for below in command.get_subcommands() {
            let inner = below.get_name();
            assert!(commands.contains(inner), "ci {name} {inner}");
        }
        // Options of all commands are listed with the settings, see below.
        let own = command.get_arguments().filter(|a| !a.is_global_set());
        for option in own.filter_map(|a| a.get_long()) {
            assert!(commands.contains(&format!("--{option}")), "--{option}");
        }
    }
    let configuration = page(CONFIGURATION);
    for argument in cli.get_arguments().filter(|a| a.get_id() != "help") {
        if let Some(option) = argument.get_long() {
            assert!(
                configuration.contains(&format!("`--{option}")),
                "--{option}"
            );
        }
        if let Some(name) = argument.get_env() {
            let name = name.to_str().unwrap();
            assert!(name.starts_with("LAB_CI_"), "{name}");
            let option = argument.get_long().unwrap();
            let row = |line: &&str| line.starts_with(&format!("| `--{option}"));
            let row = configuration.lines().find(row);
            assert!(
                row.is_some_and(|row| row.contains(&format!("| `{name}` |"))),
                "the row of --{option} does not name {name}"
            );
        }
    }
}

#[test]
fn documentation_lists_no_unknown_command_or_option() {
    let cli = Cli::command();
    let known: BTreeSet<_> = cli.get_subcommands().map(clap::Command::get_name).collect();
    for name in [README, COMMANDS] {
        let page = page(name);
        for row in page.lines().filter_map(|line| line.strip_prefix("| `ci ")) {
            let command = row.split([' ', '`']).next().unwrap();
            assert!(known.contains(command), "ci {command} in {name}");
        }
    }
    let known: BTreeSet<_> = cli.get_arguments().filter_map(|a| a.get_long()).collect();
    for row in page(CONFIGURATION)
        .lines()
        .filter_map(|line| line.strip_prefix("| `--"))
    {
        let option = row.split([' ', '`']).next().unwrap();
        assert!(known.contains(option), "--{option}");
    }
}

/// The keys of the commented settings file that `ci init` writes: `timeout`, `scan.severity`. A test of `ci init` compares that
/// file with the parser.
fn template_keys() -> BTreeSet<String> {
    let mut table = String::new();
    let mut keys = BTreeSet::new();
    for line in include_str!("../../src/commands/init/ci.toml").lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if line.starts_with('[') && line.ends_with(']') {
            table = line.trim_matches(['[', ']']).to_owned() + ".";
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
        {
            keys.insert(match table.as_str() {
                "services.database." => format!("services.NAME.{key}"),
                "limits." | "paths." => format!("{table}STEP"),
                _ => format!("{table}{key}"),
            });
        }
    }
    // Lines without a key of their own in the template.
    let keyless = ["source", "image.base", "toolchain.packages", "build.commit"];
    keys.extend(keyless.map(ToOwned::to_owned));
    keys
}

#[test]
fn documentation_lists_exactly_the_keys_of_the_settings_file() {
    let page = page(CONFIGURATION);
    let (_, section) = page.split_once("## `ci.toml`\n").unwrap();
    let documented: BTreeSet<_> = section
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .map(ToOwned::to_owned)
        .collect();
    assert_eq!(documented, template_keys());
}

#[test]
fn readme_shows_the_graph_of_a_project_with_a_custom_gate() {
    let project = Project::new("graph");
    let graph = || project.ci(&["graph"]).run().exits(0).stdout;
    let without = graph();
    assert_eq!(without, stdout_of(&["graph"]));
    assert!(!without.contains("custom"), "{without}");
    project.write("ci.toml", "[[gate]]\nname = \"a\"\nrun = \"b\"\n");
    assert!(page(README).contains(&graph()));
}

#[test]
fn prints_help_despite_invalid_settings() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ci.toml"), "nonsense").unwrap();
    ci_in(folder.path(), &["run", "--help"])
        .env("LAB_CI_REGISTRY", "https://nonsense/")
        .run()
        .exits(0);
}
