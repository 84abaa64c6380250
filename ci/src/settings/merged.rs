//! Merges the command line, the environment (`LAB_CI_…`) and `ci.toml`, in this order of precedence.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::num::NonZeroU16;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, ValueEnum};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde_json::json;

use super::access::Access;
use super::cargo::{Cargo, CargoTable, Lint, LintTable, TestTable, Tests};
use super::command_line::{Cli, Command, Drawing, Format, Options};
use super::tables::{
    self, Backing, BackingTable, BuildTable, Contents, Gate, GateTable, ImageTable, ScanLimits,
    ScanTable, Service, ServiceTable, SmokeTable, ToolchainTable, Trial,
};
use crate::engine::choice::Choice;
use crate::image::archive::Platform;
use crate::model::config_file::{FILE, parse_duration};
use crate::model::event::Event;
use crate::model::image_name::{Registry, Repository, Tag};
use crate::model::step::Step;
use crate::model::time::today;
use crate::source::cargo_config::CargoConfig;
use crate::source::paths::{self, Paths};
use crate::source::project::Project;
use crate::source::toolchain::ToolchainFile;
use crate::trust::authority::{GitHub, Origin};
use common::failure::{Failure, OrFail};

/// The default time limit of a run on GitHub Actions. It ends the run with a report before the workflow's job is killed after 60
/// minutes.
const GITHUB_TIMEOUT: Duration = Duration::from_mins(55);
/// The default of `stuck-after`.
const STUCK_AFTER: Duration = Duration::from_mins(10);

/// The settings of `ci`, in `ci.toml` beside the workspace's `Cargo.toml`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "ci.toml")]
struct File {
    /// auto, docker, embedded or an engine's URL. Default: `auto`.
    engine: Option<String>,
    /// The registry to publish to. Default: `ghcr.io`.
    registry: Option<String>,
    /// The repository in the registry, without a tag.
    repository: Option<String>,
    /// The image's label `org.opencontainers.image.source`. Default: `repository` in the package's Cargo.toml.
    source: Option<String>,
    /// The image's platform, such as `linux/amd64`.
    platform: Option<String>,
    /// The length of the image's tag, the short SHA: from 7, the default, to 40.
    tag_length: Option<usize>,
    /// The directory for reports. Default: `target/ci`.
    report_dir: Option<PathBuf>,
    /// The output format: human, json or github.
    format: Option<String>,
    /// Whether the first failure cancels all other steps.
    fail_fast: Option<bool>,
    /// The time limit of the whole run, such as `30m`.
    timeout: Option<String>,
    /// How long a step's command may print nothing and use no CPU before it is reported as stuck. Default: `10m`.
    stuck_after: Option<String>,
    /// The number of compilers that each cargo runs at the same time. Default: the number of processors.
    jobs: Option<NonZeroU16>,
    /// The memory for cargo, such as `4GiB`. Default: that of the engine's machine, if it is this one.
    memory: Option<String>,
    /// Whether the containers get HTTP_PROXY, HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE of the environment of `ci`.
    proxy: bool,
    service: ServiceTable,
    image: ImageTable,
    /// Backing services of the tests and the smoke test, by their host name.
    services: BTreeMap<String, BackingTable>,
    toolchain: ToolchainTable,
    cargo: CargoTable,
    test: TestTable,
    lint: LintTable,
    build: BuildTable,
    /// Gates of the project itself.
    gate: Vec<GateTable>,
    scan: ScanTable,
    smoke: SmokeTable,
    /// The time limits of single steps, such as `20m`.
    #[schemars(transform = by_step)]
    limits: BTreeMap<Step, String>,
    /// The files that each step gets, as patterns relative to the top of the repository. Default: all files.
    #[schemars(transform = by_step)]
    paths: BTreeMap<Step, Vec<String>>,
}

/// Adds to the schema of a table that its keys are steps.
fn by_step(schema: &mut Schema) {
    let names: Vec<_> = Step::all().iter().map(|step| step.name()).collect();
    schema.insert("propertyNames".to_owned(), json!({ "enum": names }));
}

