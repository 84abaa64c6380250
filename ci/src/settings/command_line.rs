//! The command line and its help.

use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Deserialize;

use crate::model::event::Event;
use crate::model::step::Step;

/// Build, test, scan and publish the service of a Cargo workspace
///
/// Runs every gate on the working tree, in containers of a Dagger engine: tests, format check, clippy, the project's own gates,
/// image build, vulnerability scan and smoke test. A push to main on GitHub Actions then publishes the image; everywhere else
/// the run ends after the gates.
#[derive(Debug, Parser)]
#[command(
    name = "ci",
    version,
    after_help = AFTER_HELP,
    after_long_help = AFTER_LONG_HELP,
    mut_subcommands(hide_ignored)
)]
pub struct Cli {
    /// The command; `run` by default.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options that all commands accept.
    #[command(flatten)]
    pub options: Options,
}

const AFTER_HELP: &str = "\
`ci --help` explains all options, the exit codes and the settings; `ci COMMAND --help` a command.";

const AFTER_LONG_HELP: &str = "\
Exit codes:
    0  every gate passed, and the image was published if this run publishes
    1  a gate failed
    2  invalid usage or settings
    3  something outside the code failed: engine, registry, network, disk or vulnerability database
    4  publishing refused
    5  a fixable HIGH or CRITICAL vulnerability (see [scan] in ci.toml)
  124  time limit reached
  130  cancelled

Settings:
  Most options can also be set by the environment variable shown with them, and many in ci.toml. That
  file is next to the workspace's Cargo.toml, and it also describes the service. The command line takes
  precedence over the environment, and the environment over ci.toml. `ci init` writes one with every key.

Examples:
  ci                        Run every gate, and publish if this is a push to main
  ci test --verbose         Run the tests and show their output
  ci build --load           Build the image and load it into the local container runtime
  ci doctor                 Check this machine's setup";

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run every gate, and publish on a push to main on GitHub Actions [default command]
    #[command(after_help = "Example:\n  ci run --engine embedded --timeout 30m")]
    Run,
    /// Run the workspace's tests
    #[command(after_help = "Example:\n  ci test --verbose")]
    Test,
    /// Check the formatting
    #[command(
        after_help = "Examples:\n  ci fmt          Check the working tree's formatting\n  ci fmt --fix    Format the working tree"
    )]
    Fmt {
        /// Format the working tree instead of checking it
        #[arg(long)]
        fix: bool,
    },
    /// Run clippy with warnings as errors
    #[command(after_help = "Example:\n  ci lint --engine docker")]
    Lint,
    /// Run the project's own gates: the commands of `[[gate]]` in ci.toml
    #[command(after_help = "Example:\n  ci custom --verbose")]
    Custom,
    /// Build the service's image as an OCI archive in the report directory
    #[command(
        after_help = "Examples:\n  ci build --output image.tar\n  ci build --load --platform linux/arm64"
    )]
    Build {
        /// Also copy the archive to this file
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Load the image into the local container runtime (docker, podman or nerdctl)
        #[arg(long)]
        load: bool,
    },
    /// Build the image and scan it with Trivy
    #[command(
        after_help = "Example:\n  ci scan --accept CVE-2026-00000 --days 30 --because \"not reachable; ends with hyper 1.8\""
    )]
    Scan(ScanOptions),
    /// Build and start the image, then poll its health endpoint
    #[command(after_help = "Example:\n  ci smoke --verbose")]
    Smoke,
    /// Run every gate, then publish; exits with code 4 if publishing is not allowed
    #[command(after_help = "Example:\n  ci publish --registry 127.0.0.1:5000")]
    Publish,
    /// Rebuild the commit of a published image and compare the two images
    #[command(after_help = "Example:\n  ci verify ghcr.io/upwind1647/status-api:4f2a91c")]
    Verify {
        /// The image, by its tag or its digest
        #[arg(value_name = "IMAGE[@DIGEST]")]
        image: String,
    },
    /// Open a shell in the container of a step, before its command; for smoke, beside the started image
    ///
    /// The container has the step's image, packages, environment, services, sources and volume. Standard input that is not a
    /// terminal is a script for the shell.
    #[command(
        after_help = "Examples:\n  ci shell test\n  echo \"cargo test -- --list\" | ci shell test"
    )]
    Shell {
        /// The step: test, fmt, lint, custom, build or smoke
        #[arg(value_name = "STEP")]
        step: Step,
    },
    /// Print the graph of the pipeline's steps (--format mermaid, dot or json)
    #[command(after_help = "Example:\n  ci graph --format dot | dot -Tsvg > pipeline.svg")]
    Graph,
    /// Write a commented ci.toml and the workflow for this Cargo workspace
    ///
    /// Existing files are kept.
    #[command(
        after_help = "Examples:\n  ci init --workspace backend\n  ci init --print    Print the ci.toml that it would write"
    )]
    Init {
        /// Print ci.toml instead of writing files, also where one exists
        #[arg(long)]
        print: bool,
    },
    /// Check this machine's setup and suggest fixes
    #[command(after_help = "Example:\n  ci doctor --engine docker")]
    Doctor,
    /// Print a script that completes commands and options in a shell
    #[command(
        after_help = "Example:\n  ci completions bash > ~/.local/share/bash-completion/completions/ci"
    )]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the manual page of ci or of a command
    #[command(after_help = "Examples:\n  ci man | man -l -\n  ci man build | man -l -")]
    Man {
        /// The command; without it, all of ci
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
    /// Manage the embedded engine
    #[command(
        after_help = "Examples:\n  ci engine up\n  ci engine status --format json\n  ci engine down"
    )]
    Engine {
        /// The command.
        #[command(subcommand)]
        command: EngineCommand,
    },
    /// Save or restore the caches of an ephemeral runner
    ///
    /// The caches are cargo's downloads and build results, and the vulnerability database. `ci run --cache-dir DIR` restores
    /// them before the run and saves them after it.
    #[command(
        after_help = "Examples:\n  ci cache restore target/runner-cache\n  ci cache save target/runner-cache"
    )]
    Cache {
        /// The command.
        #[command(subcommand)]
        command: CacheCommand,
    },
}

