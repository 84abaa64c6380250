//! The tables of `ci.toml`: as they are written (`…Table`), and validated.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use oci_spec::distribution::Reference;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::model::config_file::{FILE, parse_duration};
use crate::model::finding::Severity;
use crate::model::step::Step;
use crate::source::project::{Package, Project};
use common::failure::Failure;
use common::pins;

/// The default package, if the workspace has it.
const PACKAGE: &str = "api";
/// The `nonroot` user of distroless images, as numbers: an image from scratch has no /etc/passwd.
const USER: &str = "65532:65532";
/// The variables that `ci` itself sets in the image's environment.
const OWN_ENV: [&str; 3] = ["APP_BUILD_TIME", "APP_COMMIT", "PORT"];

/// The Debian package that forwards connections to `localhost`.
const FORWARDER: &str = "socat";

/// The service: `[service]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceTable {
    /// The package with the service's binary.
    package: Option<String>,
    /// The binary. Default: `default-run`, or the binary with the package's name.
    binary: Option<String>,
    /// The port that the service listens on. Default: 8000.
    port: Option<u16>,
    /// The path whose `GET` returns 200 if the service is healthy. Default: `/health`.
    health: Option<String>,
}

/// The image: `[image]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImageTable {
    /// The base image: `scratch`, or an image with a version tag and a digest. Default: `scratch`.
    base: Option<String>,
    /// How the binary links the C library. Default: `static` for `scratch`, else `dynamic`.
    libc: Option<Libc>,
    /// The `UID` or `UID:GID` that the service runs as; never root. Default: `65532:65532`.
    user: Option<String>,
    /// Environment variables of the image.
    env: BTreeMap<String, String>,
    /// Files and directories of the workspace, and their absolute paths in the image.
    files: BTreeMap<String, String>,
    /// Arguments of the service, such as `["serve"]`.
    args: Vec<String>,
    /// Absolute paths of directories that the service can write to, such as `/tmp`.
    writable: Vec<String>,
}

/// A backing service of the tests and the smoke test: `[services.NAME]`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackingTable {
    /// The image, with a version tag or a digest.
    image: String,
    /// The TCP port that the service listens on.
    port: u16,
    /// Environment variables of the service.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The steps that can reach the service: `test`, `lint`, `build`, `smoke`. Default: `["test"]`.
    #[serde(default = "only_test")]
    steps: Vec<Step>,
    /// A shell command that prepares the service before each of these steps, such as `sqlx migrate run`. It runs in the workspace, in
    /// the toolchain's container, with the environment of the step.
    setup: Option<String>,
    /// Debian packages that `setup` needs.
    #[serde(default)]
    packages: Vec<String>,
    /// Whether test, lint and build can also reach the service as `localhost`.
    #[serde(default)]
    localhost: bool,
}

fn only_test() -> Vec<Step> {
    vec![Step::Test]
}

/// The toolchain's container: `[toolchain]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ToolchainTable {
    /// Debian packages that are required to compile or test.
    packages: Vec<String>,
}

/// What is built: `[build]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BuildTable {
    /// Whether build scripts see the SHA and the time of the commit. Each commit then compiles the workspace anew.
    pub commit: bool,
}

/// A gate of the project itself: `[[gate]]`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GateTable {
    /// The name of the gate in reports.
    name: String,
    /// The shell command, run in the workspace.
    run: String,
    /// Debian packages that the command needs.
    #[serde(default)]
    packages: Vec<String>,
    /// Environment variables of the command.
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// The vulnerability scan: `[scan]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ScanTable {
    /// The lowest severity that fails the scan. Default: `high`.
    severity: Option<Severity>,
    /// Whether vulnerabilities without a fixed version fail the scan too.
    unfixed: bool,
    /// The maximum age of the vulnerability database, such as `168h`, the default.
    database_age: Option<String>,
}