/// The JSON Schema of `ci.toml` for editors, formatted as in the documentation.
///
/// # Errors
/// When the schema cannot be serialized (exit code 3).
pub fn schema() -> Result<String, Failure> {
    // Editors of TOML support this draft best.
    let generator = SchemaSettings::draft07().into_generator();
    let schema = generator.into_root_schema_for::<File>();
    let text =
        serde_json::to_string_pretty(&schema).or_environment("cannot serialize the schema")?;
    Ok(text + "\n")
}

/// The settings of a run, merged and validated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The event that decides what the run is allowed to do.
    pub event: Event,
    /// The engine to use.
    pub engine: Choice,
    /// The registry to publish to.
    pub registry: Registry,
    /// Whether the registry comes from the command line: only then is the token sent to an arbitrary registry.
    pub registry_from: Origin,
    /// The image's repository, without a tag.
    pub repository: Repository,
    /// The label `org.opencontainers.image.source`: from `ci.toml` or the package, never from the git remote.
    pub source: Option<String>,
    /// The image's platform, if it is configured.
    pub platform: Option<Platform>,
    /// The length of the image's tag, the short SHA.
    pub tag_length: usize,
    /// The workspace's directory, relative to the top of the sources.
    pub folder: PathBuf,
    /// The service to build.
    pub service: Service,
    /// The image's contents besides the binary.
    pub image: Contents,
    /// The backing services of the tests and the smoke test.
    pub services: Vec<Backing>,
    /// Debian packages to install in the toolchain's container.
    pub packages: Vec<String>,
    /// How test, lint and build call cargo.
    pub cargo: Cargo,
    /// Whether the containers use the proxy and the CA certificates in the environment of `ci`.
    pub proxy: bool,
    /// What the containers may use of the environment of `ci`, once a run has read it.
    pub access: Access,
    /// How the tests run.
    pub tests: Tests,
    /// What the lint checks.
    pub lint: Lint,
    /// Whether build scripts see the SHA and the time of the commit.
    pub build_commit: bool,
    /// The packages whose build scripts use the crate `built`.
    pub built_packages: Vec<String>,
    /// The project's own gates.
    pub gates: Vec<Gate>,
    /// The build scripts of the packages, relative to the root of the sources.
    pub build_scripts: Vec<PathBuf>,
    /// The settings of cargo in the repository.
    pub cargo_config: CargoConfig,
    /// The toolchain that the repository asks for.
    pub toolchain: Option<ToolchainFile>,
    /// The thresholds of the vulnerability scan.
    pub scan: ScanLimits,
    /// The settings of the smoke test.
    pub smoke: Trial,
    /// The time limits of single steps.
    pub limits: BTreeMap<Step, Duration>,
    /// The path patterns that select the sources of a step.
    pub paths: BTreeMap<Step, Paths>,
    /// The directory that caches are restored from and saved to, absolute.
    pub cache_dir: Option<PathBuf>,
    /// The report directory, absolute.
    pub report_dir: PathBuf,
    /// The output format.
    pub format: Format,
    /// Whether the first failure cancels all other steps.
    pub fail_fast: bool,
    /// The time limit of the whole run.
    pub timeout: Option<Duration>,
    /// How long the command of a step may print nothing and use no CPU before it is reported as stuck.
    pub stuck_after: Duration,
    /// The number of compilers that each cargo runs at the same time; `None` is the number of processors.
    pub jobs: Option<NonZeroU16>,
    /// The memory for cargo, if it is configured.
    pub memory: Option<ByteSize>,
    /// The number of `-v` flags.
    pub verbose: u8,
    /// Whether only failures are shown.
    pub quiet: bool,
}

impl Settings {
    /// The Debian packages that cargo sees when it compiles in `step`. Build outputs depend on them.
    #[must_use]
    pub fn compiling_packages_of(&self, step: Step) -> Vec<&str> {
        let mut packages: Vec<_> = self.packages.iter().map(String::as_str).collect();
        // The commands of gates may compile.
        if step == Step::Custom {
            let own = self.gates.iter().flat_map(|gate| &gate.packages);
            add(&mut packages, own);
        }
        packages
    }

