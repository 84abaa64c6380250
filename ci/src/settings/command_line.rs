//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use crate::model::event::Event;
use crate::model::step::Step;

/// Takes a commit through tests, format check, lint, image build, scan and smoke test in containers of a Dagger engine, and
/// on a push to main publishes the image.
#[derive(Debug, Parser)]
#[command(name = "ci", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do; `run` where nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options that all commands have.
    #[command(flatten)]
    pub options: Options,
}

const EXIT_CODES: &str = "\
Exit codes: 0 every gate passed (and the image was published, where it was to be); 1 a gate failed; 2 wrong usage or \
settings; 3 no engine, registry, network or vulnerability database; 4 publishing refused; 5 vulnerability found; 124 time \
limit; 130 cancelled.

The environment can say what the options say, by the names beside them, and so can ci.toml beside the workspace's Cargo.toml, \
which also says what the service is: `ci init` writes one with every key. The command line wins over the environment, which wins \
over the file.";

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Every gate; publishes when, and only when, this is a push to main on GitHub Actions (the default)
    Run,
    /// The tests of the workspace
    Test,
    /// The format check
    Fmt {
        /// Format the working tree instead of checking it
        #[arg(long)]
        fix: bool,
    },
    /// clippy, with warnings as errors
    Lint,
    /// The project's own gates: the commands of `[[gate]]` in ci.toml
    Custom,
    /// The service's image, as an OCI archive in the report directory
    Build {
        /// Copy the archive to this file too
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Load the image into the local container runtime (docker, podman or nerdctl)
        #[arg(long)]
        load: bool,
    },
    /// The build, and Trivy's scan of it
    Scan,
    /// The build, started and asked for its health
    Smoke,
    /// Every gate, then publish; exit code 4 where this may not publish
    Publish,
    /// Rebuild the commit behind a published image, and compare the two
    Verify {
        /// The image, such as ghcr.io/upwind1647/status-api:4f2a91c, or with its digest
        #[arg(value_name = "IMAGE[@DIGEST]")]
        image: String,
    },
    /// The pipeline's own graph (--format mermaid, dot or json)
    Graph,
    /// A commented ci.toml and the workflow, for the Cargo workspace that is here
    Init,
    /// What a run would use here, and every problem with its remedy
    Doctor,
    /// The embedded engine
    Engine {
        /// What to do with it
        #[command(subcommand)]
        command: EngineCommand,
    },
    /// The caches of a throw-away runner: cargo's downloads and work, the scanner's database
    Cache {
        /// What to do with them
        #[command(subcommand)]
        command: CacheCommand,
    },
}

impl Command {
    /// The steps that it runs: its own and all that they need. None where it is no part of the pipeline.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let last = match self {
            Self::Run | Self::Publish => Step::Publish,
            Self::Test => Step::Test,
            Self::Fmt { .. } => Step::Fmt,
            Self::Lint => Step::Lint,
            Self::Custom => Step::Custom,
            Self::Build { .. } => Step::Build,
            Self::Scan => Step::Scan,
            Self::Smoke => Step::Smoke,
            Self::Verify { .. }
            | Self::Graph
            | Self::Init
            | Self::Doctor
            | Self::Engine { .. }
            | Self::Cache { .. } => return Vec::new(),
        };
        Step::with_needs(&[last])
    }
}

/// The commands of the caches.
#[derive(Clone, Debug, Subcommand)]
pub enum CacheCommand {
    /// Copy what the engine has into a folder: what is new, without what is stale
    Save {
        /// The folder
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Give an engine that has nothing yet what is in a folder
    Restore {
        /// The folder
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// The commands of the embedded engine.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum EngineCommand {
    /// Start it, and build it first where it is not built
    Up,
    /// Stop it, and leave no process, mount, link, firewall rule or control group behind
    Down,
    /// Whether it runs and since when, its version, the sizes of its state, its cache and all else that ci keeps
    Status,
    /// Free what can be made again: the engine's cache, other versions, unfinished work; what is in use stays
    Prune,
}

/// How to draw the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Drawing {
    /// For Markdown
    Mermaid,
    /// For Graphviz
    Dot,
    /// For programs
    Json,
}

/// How to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Lines for people, on standard error
    Human,
    /// The report, on standard output, when the run has ended
    Json,
    /// Log groups and annotations for GitHub Actions
    Github,
}

/// The options of all commands.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// What this run was started by: can lower what GitHub says, never raise it
    #[arg(
        long,
        global = true,
        env = "LAB_CI_EVENT",
        value_enum,
        value_name = "EVENT"
    )]
    pub event: Option<Event>,
    /// auto, docker (any runtime that Dagger's CLI drives), embedded, or an engine's URL [default: auto]
    #[arg(long, global = true, env = "LAB_CI_ENGINE", value_name = "ENGINE")]
    pub engine: Option<String>,
    /// The folder of the Cargo workspace, or one in it [default: this one]
    #[arg(long, global = true, env = "LAB_CI_WORKSPACE", value_name = "DIR")]
    pub workspace: Option<PathBuf>,
    /// The platform of the image [default: linux/amd64 where it is published, else the engine's]
    #[arg(long, global = true, env = "LAB_CI_PLATFORM", value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// The registry to publish to [default: ghcr.io]
    #[arg(
        long,
        global = true,
        env = "LAB_CI_REGISTRY",
        value_name = "HOST[:PORT]"
    )]
    pub registry: Option<String>,
    /// The repository in it, without a tag [default: upwind1647/status-api for the package api, else the package's name]
    #[arg(long, global = true, env = "LAB_CI_REPOSITORY", value_name = "NAME")]
    pub repository: Option<String>,
    /// Where the reports go [default: target/ci]
    #[arg(long, global = true, env = "LAB_CI_REPORT_DIR", value_name = "DIR")]
    pub report_dir: Option<PathBuf>,
    /// Bring the caches of a throw-away runner from this folder before the run, and back into it after
    #[arg(long, global = true, env = "LAB_CI_RUNNER_CACHE", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// human, json or github; for `graph`: mermaid, dot or json [default: github on GitHub Actions, human elsewhere]
    #[arg(long, global = true, env = "LAB_CI_FORMAT", value_name = "FORMAT")]
    pub format: Option<String>,
    /// Cancel everything at the first failure
    #[arg(
        long,
        global = true,
        env = "LAB_CI_FAIL_FAST",
        overrides_with = "keep_going"
    )]
    pub fail_fast: bool,
    /// Let independent gates finish after a failure (the default)
    #[arg(long, global = true, overrides_with = "fail_fast")]
    pub keep_going: bool,
    /// The time limit of the whole run, such as 30m
    #[arg(long, global = true, env = "LAB_CI_TIMEOUT", value_name = "DURATION")]
    pub timeout: Option<String>,
    /// Show what the containers write while they run; twice: what ci itself does
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Show nothing but failures
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_a_command_that_ends_with_it() {
        for step in Step::all() {
            let cli = Cli::try_parse_from(["ci", step.name()]).unwrap();
            let steps = cli.command.unwrap().steps();
            assert_eq!(steps, Step::with_needs(&[*step]), "{step}");
        }
    }
}