/// The smoke test: `[smoke]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SmokeTable {
    /// Environment variables of the smoke test, in addition to the image's.
    env: BTreeMap<String, String>,
    /// The number of health requests, from 1 to 1000. Default: 20.
    tries: Option<u32>,
    /// The time until the last health request. Default: `20s`.
    within: Option<String>,
    /// What the service must do to pass. Default: `http`.
    check: Check,
    /// The status codes with which the health request passes. Default: `[200]`.
    statuses: Option<Vec<u16>>,
    /// Arguments with which the image runs to its end before the service starts, such as `["migrate"]`.
    setup: Option<Vec<String>>,
}

/// What a service must do to pass the smoke test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// Answer the health request.
    #[default]
    Http,
    /// Accept a connection on its port and keep it open.
    Tcp,
}

/// How the binary links the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Libc {
    /// Statically, so that the binary runs in an image from scratch.
    Static,
    /// Dynamically, against the C library of the base image.
    Dynamic,
}

/// The service that is built, tested and published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The Cargo package with the binary.
    pub package: String,
    /// The name of the binary target.
    pub binary: String,
    /// The port that the service listens on.
    pub port: u16,
    /// The path of the health endpoint, which answers 200 if the service is healthy.
    pub health: String,
    /// `repository` in the package's Cargo.toml.
    pub repository: Option<String>,
}

/// The user of a service; never root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The UID.
    pub uid: u32,
    /// The GID.
    pub gid: u32,
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// The image's contents besides the binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The base image; `None` is `scratch`.
    pub base: Option<Reference>,
    /// How the binary links the C library.
    pub libc: Libc,
    /// The user that the service runs as.
    pub user: User,
    /// The environment variables that the image sets.
    pub env: BTreeMap<String, String>,
    /// Paths relative to the workspace, and their paths relative to the image's root.
    pub files: BTreeMap<PathBuf, PathBuf>,
    /// The arguments of the service.
    pub args: Vec<String>,
    /// The directories that the service can write to, relative to the image's root.
    pub writable: BTreeSet<PathBuf>,
}

/// A backing service, such as a database or a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The service's host name.
    pub name: String,
    /// The image that is started.
    pub image: Reference,
    /// The TCP port that the service listens on.
    pub port: u16,
    /// The environment of the service's container.
    pub env: BTreeMap<String, String>,
    /// The steps that can reach the service.
    pub steps: Vec<Step>,
    /// A command line for `sh` that prepares the service before each step, run in the workspace's directory.
    pub setup: Option<String>,
    /// Debian packages that are needed beside the service, for its setup and for `localhost`.
    pub packages: Vec<String>,
    /// Whether the service can also be reached as `localhost`.
    pub localhost: bool,
}

/// One of the project's own gates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The gate's name in reports.
    pub name: String,
    /// A command line for `sh`, run in the workspace's directory.
    pub run: String,
    /// Debian packages that the command needs in addition to those of `[toolchain]`.
    pub packages: Vec<String>,
    /// The environment of the command.
    pub env: BTreeMap<String, String>,
}

/// The thresholds of the vulnerability scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanLimits {
    /// The lowest severity that fails the gate.
    pub severity: Severity,
    /// Whether vulnerabilities without a fixed version fail the gate too.
    pub unfixed: bool,
    /// The maximum age of the vulnerability database.
    pub database_age: Duration,
}

/// The settings of the smoke test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Environment variables of the container, in addition to the image's.
    pub env: BTreeMap<String, String>,
    /// The maximum number of health requests.
    pub tries: u32,
    /// The time of the last request, counted from the container's start.
    pub within: Duration,
    /// What the service must do to pass.
    pub check: Check,
    /// The status codes with which the health request passes.
    pub statuses: BTreeSet<u16>,
    /// The arguments with which the image runs to its end before the service starts.
    pub setup: Option<Vec<String>>,
}

impl ScanLimits {
    /// What the scan accepts although it does not by default.
    #[must_use]
    pub fn narrowings(&self) -> Vec<String> {
        let is_narrow = self.severity > Severity::High;
        let text = || {
            format!(
                "scan.severity = {:?}",
                self.severity.to_string().to_lowercase()
            )
        };
        is_narrow.then(text).into_iter().collect()
    }
}

