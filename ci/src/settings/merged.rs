//! What the user says: command line, environment (`LAB_CI_…`), `ci.toml`, in this order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, ValueEnum};
use serde::Deserialize;

use super::command_line::{Cli, Command, Drawing, Format, Options};
use super::tables::{
    self, Backing, BackingTable, Contents, Gate, GateTable, ImageTable, ScanLimits, ScanTable,
    Service, ServiceTable, SmokeTable, TestTable, ToolchainTable, Trial,
};
use crate::engine::choice::Choice;
use crate::image::archive::Platform;
use crate::model::config_file::{FILE, duration};
use crate::model::event::Event;
use crate::model::image_name::{Registry, Repository};
use crate::model::step::Step;
use crate::source::paths::{self, Paths};
use crate::source::project::Project;
use crate::trust::authority::{GitHub, Origin};
use common::failure::{Failure, OrFail};

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
    gate: Vec<GateTable>,
    scan: ScanTable,
    smoke: SmokeTable,
    limits: BTreeMap<Step, String>,
    paths: BTreeMap<Step, Vec<String>>,
}

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
    /// The gates of the project's own.
    pub gates: Vec<Gate>,
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

impl Settings {
    /// The distribution's packages that `step` has beside the toolchain.
    #[must_use]
    pub fn packages_of(&self, step: Step) -> Vec<&str> {
        let of_gates = self.gates.iter().filter(|_| step == Step::Custom);
        let of_gates = of_gates.flat_map(|gate| &gate.packages);
        let mut packages: Vec<_> = self.packages.iter().map(String::as_str).collect();
        for package in of_gates {
            if !packages.contains(&package.as_str()) {
                packages.push(package);
            }
        }
        packages
    }

    /// Whether this project has such a step.
    #[must_use]
    pub fn has(&self, step: Step) -> bool {
        match step {
            Step::Custom => !self.gates.is_empty(),
            Step::Test
            | Step::Fmt
            | Step::Lint
            | Step::Build
            | Step::Scan
            | Step::Smoke
            | Step::Publish => true,
        }
    }
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

    /// The same without `--format`, whose values are a run's own.
    #[must_use]
    pub fn without_format(&self) -> Self {
        let mut options = self.options.clone();
        options.format = None;
        Self {
            command: self.command.clone(),
            options,
            registry_from: self.registry_from,
        }
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
            gates: tables::gates(file.gate)?,
            scan: file.scan.resolve()?,
            smoke: file.smoke.resolve()?,
            limits: tables::limits(file.limits)?,
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
pub fn cache_dir(named: &Path) -> Result<PathBuf, Failure> {
    if named.exists() && !named.is_dir() {
        return Err(Failure::usage(format!(
            "{} is not a folder, and the caches go into one",
            named.display()
        )));
    }
    std::path::absolute(named)
        .map_err(|error| Failure::usage("--cache-dir is not a path").because(error))
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
    use crate::source::project::Package;

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
