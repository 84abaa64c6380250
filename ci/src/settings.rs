//! What the user says: command line, environment (`LAB_CI_…`), `ci.toml`, in this order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use crate::authority::{Event, GitHub, Origin};
use crate::engine::Choice;
use crate::failure::{Failure, OrFail};
use crate::oci::Platform;
use crate::paths::{self, Paths};
use crate::project::Project;
use crate::reference::{Registry, Repository};
use crate::service::{
    self, Backing, BackingTable, Contents, ImageTable, ScanLimits, ScanTable, Service,
    ServiceTable, SmokeTable, TestTable, ToolchainTable, Trial,
};
use crate::step::Step;

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

/// `ci.toml`, beside the workspace's `Cargo.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    engine: Option<String>,
    registry: Option<String>,
    repository: Option<String>,
    source: Option<String>,
    platform: Option<String>,
    report_dir: Option<PathBuf>,
    format: Option<String>,
    fail_fast: Option<bool>,
    timeout: Option<String>,
    service: ServiceTable,
    image: ImageTable,
    services: BTreeMap<String, BackingTable>,
    toolchain: ToolchainTable,
    test: TestTable,
    scan: ScanTable,
    smoke: SmokeTable,
    limits: BTreeMap<Step, String>,
    paths: BTreeMap<Step, Vec<String>>,
}

/// The name of the settings' file.
pub const FILE: &str = "ci.toml";

/// Everything that was said, valid.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The event that counts.
    pub event: Event,
    /// The engine.
    pub engine: Choice,
    /// The registry.
    pub registry: Registry,
    /// Where the registry was named.
    pub registry_from: Origin,
    /// The repository.
    pub repository: Repository,
    /// The label `org.opencontainers.image.source`: from the settings or the package, never from the git remote.
    pub source: Option<String>,
    /// The platform of the image, where it was said.
    pub platform: Option<Platform>,
    /// The workspace's folder, relative to the top of the sources.
    pub folder: PathBuf,
    /// What is shipped.
    pub service: Service,
    /// What is in its image.
    pub image: Contents,
    /// What it or its tests need beside them.
    pub services: Vec<Backing>,
    /// Packages of the distribution that are installed beside the toolchain.
    pub packages: Vec<String>,
    /// The environment of the tests.
    pub test_env: BTreeMap<String, String>,
    /// What the scan lets pass.
    pub scan: ScanLimits,
    /// How the image is tried.
    pub smoke: Trial,
    /// How long a step may take, where that was said.
    pub limits: BTreeMap<Step, Duration>,
    /// What of the sources a step is given, where that was said.
    pub paths: BTreeMap<Step, Paths>,
    /// Where the caches of a throw-away runner are carried, absolute.
    pub cache_dir: Option<PathBuf>,
    /// The report directory, absolute.
    pub report_dir: PathBuf,
    /// How to report.
    pub format: Format,
    /// Whether the first failure cancels everything.
    pub fail_fast: bool,
    /// The time limit of the whole run.
    pub timeout: Option<Duration>,
    /// `-v`, counted.
    pub verbose: u8,
    /// `-q`.
    pub quiet: bool,
}

/// The command line, read.
#[derive(Debug)]
pub struct Invocation {
    /// The command.
    pub command: Command,
    /// Its options.
    pub options: Options,
    registry_from: Origin,
}