    /// Whether gates see the same files as `lint` and have the same packages.
    #[must_use]
    pub fn gates_work_as_lint(&self) -> bool {
        self.paths.get(&Step::Custom) == self.paths.get(&Step::Lint)
            && self.compiling_packages_of(Step::Custom) == self.compiling_packages_of(Step::Lint)
    }

    /// The Debian packages that `step` needs besides [`Self::compiling_packages_of`].
    #[must_use]
    pub fn running_packages_of(&self, step: Step) -> Vec<&str> {
        let mut packages = self.compiling_packages_of(step);
        let compiling = packages.len();
        if step == Step::Test {
            add(&mut packages, &self.tests.packages);
        }
        for service in self.services.iter().filter(|it| it.steps.contains(&step)) {
            add(&mut packages, &service.packages);
        }
        packages.split_off(compiling)
    }

    /// Reads what the containers may use of the environment of `ci`.
    ///
    /// # Errors
    /// When a variable is not set, or its value is invalid (exit code 2).
    pub fn read_access(&mut self) -> Result<(), Failure> {
        let services: Vec<_> = self.services.iter().map(|it| it.name.as_str()).collect();
        self.access = Access::read(&self.cargo, self.proxy, &services)?;
        Ok(())
    }

    /// The environment of the tests.
    #[must_use]
    pub fn test_env(&self) -> BTreeMap<String, String> {
        let mut env = self.cargo.env.clone();
        env.extend(self.tests.env.clone());
        env
    }

    /// What `ci.toml` keeps from the gates, as keys with their values.
    #[must_use]
    pub fn narrowings(&self) -> Vec<String> {
        let mut all = self.tests.narrowings();
        all.extend(self.lint.narrowings());
        all.extend(self.scan.narrowings());
        all
    }

    /// Whether this project has the step.
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

/// Adds the names that are not in the list yet.
fn add<'a>(list: &mut Vec<&'a str>, more: impl IntoIterator<Item = &'a String>) {
    for name in more {
        if !list.contains(&name.as_str()) {
            list.push(name);
        }
    }
}

/// The parsed command line.
#[derive(Debug)]
pub struct Invocation {
    /// The command to run.
    pub command: Command,
    /// The options of all commands, from the command line or the environment.
    pub options: Options,
    registry_from: Origin,
    /// The option or variable that a value comes from, by the option's field in [`Options`].
    places: BTreeMap<&'static str, String>,
}

