//! What `ci` says of itself; the README says the same.

use std::collections::BTreeSet;

use ci::settings::Cli;
use clap::CommandFactory;
use common::failure::ExitCode;

use crate::ci_in;
use crate::harness::Project;

const README: &str = include_str!("../../../README.md");

fn printed(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    // The help shows what is set.
    let outcome =
        crate::without_a_named_engine(crate::harness::Ci::new(folder.path(), arguments)).exits(0);
    assert_eq!(outcome.stderr, "");
    outcome.stdout
}

#[test]
fn the_help_of_every_command_is_as_reviewed() {
    insta::assert_snapshot!("help", printed(&["--help"]));
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        insta::assert_snapshot!(format!("help-{name}"), printed(&[name, "--help"]));
        for below in command.get_subcommands() {
            let inner = below.get_name();
            insta::assert_snapshot!(
                format!("help-{name}-{inner}"),
                printed(&[name, inner, "--help"])
            );
        }
    }
}

#[test]
fn the_graph_is_drawn_without_a_repository_or_an_engine() {
    insta::assert_snapshot!("graph-mermaid", printed(&["graph"]));
    insta::assert_snapshot!("graph-dot", printed(&["graph", "--format", "dot"]));
    insta::assert_snapshot!("graph-json", printed(&["graph", "--format", "json"]));
    assert_eq!(
        printed(&["graph"]),
        printed(&["graph", "--format", "mermaid"])
    );
}

#[test]
fn the_version_is_that_of_the_package() {
    assert_eq!(
        printed(&["--version"]),
        format!("ci {}\n", env!("CARGO_PKG_VERSION"))
    );
}

const CODES: [ExitCode; 8] = [
    ExitCode::Success,
    ExitCode::GateFailed,
    ExitCode::Usage,
    ExitCode::Environment,
    ExitCode::PublishRefused,
    ExitCode::Vulnerable,
    ExitCode::TimedOut,
    ExitCode::Cancelled,
];

#[test]
fn the_help_and_the_readme_name_every_exit_code() {
    let help = printed(&["--help"]);
    let codes = help
        .split_once("Exit codes:")
        .unwrap()
        .1
        .split("\n\n")
        .next()
        .unwrap();
    let words: BTreeSet<_> = codes.split_whitespace().collect();
    for code in CODES {
        let number = (code as u8).to_string();
        assert!(words.contains(number.as_str()), "{number} in: {codes}");
        assert!(
            README.contains(&format!("\n| {number} | ")),
            "the README's table has no row for exit code {number}"
        );
    }
}

#[test]
fn the_readme_names_every_command_and_option() {
    let cli = Cli::command();
    for command in cli.get_subcommands() {
        let name = command.get_name();
        assert!(README.contains(&format!("| `ci {name}")), "ci {name}");
        for below in command.get_subcommands() {
            let inner = below.get_name();
            assert!(README.contains(inner), "ci {name} {inner}");
        }
        for option in command.get_arguments().filter_map(|a| a.get_long()) {
            assert!(README.contains(&format!("--{option}")), "--{option}");
        }
    }
    for argument in cli.get_arguments().filter(|a| a.get_id() != "help") {
        if let Some(option) = argument.get_long() {
            assert!(README.contains(&format!("`--{option}")), "--{option}");
        }
        if let Some(name) = argument.get_env() {
            let name = name.to_str().unwrap();
            assert!(name.starts_with("LAB_CI_"), "{name}");
            assert!(README.contains(name), "{name}");
        }
    }
}

#[test]
fn the_readme_promises_no_command_that_is_not_there() {
    let cli = Cli::command();
    let known: BTreeSet<_> = cli.get_subcommands().map(clap::Command::get_name).collect();
    for row in README
        .lines()
        .filter_map(|line| line.strip_prefix("| `ci "))
    {
        let name = row.split([' ', '`']).next().unwrap();
        assert!(known.contains(name), "ci {name}");
    }
}

#[test]
fn the_readme_shows_what_ci_graph_prints_for_a_project_with_a_gate_of_its_own() {
    let project = Project::new("graph");
    let graph = || project.ci(&["graph"]).run().exits(0).stdout;
    let without = graph();
    assert_eq!(without, printed(&["graph"]));
    assert!(!without.contains("custom"), "{without}");
    project.write("ci.toml", "[[gate]]\nname = \"a\"\nrun = \"b\"\n");
    assert!(README.contains(&graph()));
}

#[test]
fn help_needs_no_valid_surroundings() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ci.toml"), "nonsense").unwrap();
    ci_in(folder.path(), &["run", "--help"])
        .env("LAB_CI_REGISTRY", "https://nonsense/")
        .run()
        .exits(0);
}