impl Trial {
    /// The status codes with which the health request passes, in words.
    #[must_use]
    pub fn statuses(&self) -> String {
        let codes: Vec<_> = self.statuses.iter().map(ToString::to_string).collect();
        codes.join(" or ")
    }
}

impl ServiceTable {
    /// Finds the service among the packages of `project`.
    ///
    /// # Errors
    /// When the service does not exist or is ambiguous, or its port or health path is invalid (exit code 2).
    pub fn resolve(self, project: &Project) -> Result<Service, Failure> {
        let package = self.package(project)?;
        let binary = match (self.binary, &package.programs[..]) {
            (Some(named), programs) if programs.contains(&named) => named,
            (Some(named), programs) => {
                return Err(
                    wrong("service.binary", &named, "not a binary of the package").hint(format!(
                        "Use one of the binaries of package {}: {}.",
                        package.name,
                        list(programs)
                    )),
                );
            }
            (None, [only]) => only.clone(),
            (None, programs) => {
                let default = package
                    .default_run
                    .as_ref()
                    .or_else(|| programs.iter().find(|name| **name == package.name));
                default.cloned().ok_or_else(|| {
                    Failure::usage(format!(
                        "package {} has several binaries; set service.binary",
                        package.name
                    ))
                    .hint(format!(
                        "Set service.binary in {FILE} to one of: {}.",
                        list(programs)
                    ))
                })?
            }
        };
        let health = self.health.unwrap_or_else(|| "/health".to_owned());
        if !health.starts_with('/')
            || health.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#')
        {
            return Err(wrong("service.health", &health, "not a path")
                .hint("Use an absolute path such as /health."));
        }
        Ok(Service {
            package: package.name.clone(),
            binary,
            port: port("service.port", self.port.unwrap_or(8000))?,
            health,
            repository: package.repository.clone(),
        })
    }

    fn package<'a>(&self, project: &'a Project) -> Result<&'a Package, Failure> {
        let with_programs: Vec<_> = project
            .packages
            .iter()
            .filter(|package| !package.programs.is_empty())
            .collect();
        let names = list(with_programs.iter().map(|package| &package.name));
        if let Some(named) = &self.package {
            let found = with_programs.iter().find(|package| package.name == *named);
            return found.copied().ok_or_else(|| {
                let why = if project.package(named).is_some() {
                    "package has no binary"
                } else {
                    "package is not in the workspace"
                };
                wrong("service.package", named, why)
                    .hint(format!("Use one of the packages with a binary: {names}."))
            });
        }
        let usual = with_programs.iter().find(|package| package.name == PACKAGE);
        match (usual, &with_programs[..]) {
            (Some(package), _) | (None, [package]) => Ok(package),
            (None, []) => Err(Failure::usage("no package of the workspace has a binary")
                .hint("Add a binary target to the service's package.")),
            (None, _) => Err(
                Failure::usage("several packages have binaries; set service.package")
                    .hint(format!("Set service.package in {FILE} to one of: {names}.")),
            ),
        }
    }
}