impl Command {
    /// The steps that the command runs: its own and all that they need. Empty for commands outside the pipeline.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let last = match self {
            Self::Run | Self::Publish => Step::Publish,
            Self::Test => Step::Test,
            Self::Fmt { .. } => Step::Fmt,
            Self::Lint => Step::Lint,
            Self::Custom => Step::Custom,
            Self::Build { .. } | Self::Shell { step: Step::Smoke } => Step::Build,
            Self::Scan(_) => Step::Scan,
            Self::Smoke => Step::Smoke,
            Self::Verify { .. }
            | Self::Shell { .. }
            | Self::Graph
            | Self::Init { .. }
            | Self::Doctor
            | Self::Completions { .. }
            | Self::Man { .. }
            | Self::Engine { .. }
            | Self::Cache { .. } => return Vec::new(),
        };
        Step::with_needs(&[last])
    }
}

/// The commands of the caches.
#[derive(Clone, Debug, Subcommand)]
pub enum CacheCommand {
    /// Save the engine's caches to a directory; writes only what has changed, without stale files
    #[command(after_help = "Example:\n  ci cache save target/runner-cache")]
    Save {
        /// The directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Restore caches from a directory into an empty engine
    #[command(after_help = "Example:\n  ci cache restore target/runner-cache")]
    Restore {
        /// The directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// The commands of the embedded engine.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum EngineCommand {
    /// Start the engine and print its URL; builds the engine first if necessary
    #[command(after_help = "Example:\n  ci engine up")]
    Up,
    /// Stop the engine and remove its processes, mounts, network links, firewall rules and cgroups
    #[command(after_help = "Example:\n  ci engine down")]
    Down,
    /// Print whether the engine is running, its version and uptime, and the sizes of everything ci stores
    #[command(after_help = "Example:\n  ci engine status --format json")]
    Status,
    /// Delete the engine's cache, other engine versions and unfinished downloads; keeps whatever is in use
    #[command(after_help = "Example:\n  ci engine prune")]
    Prune,
}

/// The formats of `ci graph`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Drawing {
    /// A diagram for Markdown.
    Mermaid,
    /// A diagram for Graphviz.
    Dot,
    /// The steps and what each of them needs.
    Json,
}

/// The formats of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Rows or lines for people, on standard error.
    Human,
    /// The report, on standard output, at the end of the run.
    Json,
    /// Log groups and annotations for GitHub Actions.
    Github,
}