impl Invocation {
    /// Parses the command line.
    ///
    /// # Errors
    /// When the usage is invalid, or help or the version is requested.
    pub fn parse<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let matches = without_empty_variables(Cli::command()).try_get_matches_from(arguments)?;
        let cli = Cli::from_arg_matches(&matches)?;
        let place = |id: &'static str| Some((id, place(&matches, id)?));
        Ok(Self {
            places: NAMED.iter().copied().filter_map(place).collect(),
            command: cli.command.unwrap_or(Command::Run),
            options: cli.options,
            registry_from: if comes_from(ValueSource::CommandLine, &matches, "registry") {
                Origin::CommandLine
            } else {
                Origin::Elsewhere
            },
        })
    }

    /// The same invocation without `--format`, for a command whose formats are not those of a run.
    #[must_use]
    pub fn without_format(&self) -> Self {
        let mut options = self.options.clone();
        options.format = None;
        Self {
            command: self.command.clone(),
            options,
            registry_from: self.registry_from,
            places: self.places.clone(),
        }
    }

    /// Adds to a failure which option, variable or key the invalid value comes from.
    fn at<T>(&self, id: &str, result: Result<T, Failure>) -> Result<T, Failure> {
        result.map_err(|mut failure| {
            let place = match self.places.get(id) {
                Some(place) => place.clone(),
                None => format!("{id} in {FILE}"),
            };
            failure.message = format!("{place}: {}", failure.message);
            failure
        })
    }

    /// The directory to work on: `--workspace`, or the current directory.
    ///
    /// # Errors
    /// When `--workspace` is not a directory (exit code 2), or there is no current directory (exit code 3).
    pub fn directory(&self) -> Result<PathBuf, Failure> {
        match &self.options.workspace {
            Some(named) if named.is_dir() => std::path::absolute(named)
                .or_environment(format!("cannot resolve {}", named.display())),
            Some(named) => Err(Failure::usage(format!(
                "--workspace {} is not a directory",
                named.display()
            ))),
            None => std::env::current_dir().or_environment("there is no current directory"),
        }
    }

    /// The output format of a command that is not a run, from the command line or the environment.
    ///
    /// # Errors
    /// When `--format` is unknown (exit code 2).
    pub fn format(&self, github: &GitHub) -> Result<Format, Failure> {
        format(self.options.format.clone(), github)
    }

    /// Reads the file with the settings, `--config` or `ci.toml`, in the workspace's directory `folder`.
    ///
    /// # Errors
    /// When the file is not in the workspace, cannot be read, or is named and does not exist (exit code 2).
    pub fn read_file(&self, folder: &Path) -> Result<Option<String>, Failure> {
        let named = self.options.config.as_deref();
        let path = named.unwrap_or(Path::new(FILE));
        let shown = path.display();
        if !path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(
                Failure::usage(format!("--config {shown} is not a path in the workspace"))
                    .hint("Use a path relative to Cargo.toml, without `..`."),
            );
        }
        match std::fs::read_to_string(folder.join(path)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Failure::usage(format!(
                "there is no {shown} among the sources"
            ))
            .hint("--config is a path relative to Cargo.toml. ci only reads files that are committed or not ignored.")),
            Err(error) => Err(Failure::usage(format!("cannot read {shown}")).because(error)),
        }
    }

    /// The settings of a run on `project`, which is in the directory `root`; `file` is the content of its `ci.toml`.
    ///
    /// # Errors
    /// When a setting is invalid (exit code 2).
    pub fn settings(
        &self,
        root: &Path,
        project: &Project,
        file: Option<&str>,
        github: &GitHub,
    ) -> Result<Settings, Failure> {
        let settings = self.merge(root, project, file, github);
        settings.map_err(|mut failure| {
            // The messages about keys name the file.
            if let Some(config) = &self.options.config {
                let config = config.display().to_string();
                failure.message = failure.message.replace(FILE, &config);
                failure.hint = failure.hint.map(|hint| hint.replace(FILE, &config));
            }
            failure
        })
    }

    fn merge(
        &self,
        root: &Path,
        project: &Project,
        file: Option<&str>,
        github: &GitHub,
    ) -> Result<Settings, Failure> {
        let file: File = match file {
            None => File::default(),
            Some(text) => toml::from_str(text).map_err(|error| {
                Failure::usage(format!("{FILE} is invalid"))
                    .output(error.to_string())
                    .hint("`ci init --print` shows a ci.toml with every key.")
            })?,
        };
        let service = file.service.resolve(project)?;
        let cargo = file
            .cargo
            .resolve(project, &service.package, &service.binary)?;
        let options = &self.options;
        let merge = |option: &Option<String>, file: Option<String>, default: &str| {
            option
                .clone()
                .or(file)
                .unwrap_or_else(|| default.to_owned())
        };
        let timeout = match options.timeout.clone().or(file.timeout) {
            None => github.actions.then_some(GITHUB_TIMEOUT),
            Some(text) => Some(self.at("timeout", parse_duration(&text))?),
        };
        let stuck_after = match file.stuck_after {
            None => STUCK_AFTER,
            Some(text) => self.at("stuck-after", parse_duration(&text))?,
        };
        let report_dir = options
            .report_dir
            .clone()
            .or(file.report_dir)
            .unwrap_or_else(|| "target/ci".into());
        // Relative paths: on the command line to the current directory, in the file to the workspace.
        let report_dir = if options.report_dir.is_some() {
            std::path::absolute(&report_dir)
                .map_err(|error| Failure::usage("invalid --report-dir").because(error))?
        } else {
            root.join(report_dir)
        };
        let platform = options.platform.clone().or(file.platform);
        let memory = options.memory.clone().or(file.memory);
        let services = file
            .services
            .into_iter()
            .map(|(name, table)| table.resolve(name))
            .collect::<Result<_, _>>()?;
        Ok(Settings {
            event: options.event.unwrap_or_else(|| github.event()),
            engine: self.at(
                "engine",
                merge(&options.engine, file.engine, "auto").parse(),
            )?,
            registry: self.at(
                "registry",
                merge(&options.registry, file.registry, Registry::GHCR).parse(),
            )?,
            registry_from: self.registry_from,
            repository: self.at(
                "repository",
                merge(
                    &options.repository,
                    file.repository,
                    &default_repository(&service.package),
                )
                .parse(),
            )?,
            source: file.source.or_else(|| service.repository.clone()),
            platform: self.at("platform", platform.as_deref().map(str::parse).transpose())?,
            tag_length: tag_length(file.tag_length)?,
            folder: project.folder.clone(),
            image: file.image.resolve(&service, &project.sources)?,
            service,
            services,
            packages: file.toolchain.resolve()?,
            cargo,
            proxy: options.proxy || file.proxy,
            access: Access::default(),
            tests: file.test.resolve(project, today())?,
            lint: file.lint.resolve(project)?,
            build_commit: file.build.commit,
            built_packages: project.packages_built_with("built"),
            gates: tables::gates(file.gate)?,
            build_scripts: project.build_scripts.clone(),
            cargo_config: project.cargo.clone(),
            toolchain: project.toolchain.clone(),
            scan: file.scan.resolve()?,
            smoke: file.smoke.resolve()?,
            limits: tables::limits(file.limits)?,
            paths: paths::resolve(file.paths)?,
            cache_dir: options.cache_dir.as_deref().map(cache_dir).transpose()?,
            report_dir,
            format: self.at(
                "format",
                format(options.format.clone().or(file.format), github),
            )?,
            fail_fast: !options.keep_going
                && (options.fail_fast || file.fail_fast.unwrap_or_default()),
            timeout,
            stuck_after,
            jobs: options.jobs.or(file.jobs),
            memory: self.at("memory", memory.as_deref().map(size).transpose())?,
            verbose: options.verbose,
            quiet: options.quiet,
        })
    }

    /// The format of `ci graph`.
    ///
    /// # Errors
    /// When `--format` is unknown (exit code 2).
    pub fn drawing(&self) -> Result<Drawing, Failure> {
        let Some(text) = &self.options.format else {
            return Ok(Drawing::Mermaid);
        };
        Drawing::from_str(text, false).map_err(|_| {
            Failure::usage(format!("`{text}` is not a format of `ci graph`"))
                .hint("Use mermaid, dot or json.")
        })
    }
}