impl ImageTable {
    /// Validates the table for `service`; `sources` is the workspace's directory.
    ///
    /// # Errors
    /// When a value is invalid, or a file does not exist (exit code 2).
    pub fn resolve(self, service: &Service, sources: &Path) -> Result<Contents, Failure> {
        let base = match self.base.as_deref() {
            None | Some("scratch") => None,
            Some(named) => Some(reference("image.base", named)?),
        };
        let libc = match (self.libc, &base) {
            (Some(Libc::Dynamic), None) => {
                return Err(Failure::usage(
                    "image.libc is `dynamic`, but an image from scratch has no C library",
                )
                .hint(format!(
                    "Set image.base to an image with a C library, such as {}.",
                    pins::BASE_IMAGE
                )));
            }
            (Some(libc), _) => libc,
            (None, None) => Libc::Static,
            (None, Some(_)) => Libc::Dynamic,
        };
        let user = self.user.unwrap_or_else(|| USER.to_owned());
        let numbers: Vec<_> = user.split(':').map(str::parse::<u32>).collect();
        let user = match &numbers[..] {
            [Ok(0), ..] => {
                return Err(wrong("image.user", &user, "must not be root")
                    .hint("Use an unprivileged user, such as 65532:65532."));
            }
            // Without a group a runtime looks it up in /etc/passwd, which an image from scratch does not have.
            [Ok(uid)] => User {
                uid: *uid,
                gid: *uid,
            },
            [Ok(uid), Ok(gid)] => User {
                uid: *uid,
                gid: *gid,
            },
            _ => {
                return Err(wrong("image.user", &user, "not a numeric UID or UID:GID")
                    .hint("Use numbers: the image may not define user names."));
            }
        };
        environment("image.env", &self.env)?;
        if let Some(own) = self
            .env
            .keys()
            .find(|name| OWN_ENV.contains(&name.as_str()))
        {
            return Err(wrong("image.env", own, "reserved variable").hint(
                "Remove it. PORT is set from service.port, APP_COMMIT and APP_BUILD_TIME from the commit.",
            ));
        }
        let mut files = BTreeMap::new();
        for (from, to) in self.files {
            let inside = Path::new(&from)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            if !inside || from.is_empty() {
                return Err(wrong("image.files", &from, "not a path in the workspace")
                    .hint("Use a path relative to Cargo.toml, without `..`."));
            }
            if sources.join(&from).symlink_metadata().is_err() {
                return Err(wrong("image.files", &from, "no such file in the sources")
                    .hint("Create the file; git must not ignore it."));
            }
            let relative = path_in_image("image.files", &to, "/etc/service.toml", service)?;
            files.insert(from.into(), relative);
        }
        let writable = self.writable.iter();
        let writable: BTreeSet<_> = writable
            .map(|path| path_in_image("image.writable", path, "/tmp", service))
            .collect::<Result<_, _>>()?;
        if let Some(path) = files.values().find(|it| writable.contains(*it)) {
            let path = Path::new("/").join(path).display().to_string();
            return Err(wrong("image.writable", &path, "also in image.files")
                .hint("Add files to a directory below it, or none."));
        }
        if let Some(bad) = self.args.iter().find(|it| it.contains('\0')) {
            return Err(wrong("image.args", bad, "contains a NUL character"));
        }
        Ok(Contents {
            base,
            libc,
            user,
            env: self.env,
            files,
            args: self.args,
            writable,
        })
    }
}

/// An absolute path in the image, relative to the image's root.
fn path_in_image(
    key: &str,
    path: &str,
    example: &str,
    service: &Service,
) -> Result<PathBuf, Failure> {
    let parts: Vec<_> = Path::new(path).components().collect();
    let plain = matches!(parts.split_first(), Some((Component::RootDir, rest))
        if !rest.is_empty() && rest.iter().all(|part| matches!(part, Component::Normal(_))));
    if !plain {
        return Err(wrong(key, path, "not an absolute path in the image")
            .hint(format!("Use an absolute path, such as {example}.")));
    }
    let relative: PathBuf = parts[1..].iter().collect();
    if relative == Path::new(&service.binary) {
        return Err(wrong(key, path, "conflicts with the binary"));
    }
    Ok(relative)
}