/// The options of all commands.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Common options")]
pub struct Options {
    /// The event that started this run
    ///
    /// Detected on GitHub Actions, and `local` elsewhere. This option can only prevent publishing: no value turns another run
    /// into a push to main.
    #[arg(
        long,
        global = true,
        env = "LAB_CI_EVENT",
        value_enum,
        value_name = "EVENT",
        hide_short_help = true
    )]
    pub event: Option<Event>,
    /// auto, docker, embedded or a URL [default: auto]
    ///
    /// `docker` stands for any container runtime that Dagger's CLI supports.
    #[arg(long, global = true, env = "LAB_CI_ENGINE", value_name = "ENGINE")]
    pub engine: Option<String>,
    /// The workspace, or a directory in it [default: .]
    #[arg(long, global = true, env = "LAB_CI_WORKSPACE", value_name = "DIR")]
    pub workspace: Option<PathBuf>,
    /// The image's platform [default: linux/amd64 in a run that publishes, else the engine's platform]
    #[arg(
        long,
        global = true,
        env = "LAB_CI_PLATFORM",
        value_name = "OS/ARCH",
        hide_short_help = true
    )]
    pub platform: Option<String>,
    /// The registry to publish to [default: ghcr.io]
    #[arg(
        long,
        global = true,
        env = "LAB_CI_REGISTRY",
        value_name = "HOST[:PORT]",
        hide_short_help = true
    )]
    pub registry: Option<String>,
    /// The repository in the registry, without a tag
    ///
    /// [default: upwind1647/status-api for the package `api`, else the package's name]
    #[arg(
        long,
        global = true,
        env = "LAB_CI_REPOSITORY",
        value_name = "NAME",
        hide_short_help = true
    )]
    pub repository: Option<String>,
    /// The branch whose pushes are published [default: the repository's default branch on GitHub, else main]
    ///
    /// Only the command line can name it: a file of the commit would let any branch publish.
    #[arg(long, global = true, value_name = "BRANCH", hide_short_help = true)]
    pub release_branch: Option<String>,
    /// The directory for reports [default: target/ci]
    #[arg(
        long,
        global = true,
        env = "LAB_CI_REPORT_DIR",
        value_name = "DIR",
        hide_short_help = true
    )]
    pub report_dir: Option<PathBuf>,
    /// Restore an ephemeral runner's caches from this directory, and save them to it after the run
    #[arg(
        long,
        global = true,
        env = "LAB_CI_RUNNER_CACHE",
        value_name = "DIR",
        hide_short_help = true
    )]
    pub cache_dir: Option<PathBuf>,
    /// The output format: human, json or github
    ///
    /// `json` prints the report to standard output. The default is `github` on GitHub Actions and `human` elsewhere.
    #[arg(long, global = true, env = "LAB_CI_FORMAT", value_name = "FORMAT")]
    pub format: Option<String>,
    /// Cancel all other steps at the first failure
    #[arg(
        long,
        global = true,
        env = "LAB_CI_FAIL_FAST",
        value_parser = BoolishValueParser::new(),
        overrides_with = "keep_going",
        hide_short_help = true
    )]
    pub fail_fast: bool,
    /// Let independent gates finish after a failure (the default)
    #[arg(
        long,
        global = true,
        overrides_with = "fail_fast",
        hide_short_help = true
    )]
    pub keep_going: bool,
    /// The time limit of the whole run, such as 30m [default: 55m on GitHub Actions, else none]
    #[arg(
        long,
        global = true,
        env = "LAB_CI_TIMEOUT",
        value_name = "DURATION",
        hide_short_help = true
    )]
    pub timeout: Option<String>,
    /// The settings, a file of the workspace [default: ci.toml]
    ///
    /// A workspace with several services has one file for each.
    #[arg(
        long,
        global = true,
        env = "LAB_CI_CONFIG",
        value_name = "FILE",
        hide_short_help = true
    )]
    pub config: Option<PathBuf>,
    /// The number of compilers that each cargo runs at the same time [default: the number of processors]
    #[arg(
        long,
        global = true,
        env = "LAB_CI_JOBS",
        value_name = "NUMBER",
        hide_short_help = true
    )]
    pub jobs: Option<NonZeroU16>,
    /// The memory for cargo, such as 4GiB; steps take turns if it is short [default: that of a local engine's machine]
    #[arg(
        long,
        global = true,
        env = "LAB_CI_MEMORY",
        value_name = "SIZE",
        hide_short_help = true
    )]
    pub memory: Option<String>,
    /// Let the containers use HTTP_PROXY, HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE of the environment
    #[arg(
        long,
        global = true,
        env = "LAB_CI_PROXY",
        value_parser = BoolishValueParser::new(),
        hide_short_help = true
    )]
    pub proxy: bool,
    /// Write what the run spends its time on to this file, for ui.perfetto.dev
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub profile: Option<PathBuf>,
    /// Show the containers' output; -vv also logs what ci does
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print only one line, at the end
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