impl Invocation {
    /// Reads the command line.
    ///
    /// # Errors
    /// What clap says: wrong usage, or a request for help or the version.
    pub fn parse<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let matches = Cli::command().try_get_matches_from(arguments)?;
        let cli = Cli::from_arg_matches(&matches)?;
        Ok(Self {
            command: cli.command.unwrap_or(Command::Run),
            options: cli.options,
            registry_from: if on_command_line(&matches, "registry") {
                Origin::CommandLine
            } else {
                Origin::Elsewhere
            },
        })
    }

    /// The directory that the run is about: `--workspace`, or the current one.
    ///
    /// # Errors
    /// When it is not a directory (exit 2), or there is no current one (exit 3).
    pub fn directory(&self) -> Result<PathBuf, Failure> {
        match &self.options.workspace {
            Some(named) if named.is_dir() => std::path::absolute(named)
                .or_environment(format!("cannot look at {}", named.display())),
            Some(named) => Err(Failure::usage(format!(
                "--workspace names {}, which is not a directory",
                named.display()
            ))),
            None => std::env::current_dir().or_environment("there is no current directory"),
        }
    }

    /// How to report where there is no run: what the command line or the environment says.
    ///
    /// # Errors
    /// When `--format` is not one of its formats (exit 2).
    pub fn format(&self, github: &GitHub) -> Result<Format, Failure> {
        format(self.options.format.clone(), github)
    }

    /// The settings of a run on `project`, which lies in `root` on the disk; `file` is the content of its `ci.toml`.
    ///
    /// # Errors
    /// When something that was said is not valid (exit 2).
    pub fn settings(
        &self,
        root: &Path,
        project: &Project,
        file: Option<&str>,
        github: &GitHub,
    ) -> Result<Settings, Failure> {
        let file: File = match file {
            None => File::default(),
            Some(text) => toml::from_str(text).map_err(|error| {
                Failure::usage(format!("{FILE} is not valid"))
                    .output(error.to_string())
                    .hint("`ci init` in an empty folder of the workspace shows every key, and so does the README.")
            })?,
        };
        let service = file.service.resolve(project)?;
        let options = &self.options;
        let said = |option: &Option<String>, file: Option<String>, default: &str| {
            option
                .clone()
                .or(file)
                .unwrap_or_else(|| default.to_owned())
        };
        let timeout = match options.timeout.clone().or(file.timeout) {
            None => None,
            Some(text) => Some(duration(&text)?),
        };
        let report_dir = options
            .report_dir
            .clone()
            .or(file.report_dir)
            .unwrap_or_else(|| "target/ci".into());
        // A path on the command line is the user's; one in the file, and the default, are the project's.
        let report_dir = if options.report_dir.is_some() {
            std::path::absolute(&report_dir)
                .map_err(|error| Failure::usage("--report-dir is not a path").because(error))?
        } else {
            root.join(report_dir)
        };
        let platform = options.platform.clone().or(file.platform);
        let services = file
            .services
            .into_iter()
            .map(|(name, table)| table.resolve(name))
            .collect::<Result<_, _>>()?;
        Ok(Settings {
            event: options.event.unwrap_or_else(|| github.event()),
            engine: said(&options.engine, file.engine, "auto").parse()?,
            registry: said(&options.registry, file.registry, Registry::GHCR).parse()?,
            registry_from: self.registry_from,
            repository: said(
                &options.repository,
                file.repository,
                &default_repository(&service.package),
            )
            .parse()?,
            source: file.source.or_else(|| service.repository.clone()),
            platform: platform.as_deref().map(str::parse).transpose()?,
            folder: project.folder.clone(),
            image: file.image.resolve(&service, &project.sources)?,
            service,
            services,
            packages: file.toolchain.resolve()?,
            test_env: file.test.resolve()?,
            scan: file.scan.resolve()?,
            smoke: file.smoke.resolve()?,
            limits: service::limits(file.limits)?,
            paths: paths::resolve(file.paths)?,
            cache_dir: options.cache_dir.as_deref().map(cache_dir).transpose()?,
            report_dir,
            format: format(options.format.clone().or(file.format), github)?,
            fail_fast: !options.keep_going
                && (options.fail_fast || file.fail_fast.unwrap_or_default()),
            timeout,
            verbose: options.verbose,
            quiet: options.quiet,
        })
    }

    /// How `ci graph` draws.
    ///
    /// # Errors
    /// When `--format` is not one of its formats (exit 2).
    pub fn drawing(&self) -> Result<Drawing, Failure> {
        let Some(text) = &self.options.format else {
            return Ok(Drawing::Mermaid);
        };
        Drawing::from_str(text, false).map_err(|_| {
            Failure::usage(format!("`{text}` is not a format of `ci graph`"))
                .hint("It takes mermaid, dot or json.")
        })
    }
}

fn format(said: Option<String>, github: &GitHub) -> Result<Format, Failure> {
    match said {
        None if github.actions => Ok(Format::Github),
        None => Ok(Format::Human),
        Some(text) => Format::from_str(&text, false).map_err(|_| {
            Failure::usage(format!("`{text}` is not a format"))
                .hint("--format takes human, json or github.")
        }),
    }
}