fn format(configured: Option<String>, github: &GitHub) -> Result<Format, Failure> {
    match configured {
        None if github.actions => Ok(Format::Github),
        None => Ok(Format::Human),
        Some(text) => Format::from_str(&text, false).map_err(|_| {
            Failure::usage(format!("`{text}` is not a format")).hint("Use human, json or github.")
        }),
    }
}

/// The options whose values are checked after the command line has been parsed.
const NAMED: [&str; 7] = [
    "engine",
    "registry",
    "repository",
    "platform",
    "format",
    "timeout",
    "memory",
];

/// The option or variable from which an option's value comes; `None` if it comes from neither.
fn place(matches: &ArgMatches, id: &str) -> Option<String> {
    if comes_from(ValueSource::CommandLine, matches, id) {
        return Some(format!("--{id}"));
    }
    comes_from(ValueSource::EnvVariable, matches, id)
        .then(|| format!("LAB_CI_{}", id.to_uppercase()))
}

/// Removes the environment variables that are set but empty, as workflows do it, from the definition of the command line: they count
/// as not set.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|argument| match argument.get_env() {
            Some(name) if is_empty(name) => argument.env(Resettable::Reset),
            _ => argument,
        })
        .mut_subcommands(without_empty_variables)
}

fn size(text: &str) -> Result<ByteSize, Failure> {
    match text.parse::<ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size),
        _ => {
            Err(Failure::usage(format!("`{text}` is not a size")).hint("Use a size such as 4GiB."))
        }
    }
}