/// The options of `ci scan`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ScanOptions {
    /// Do not scan, but accept this vulnerability for a time, in .trivyignore.yaml
    #[arg(long, value_name = "ID", requires_all = ["days", "because"])]
    accept: Option<String>,
    /// For how many days it is accepted
    #[arg(long, value_name = "N", requires = "accept", value_parser = clap::value_parser!(u16).range(1..=365))]
    days: Option<u16>,
    /// Why it is accepted, and what ends the exception
    #[arg(long, value_name = "TEXT", requires = "accept")]
    because: Option<String>,
}

/// A vulnerability to accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The vulnerability.
    pub id: String,
    /// For how many days it is accepted.
    pub days: u16,
    /// Why it is accepted.
    pub because: String,
}

impl ScanOptions {
    /// The vulnerability to accept, if one is named.
    #[must_use]
    pub fn acceptance(&self) -> Option<Acceptance> {
        Some(Acceptance {
            id: self.accept.clone()?,
            days: self.days?,
            because: self.because.clone()?,
        })
    }
}

/// The options of the image, by their fields in [`Options`].
const IMAGE: &[&str] = &["platform", "registry", "repository"];
/// The option that only matters to what publishes, and to the caches of main.
const RELEASE: &[&str] = &["release_branch"];
/// The options that only a run of steps uses.
const RUN: &[&str] = &[
    "report_dir",
    "fail_fast",
    "keep_going",
    "timeout",
    "jobs",
    "memory",
    "proxy",
    "profile",
];

/// The options, by their fields in [`Options`], that a command ignores. It accepts them, as scripts and the environment may
/// set them for all commands, but its help does not show them.
fn ignored(command: &str) -> Vec<&'static str> {
    let groups: &[&[&str]] = match command {
        "test" | "fmt" | "lint" | "custom" => &[IMAGE],
        "verify" => &[IMAGE, RELEASE, RUN, &["event", "cache_dir"]],
        "graph" => &[
            IMAGE,
            RELEASE,
            RUN,
            &["event", "engine", "cache_dir", "quiet"],
        ],
        "init" => &[
            IMAGE,
            RELEASE,
            RUN,
            &["event", "engine", "config", "cache_dir", "format"],
        ],
        "shell" => &[
            RUN,
            RELEASE,
            &["registry", "repository", "cache_dir", "format", "quiet"],
        ],
        "doctor" => &[RUN, &["platform", "format", "quiet"]],
        "engine" | "status" => &[
            IMAGE,
            RELEASE,
            RUN,
            &["event", "engine", "workspace", "config", "cache_dir"],
        ],
        "up" | "down" | "prune" => &[
            IMAGE,
            RELEASE,
            RUN,
            &[
                "event",
                "engine",
                "workspace",
                "config",
                "cache_dir",
                "format",
            ],
        ],
        "completions" | "man" => &[
            IMAGE,
            RELEASE,
            RUN,
            &[
                "event",
                "engine",
                "workspace",
                "config",
                "cache_dir",
                "format",
            ],
            &["verbose", "quiet"],
        ],
        "cache" | "save" | "restore" => &[RUN, &["registry", "cache_dir"]],
        _ => &[],
    };
    groups.concat()
}