impl BackingTable {
    /// Validates the table of the backing service called `name`.
    ///
    /// # Errors
    /// When a value is invalid (exit code 2).
    pub fn resolve(self, name: String) -> Result<Backing, Failure> {
        let key = |part: &str| format!("services.{name}.{part}");
        if !is_label(&name) {
            return Err(wrong("services", &name, "not a valid host name")
                .hint("Use lower-case letters, digits and dashes."));
        }
        if let Some(step) = self
            .steps
            .iter()
            .find(|step| !step.definition().has_services)
        {
            return Err(wrong(
                &key("steps"),
                step.name(),
                "step cannot use backing services",
            )
            .hint("Use test, lint, build or smoke."));
        }
        environment(&key("env"), &self.env)?;
        let mut packages = packages(&key("packages"), self.packages)?;
        if self.localhost {
            packages.push(FORWARDER.to_owned());
        }
        if let Some(setup) = self.setup.as_ref().filter(|it| is_no_command(it)) {
            return Err(wrong(&key("setup"), setup, "no command")
                .hint("Set a shell command line, such as \"sqlx migrate run\"."));
        }
        Ok(Backing {
            setup: self.setup,
            packages,
            localhost: self.localhost,
            image: reference(&key("image"), &self.image)?,
            port: port(&key("port"), self.port)?,
            env: self.env,
            steps: self.steps,
            name,
        })
    }
}

impl ToolchainTable {
    /// The Debian packages to install in the toolchain's container.
    ///
    /// # Errors
    /// When a package name is invalid (exit code 2).
    pub fn resolve(self) -> Result<Vec<String>, Failure> {
        packages("toolchain.packages", self.packages)
    }
}

/// Validates the project's own gates.
///
/// # Errors
/// When a name is invalid or a duplicate, a command is empty, or the name of a package or variable is invalid (exit code 2).
pub fn gates(tables: Vec<GateTable>) -> Result<Vec<Gate>, Failure> {
    let mut gates: Vec<Gate> = Vec::new();
    for table in tables {
        let name = table.name;
        if !is_label(&name) {
            return Err(wrong("gate.name", &name, "not a valid name")
                .hint("Use lower-case letters, digits and dashes."));
        }
        if gates.iter().any(|other| other.name == name) {
            return Err(wrong("gate.name", &name, "duplicate name"));
        }
        if is_no_command(&table.run) {
            return Err(wrong(&format!("gate.{name}.run"), &table.run, "no command")
                .hint("Set a shell command line, such as \"cargo doc --no-deps\"."));
        }
        environment(&format!("gate.{name}.env"), &table.env)?;
        gates.push(Gate {
            run: table.run,
            packages: packages(&format!("gate.{name}.packages"), table.packages)?,
            env: table.env,
            name,
        });
    }
    Ok(gates)
}

fn is_no_command(text: &str) -> bool {
    text.trim().is_empty() || text.contains('\0')
}

pub(super) fn packages(key: &str, packages: Vec<String>) -> Result<Vec<String>, Failure> {
    let name = |name: &str| {
        name.len() > 1
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
    };
    match packages.iter().find(|package| !name(package)) {
        Some(bad) => Err(wrong(key, bad, "not a valid package name")
            .hint("Use names of Debian packages, such as libpq-dev.")),
        None => Ok(packages),
    }
}

/// Whether `name` is a label of a host name, as RFC 1123 defines it, in lower case.
fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 64
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl ScanTable {
    /// The thresholds of the scan.
    ///
    /// # Errors
    /// When the age is not a duration (exit code 2).
    pub fn resolve(self) -> Result<ScanLimits, Failure> {
        Ok(ScanLimits {
            severity: self.severity.unwrap_or(Severity::High),
            unfixed: self.unfixed,
            database_age: parse_duration(self.database_age.as_deref().unwrap_or("168h"))?,
        })
    }
}