fn tag_length(configured: Option<usize>) -> Result<usize, Failure> {
    match configured {
        None => Ok(Tag::LENGTH),
        Some(length @ Tag::LENGTH..=40) => Ok(length),
        Some(other) => Err(Failure::usage(format!(
            "tag-length in {FILE} is {other}, not a number from {} to 40",
            Tag::LENGTH
        ))),
    }
}

/// This repository's name for its own service; other services get their package's name, so that they are not published under
/// ours by accident.
fn default_repository(package: &str) -> String {
    match package {
        "api" => "upwind1647/status-api".to_owned(),
        other => other.to_lowercase(),
    }
}

/// The absolute path of `--cache-dir`.
///
/// # Errors
/// When the path exists and is not a directory (exit code 2).
pub fn cache_dir(named: &Path) -> Result<PathBuf, Failure> {
    if named.exists() && !named.is_dir() {
        return Err(Failure::usage(format!(
            "cache directory {} is not a directory",
            named.display()
        )));
    }
    std::path::absolute(named).map_err(|error| Failure::usage("invalid --cache-dir").because(error))
}

/// The keys that `ci.toml` accepts at its top, or in the table that `head` opens, as the parser lists them in its error.
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

/// Whether the value of an option has this source, at the top or in a subcommand.
fn comes_from(source: ValueSource, matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(source)
        || matches
            .subcommand()
            .is_some_and(|(_, below)| comes_from(source, below, id))
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
    fn command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_line_takes_precedence_over_the_file() {
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
    fn a_run_on_github_ends_before_its_job_does() {
        let limit = |arguments: &[&str], actions| {
            let github = GitHub {
                actions,
                ..GitHub::default()
            };
            let project = Project {
                packages: vec![Package {
                    name: "api".to_owned(),
                    programs: vec!["api".to_owned()],
                    ..Package::default()
                }],
                ..Project::default()
            };
            let arguments = ["ci"].iter().chain(arguments).copied();
            let invocation = Invocation::parse(arguments).unwrap();
            invocation
                .settings(Path::new("/top"), &project, None, &github)
                .unwrap()
                .timeout
        };
        assert_eq!(limit(&[], false), None);
        assert_eq!(limit(&[], true), Some(Duration::from_mins(55)));
        assert_eq!(
            limit(&["--timeout", "2h"], true),
            Some(Duration::from_hours(2))
        );
    }

    #[test]
    fn rejects_invalid_settings() {
        for bad in [
            &["--repository", "upwind1647/status-api:latest"][..],
            &["--repository", "Upwind1647/status-api"],
            &["--repository", ""],
            &["--registry", "ghcr.io/upwind1647"],
            &["--engine", "nonsense"],
            &["--format", "xml"],
            &["--timeout", "soon"],
            &["--timeout", "0s"],
            &["--memory", "much"],
            &["--memory", "0"],
        ] {
            assert_eq!(settings(bad, None).unwrap_err().code as u8, 2, "{bad:?}");
        }
        for bad in ["unknown = 1", "engine = 1", "engine = \"x\"", "["] {
            assert_eq!(settings(&[], Some(bad)).unwrap_err().code as u8, 2, "{bad}");
        }
        assert!(Invocation::parse(["ci", "--event", "nonsense"]).is_err());
    }

    #[test]
    fn keep_going_takes_precedence_over_fail_fast_in_the_file() {
        assert!(settings(&[], Some("fail-fast = true")).unwrap().fail_fast);
        assert!(
            !settings(&["--keep-going"], Some("fail-fast = true"))
                .unwrap()
                .fail_fast
        );
    }
}