/// The help of `--format` for commands whose formats are not those of a run.
fn formats(command: &str) -> Option<&'static str> {
    match command {
        "graph" => Some("The output format: mermaid, dot or json [default: mermaid]"),
        "engine" | "status" => {
            Some("The output format of `status`: human or json [default: human]")
        }
        _ => None,
    }
}

/// Adapts the options that a command inherits. clap copies global options to a command only when it parses, and skips those that
/// the command already has, so this adds adapted copies first.
fn hide_ignored(command: clap::Command) -> clap::Command {
    let name = command.get_name().to_owned();
    let options = Options::augment_args(clap::Command::new("options"));
    let adapted = options.get_arguments().cloned().map(|option| {
        let id = option.get_id().as_str();
        if ignored(&name).contains(&id) {
            return option.hide(true);
        }
        match formats(&name).filter(|_| id == "format") {
            Some(help) => option.help(help).long_help(help),
            None => option,
        }
    });
    command.args(adapted).mut_subcommands(hide_ignored)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn short_help_has_at_most_40_lines_of_100_columns() {
        let help = Cli::command().term_width(100).render_help().to_string();
        assert!(help.lines().count() <= 40, "{help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    fn assert_has_example(command: &clap::Command) {
        for help in [
            command.clone().render_help(),
            command.clone().render_long_help(),
        ] {
            let help = help.to_string();
            let example = |line: &str| line.trim_start().starts_with("ci ");
            let after = help.split_once("Example").map_or("", |(_, after)| after);
            assert!(after.lines().any(example), "{help}");
        }
        for below in command
            .get_subcommands()
            .filter(|it| it.get_name() != "help")
        {
            assert_has_example(below);
        }
    }

    #[test]
    fn help_of_each_command_has_an_example() {
        let mut cli = Cli::command().term_width(100);
        cli.build();
        for command in cli.get_subcommands().filter(|it| it.get_name() != "help") {
            assert_has_example(command);
        }
    }

    #[test]
    fn help_shows_own_options_first_and_hides_ignored_ones() {
        let mut cli = Cli::command().term_width(100);
        cli.build();
        let mut help = |name: &str| {
            let command = cli.find_subcommand_mut(name).unwrap();
            command.render_long_help().to_string()
        };
        let build = help("build");
        assert!(build.find("--output") < build.find("--engine"), "{build}");
        assert!(build.contains("--registry") && !help("test").contains("--registry"));
        assert!(help("graph").contains("mermaid") && !help("graph").contains("--engine"));
    }

    #[test]
    fn ignored_options_exist_and_are_still_accepted() {
        let options = Options::augment_args(clap::Command::new("options"));
        let exists = |id: &str| options.get_arguments().any(|option| option.get_id() == id);
        for command in Cli::command().get_subcommands() {
            for id in ignored(command.get_name()) {
                assert!(exists(id), "{id}");
            }
        }
        let cli = Cli::try_parse_from(["ci", "engine", "up", "--engine", "docker"]).unwrap();
        assert_eq!(cli.options.engine.as_deref(), Some("docker"));
    }

    #[test]
    fn each_step_has_a_command_whose_last_step_it_is() {
        for step in Step::all() {
            let cli = Cli::try_parse_from(["ci", step.name()]).unwrap();
            let steps = cli.command.unwrap().steps();
            assert_eq!(steps, Step::with_needs(&[*step]), "{step}");
        }
    }
}