impl SmokeTable {
    /// The settings of the smoke test.
    ///
    /// # Errors
    /// When a limit or the name of a variable is invalid (exit code 2).
    pub fn resolve(self) -> Result<Trial, Failure> {
        environment("smoke.env", &self.env)?;
        let tries = self.tries.unwrap_or(20);
        if !(1..=1000).contains(&tries) {
            return Err(wrong(
                "smoke.tries",
                &tries.to_string(),
                "must be from 1 to 1000",
            ));
        }
        if self.check == Check::Tcp && self.statuses.is_some() {
            return Err(Failure::usage(format!(
                "{FILE}: smoke.statuses has no meaning with smoke.check = \"tcp\""
            ))
            .hint("Remove one of the two."));
        }
        let statuses = self.statuses.unwrap_or_else(|| vec![200]);
        let is_status = |status: &u16| (100..600).contains(status);
        if statuses.is_empty() || !statuses.iter().all(is_status) {
            let shown = format!("{statuses:?}");
            return Err(
                wrong("smoke.statuses", &shown, "must be status codes of HTTP")
                    .hint("Use a list of numbers from 100 to 599, such as [200, 401]."),
            );
        }
        Ok(Trial {
            env: self.env,
            tries,
            within: parse_duration(self.within.as_deref().unwrap_or("20s"))?,
            check: self.check,
            statuses: statuses.into_iter().collect(),
            setup: self.setup,
        })
    }
}

/// The time limits of single steps.
///
/// # Errors
/// When a limit is not a duration (exit code 2).
pub fn limits(table: BTreeMap<Step, String>) -> Result<BTreeMap<Step, Duration>, Failure> {
    table
        .into_iter()
        .map(|(step, text)| Ok((step, parse_duration(&text)?)))
        .collect()
}

fn port(key: &str, port: u16) -> Result<u16, Failure> {
    if port == 0 {
        return Err(wrong(key, "0", "must be from 1 to 65535"));
    }
    Ok(port)
}

fn reference(key: &str, text: &str) -> Result<Reference, Failure> {
    let hint = "Use an image with a version tag, such as docker.io/library/postgres:17.5; a digest in addition is better.";
    let reference: Reference = text.parse().map_err(|error| {
        wrong(key, text, "not an image reference")
            .because(error)
            .hint(hint)
    })?;
    // The parser adds `latest` to a reference without a tag.
    if reference.digest().is_none() && reference.tag().is_none_or(|tag| tag == "latest") {
        return Err(wrong(
            key,
            text,
            "must have a version tag or a digest, not `latest`",
        )
        .hint(hint));
    }
    Ok(reference)
}

pub(super) fn environment(key: &str, env: &BTreeMap<String, String>) -> Result<(), Failure> {
    let name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    match env.keys().find(|key| !name(key)) {
        Some(bad) => Err(wrong(key, bad, "not the name of an environment variable")),
        None => Ok(()),
    }
}

pub(super) fn wrong(key: &str, value: &str, why: &str) -> Failure {
    Failure::usage(format!("{FILE}: invalid {key} `{value}`: {why}"))
}