/// Ours, for our service; a service of somebody else's is not published under our name because nobody said another.
fn default_repository(package: &str) -> String {
    match package {
        "api" => "upwind1647/status-api".to_owned(),
        other => other.to_lowercase(),
    }
}

/// The folder of the caches, absolute.
///
/// # Errors
/// When it is something else than a folder (exit 2).
pub(crate) fn cache_dir(named: &Path) -> Result<PathBuf, Failure> {
    if named.exists() && !named.is_dir() {
        return Err(Failure::usage(format!(
            "{} is not a folder, and the caches go into one",
            named.display()
        )));
    }
    std::path::absolute(named)
        .map_err(|error| Failure::usage("--cache-dir is not a path").because(error))
}

/// A duration of more than nothing, as people write it.
pub(crate) fn duration(text: &str) -> Result<Duration, Failure> {
    let wrong = || {
        Failure::usage(format!("`{text}` is not a time limit"))
            .hint("Write it as 90s, 30m or 1h 30m.")
    };
    let signed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(signed)
        .ok()
        .filter(|limit| !limit.is_zero())
        .ok_or_else(wrong)
}

/// The keys that `ci.toml` takes at its top, or in the table that `head` opens: as the parser itself lists them.
#[cfg(test)]
pub(crate) fn keys(head: &str) -> Vec<String> {
    let text = format!("{head}\nno-such-key = 1\n");
    let error = toml::from_str::<File>(&text).unwrap_err().to_string();
    let list = error.split("expected").nth(1).unwrap_or_default();
    list.split('`')
        .skip(1)
        .step_by(2)
        .map(ToOwned::to_owned)
        .collect()
}

fn on_command_line(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
        || matches
            .subcommand()
            .is_some_and(|(_, below)| on_command_line(below, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::Package;

    fn settings(arguments: &[&str], file: Option<&str>) -> Result<Settings, Failure> {
        let arguments = ["ci"].iter().chain(arguments).copied();
        let package = |name: &str| Package {
            name: name.to_owned(),
            programs: vec![name.to_owned()],
            ..Package::default()
        };
        let project = Project {
            packages: vec![package("api"), package("ci")],
            ..Project::default()
        };
        Invocation::parse(arguments).unwrap().settings(
            Path::new("/top"),
            &project,
            file,
            &GitHub::default(),
        )
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = Some("registry = \"registry.example.com\"\nrepository = \"a/b\"\n");
        let all = settings(&[], file).unwrap();
        assert_eq!(
            (all.registry.to_string(), all.registry_from),
            ("registry.example.com".into(), Origin::Elsewhere)
        );
        let all = settings(&["run", "--registry", "127.0.0.1:5000"], file).unwrap();
        assert_eq!(
            (all.registry.to_string(), all.registry_from),
            ("127.0.0.1:5000".into(), Origin::CommandLine)
        );
        assert_eq!(all.repository.to_string(), "a/b");
        assert_eq!(
            settings(&[], None).unwrap().report_dir,
            Path::new("/top/target/ci")
        );
    }

    #[test]
    fn what_is_wrong_is_said_before_any_work() {
        for bad in [
            &["--repository", "upwind1647/status-api:latest"][..],
            &["--repository", "Upwind1647/status-api"],
            &["--repository", ""],
            &["--registry", "ghcr.io/upwind1647"],
            &["--engine", "nonsense"],
            &["--format", "xml"],
            &["--timeout", "soon"],
            &["--timeout", "0s"],
        ] {
            assert_eq!(settings(bad, None).unwrap_err().code as u8, 2, "{bad:?}");
        }
        for bad in ["unknown = 1", "engine = 1", "engine = \"x\"", "["] {
            assert_eq!(settings(&[], Some(bad)).unwrap_err().code as u8, 2, "{bad}");
        }
        assert!(Invocation::parse(["ci", "--event", "nonsense"]).is_err());
    }

    #[test]
    fn keep_going_wins_over_the_files_fail_fast() {
        assert!(settings(&[], Some("fail-fast = true")).unwrap().fail_fast);
        assert!(
            !settings(&["--keep-going"], Some("fail-fast = true"))
                .unwrap()
                .fail_fast
        );
    }
}