pub(super) fn list(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let names: Vec<String> = names
        .into_iter()
        .map(|name| name.as_ref().to_owned())
        .collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(packages: &[(&str, &[&str])]) -> Project {
        let package = |(name, programs): &(&str, &[&str])| Package {
            name: (*name).to_owned(),
            programs: programs.iter().map(|name| (*name).to_owned()).collect(),
            ..Package::default()
        };
        Project {
            packages: packages.iter().map(package).collect(),
            ..Project::default()
        }
    }

    fn service(packages: &[(&str, &[&str])], table: &str) -> Result<Service, Failure> {
        toml::from_str::<ServiceTable>(table)
            .unwrap()
            .resolve(&project(packages))
    }

    #[test]
    fn chooses_the_package_api_or_the_only_one() {
        let of = |packages: &[(&str, &[&str])], table: &str| {
            let service = service(packages, table).unwrap();
            format!("{}/{}", service.package, service.binary)
        };
        assert_eq!(of(&[("api", &["api"]), ("ci", &["ci"])], ""), "api/api");
        assert_eq!(of(&[("lib", &[]), ("web", &["serve"])], ""), "web/serve");
        assert_eq!(of(&[("web", &["migrate", "web"])], ""), "web/web");
        let both: &[(&str, &[&str])] = &[("web", &["a", "b"]), ("x", &["x"])];
        assert_eq!(of(both, "package = \"web\"\nbinary = \"b\""), "web/b");
        for (table, words) in [
            ("", "several packages"),
            ("package = \"web\"", "several binaries"),
            ("package = \"no\"", "not in the workspace"),
            ("package = \"web\"\nbinary = \"c\"", "not a binary"),
            ("package = \"x\"\nport = 0", "1 to 65535"),
            ("package = \"x\"\nhealth = \"well\"", "not a path"),
        ] {
            let failure = service(both, table).unwrap_err();
            assert_eq!(failure.code as u8, 2);
            assert!(failure.message.contains(words), "{table}: {failure}");
        }
        assert!(service(&[("lib", &[])], "").is_err());
    }

    fn contents(table: &str) -> Result<Contents, Failure> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("there"), "").unwrap();
        let service = service(&[("api", &["api"])], "").unwrap();
        toml::from_str::<ImageTable>(table)
            .unwrap()
            .resolve(&service, folder.path())
    }

    #[test]
    fn links_statically_from_scratch_and_dynamically_on_a_base_image() {
        assert_eq!(contents("").unwrap().libc, Libc::Static);
        let base = contents("base = \"debian:12.1\"\nuser = \"7\"").unwrap();
        assert_eq!(base.libc, Libc::Dynamic);
        assert_eq!(base.base.unwrap().whole(), "docker.io/library/debian:12.1");
        assert_eq!(base.user.to_string(), "7:7");
    }

    #[test]
    fn rejects_invalid_image_settings() {
        for (table, words) in [
            (
                "libc = \"dynamic\"",
                "an image from scratch has no C library",
            ),
            ("base = \"debian\"", "must have a version tag"),
            ("base = \"debian:latest\"", "not `latest`"),
            ("base = \"De bian:1\"", "not an image"),
            ("user = \"0\"", "must not be root"),
            ("user = \"0:5\"", "must not be root"),
            ("user = \"www-data\"", "not a numeric"),
            ("env = { PORT = \"1\" }", "reserved variable"),
            ("env = { \"A B\" = \"1\" }", "not the name"),
            (
                "files = { nothing = \"/x\" }",
                "no such file in the sources",
            ),
            (
                "files = { \"../there\" = \"/x\" }",
                "not a path in the workspace",
            ),
            (
                "files = { \"/there\" = \"/x\" }",
                "not a path in the workspace",
            ),
            ("files = { there = \"x\" }", "not an absolute path"),
            ("files = { there = \"/\" }", "not an absolute path"),
            ("files = { there = \"/a/../b\" }", "not an absolute path"),
            ("files = { there = \"/api\" }", "conflicts with the binary"),
        ] {
            let failure = contents(table).unwrap_err();
            assert_eq!(failure.code as u8, 2);
            assert!(failure.message.contains(words), "{table}: {failure}");
        }
    }

    #[test]
    fn a_backing_service_needs_a_host_name_and_an_image_with_a_version() {
        let of = |name: &str, more: &str| {
            toml::from_str::<BackingTable>(&format!("port = 5432\n{more}"))
                .unwrap()
                .resolve(name.to_owned())
        };
        let database = of("database", "image = \"postgres:17.5\"").unwrap();
        assert_eq!(database.steps, [Step::Test]);
        for (name, more) in [
            ("Data base", "image = \"postgres:17.5\""),
            ("database", "image = \"postgres\""),
            ("database", "image = \"postgres:17.5\"\nsteps = [\"scan\"]"),
            (
                "database",
                "image = \"postgres:17.5\"\nenv = { \"\" = \"\" }",
            ),
        ] {
            assert_eq!(of(name, more).unwrap_err().code as u8, 2, "{name} {more}");
        }
    }

    #[test]
    fn rejects_package_names_that_apt_reads_as_options() {
        let of = |name: &str| {
            ToolchainTable {
                packages: vec![name.to_owned()],
            }
            .resolve()
        };
        assert!(of("libpq-dev").is_ok() && of("g++").is_ok());
        for bad in [
            "",
            "-y",
            "--allow-unauthenticated",
            "a b",
            "a;b",
            "../x",
            "A",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
