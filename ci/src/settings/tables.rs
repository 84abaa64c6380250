//! What is shipped and how it is tried: the tables of `ci.toml` about the service, as they are written and as they are valid.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use oci_spec::distribution::Reference;
use serde::Deserialize;

use crate::model::config_file::{FILE, duration};
use crate::model::step::Step;
use crate::source::project::{Package, Project};
use common::failure::Failure;
use common::pins;

/// The package that is shipped where nothing else is said.
const PACKAGE: &str = "api";
/// nobody's in particular: no name for it exists in an image from scratch.
const USER: &str = "65532:65532";
/// What `ci` itself puts into the image's environment.
const OWN_ENV: [&str; 3] = ["APP_BUILD_TIME", "APP_COMMIT", "PORT"];

/// `[service]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceTable {
    package: Option<String>,
    binary: Option<String>,
    port: Option<u16>,
    health: Option<String>,
}

/// `[image]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageTable {
    base: Option<String>,
    libc: Option<Libc>,
    user: Option<String>,
    env: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
}

/// `[services.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingTable {
    image: String,
    port: u16,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default = "only_test")]
    steps: Vec<Step>,
}

fn only_test() -> Vec<Step> {
    vec![Step::Test]
}

/// `[toolchain]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolchainTable {
    packages: Vec<String>,
}

/// `[test]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TestTable {
    env: BTreeMap<String, String>,
}

/// `[[gate]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateTable {
    name: String,
    run: String,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// `[scan]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ScanTable {
    severity: Option<Severity>,
    unfixed: bool,
    database_age: Option<String>,
}

/// `[smoke]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SmokeTable {
    env: BTreeMap<String, String>,
    tries: Option<u32>,
    within: Option<String>,
}

/// How the binary is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Libc {
    /// With all of the C library in it: it runs in an image from scratch.
    Static,
    /// With the C library of the base image.
    Dynamic,
}

/// How bad a vulnerability is, as Trivy says it; the order counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nobody has said.
    #[default]
    #[serde(skip)]
    Unknown,
    /// `LOW`.
    Low,
    /// `MEDIUM`.
    Medium,
    /// `HIGH`.
    High,
    /// `CRITICAL`.
    Critical,
}

impl Severity {
    const NAMES: [(Self, &str); 5] = [
        (Self::Unknown, "UNKNOWN"),
        (Self::Low, "LOW"),
        (Self::Medium, "MEDIUM"),
        (Self::High, "HIGH"),
        (Self::Critical, "CRITICAL"),
    ];

    /// The severity that Trivy calls so.
    #[must_use]
    pub fn from_trivy(name: &str) -> Self {
        Self::NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map_or(Self::Unknown, |(severity, _)| *severity)
    }
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = Self::NAMES.iter().find(|(severity, _)| severity == self);
        f.pad(known.map_or("", |(_, name)| name))
    }
}

/// What the service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The package that it is built from.
    pub package: String,
    /// Its binary target.
    pub binary: String,
    /// The port that it listens on.
    pub port: u16,
    /// The path that it answers with 200 when it is well.
    pub health: String,
    /// The package's `repository`.
    pub repository: Option<String>,
}

/// What is in the image beside the binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The image below; none is `scratch`.
    pub base: Option<Reference>,
    /// How the binary is linked.
    pub libc: Libc,
    /// `uid:gid`; never root.
    pub user: String,
    /// The environment that the image sets.
    pub env: BTreeMap<String, String>,
    /// Paths among the sources, relative to the workspace, and where they go in the image.
    pub files: BTreeMap<PathBuf, PathBuf>,
}

/// A service that another one, or its tests, need: a database, a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The host name by which it is reached.
    pub name: String,
    /// Its image.
    pub image: Reference,
    /// Its port.
    pub port: u16,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// The steps that have it: `test`, `smoke`.
    pub steps: Vec<Step>,
}

/// A gate of the project's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Its name in reports.
    pub name: String,
    /// A command line for `sh`, run in the workspace's folder.
    pub run: String,
    /// The distribution's packages that it needs beside those of `[toolchain]`.
    pub packages: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
}

/// What the scan lets pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanLimits {
    /// The least severity that fails the gate.
    pub severity: Severity,
    /// Whether findings count for which there is no fix.
    pub unfixed: bool,
    /// A vulnerability database older than this is no database.
    pub database_age: Duration,
}

/// How the image is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What the container has in its environment for this trial only.
    pub env: BTreeMap<String, String>,
    /// How often its health is asked for, at the most.
    pub tries: u32,
    /// When it is asked the last time, counted from its start.
    pub within: Duration,
}

impl ServiceTable {
    /// The service among the packages of `project`.
    ///
    /// # Errors
    /// When it is not there, cannot be told from others, or cannot be asked for its health (exit 2).
    pub fn resolve(self, project: &Project) -> Result<Service, Failure> {
        let package = self.package(project)?;
        let binary = match (self.binary, &package.programs[..]) {
            (Some(named), programs) if programs.contains(&named) => named,
            (Some(named), programs) => {
                return Err(wrong(
                    "service.binary",
                    &named,
                    "it is not a binary of the package",
                )
                .hint(format!(
                    "The package {} has: {}.",
                    package.name,
                    list(programs)
                )));
            }
            (None, [only]) => only.clone(),
            (None, programs) => {
                let default = package
                    .default_run
                    .as_ref()
                    .or_else(|| programs.iter().find(|name| **name == package.name));
                default.cloned().ok_or_else(|| {
                    Failure::usage(format!(
                        "the package {} has several binaries, and none of them is said to be the service",
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
            return Err(wrong("service.health", &health, "it is not a path")
                .hint("Write a path such as /health."));
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
                    "it has no binary"
                } else {
                    "it is not in the workspace"
                };
                wrong("service.package", named, why)
                    .hint(format!("Packages with a binary: {names}."))
            });
        }
        let usual = with_programs.iter().find(|package| package.name == PACKAGE);
        match (usual, &with_programs[..]) {
            (Some(package), _) | (None, [package]) => Ok(package),
            (None, []) => Err(Failure::usage("no package of the workspace has a binary")
                .hint("There is nothing to ship without one.")),
            (None, _) => Err(Failure::usage(
                "several packages have a binary, and none of them is said to be the service",
            )
            .hint(format!("Set service.package in {FILE} to one of: {names}."))),
        }
    }
}

impl ImageTable {
    /// What it says, for a service that is put together from `sources`, the workspace's folder.
    ///
    /// # Errors
    /// When something in it is not valid, or a file is not there (exit 2).
    pub fn resolve(self, service: &Service, sources: &Path) -> Result<Contents, Failure> {
        let base = match self.base.as_deref() {
            None | Some("scratch") => None,
            Some(named) => Some(reference("image.base", named)?),
        };
        let libc = match (self.libc, &base) {
            (Some(Libc::Dynamic), None) => {
                return Err(Failure::usage(
                    "image.libc is dynamic, and there is no C library in an image from scratch",
                )
                .hint(format!(
                    "Name an image that has one in image.base, such as {}.",
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
                return Err(wrong("image.user", &user, "it is root")
                    .hint("Give the service a user of its own, such as 65532:65532."));
            }
            // A group has to be said: an image from scratch has no file to look it up in.
            [Ok(uid)] => format!("{uid}:{uid}"),
            [Ok(uid), Ok(gid)] => format!("{uid}:{gid}"),
            _ => {
                return Err(wrong("image.user", &user, "it is not a number, or two")
                    .hint("Write UID or UID:GID: names may not exist in an image."));
            }
        };
        environment("image.env", &self.env)?;
        if let Some(own) = self
            .env
            .keys()
            .find(|name| OWN_ENV.contains(&name.as_str()))
        {
            return Err(wrong("image.env", own, "ci sets it itself")
                .hint("PORT is service.port; APP_COMMIT and APP_BUILD_TIME are the commit's."));
        }
        let mut files = BTreeMap::new();
        for (from, to) in self.files {
            let inside = Path::new(&from)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            if !inside || from.is_empty() {
                return Err(
                    wrong("image.files", &from, "it is not a path in the workspace")
                        .hint("Write it relative to Cargo.toml, without `..`."),
                );
            }
            if sources.join(&from).symlink_metadata().is_err() {
                return Err(wrong("image.files", &from, "it is not among the sources")
                    .hint("It has to be committed, or at least not ignored by git."));
            }
            let target = Path::new(&to);
            let parts: Vec<_> = target.components().collect();
            let plain = matches!(parts.split_first(), Some((Component::RootDir, rest))
                if !rest.is_empty() && rest.iter().all(|part| matches!(part, Component::Normal(_))));
            if !plain {
                return Err(wrong(
                    "image.files",
                    &to,
                    "it is not an absolute path in the image",
                )
                .hint("Write the whole path, such as /etc/service.toml."));
            }
            let relative: PathBuf = parts[1..].iter().collect();
            if relative == Path::new(&service.binary) {
                return Err(wrong("image.files", &to, "the binary lies there"));
            }
            files.insert(from.into(), relative);
        }
        Ok(Contents {
            base,
            libc,
            user,
            env: self.env,
            files,
        })
    }
}

impl BackingTable {
    /// The backing service called `name`.
    ///
    /// # Errors
    /// When something is not valid (exit 2).
    pub fn resolve(self, name: String) -> Result<Backing, Failure> {
        let key = |part: &str| format!("services.{name}.{part}");
        if !is_label(&name) {
            return Err(wrong("services", &name, "it is not a host name")
                .hint("Write lower-case letters, digits and dashes."));
        }
        if let Some(step) = self
            .steps
            .iter()
            .find(|step| !step.definition().has_services)
        {
            return Err(wrong(&key("steps"), step.name(), "it has no services")
                .hint("Services are for test and smoke."));
        }
        environment(&key("env"), &self.env)?;
        Ok(Backing {
            image: reference(&key("image"), &self.image)?,
            port: port(&key("port"), self.port)?,
            env: self.env,
            steps: self.steps,
            name,
        })
    }
}

impl ToolchainTable {
    /// The distribution's packages that are installed beside the toolchain.
    ///
    /// # Errors
    /// When one cannot be a package's name (exit 2).
    pub fn resolve(self) -> Result<Vec<String>, Failure> {
        packages("toolchain.packages", self.packages)
    }
}

/// The gates of the project's own.
///
/// # Errors
/// When a name is not valid or given twice, a command is empty, or a package or a name in an environment is not valid (exit 2).
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
        if table.run.trim().is_empty() || table.run.contains('\0') {
            return Err(wrong(&format!("gate.{name}.run"), &table.run, "no command")
                .hint("Write a shell command line, such as \"cargo doc --no-deps\"."));
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

fn packages(key: &str, packages: Vec<String>) -> Result<Vec<String>, Failure> {
    let name = |name: &str| {
        name.len() > 1
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
    };
    match packages.iter().find(|package| !name(package)) {
        Some(bad) => Err(wrong(key, bad, "it is not a package's name")
            .hint("Write names of Debian packages, such as libpq-dev.")),
        None => Ok(packages),
    }
}

/// Whether this is a label as host names have it.
fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 64
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl TestTable {
    /// The environment of the tests.
    ///
    /// # Errors
    /// When a name in it is none (exit 2).
    pub fn resolve(self) -> Result<BTreeMap<String, String>, Failure> {
        environment("test.env", &self.env)?;
        Ok(self.env)
    }
}

impl ScanTable {
    /// What the scan lets pass.
    ///
    /// # Errors
    /// When the age is not a duration (exit 2).
    pub fn resolve(self) -> Result<ScanLimits, Failure> {
        Ok(ScanLimits {
            severity: self.severity.unwrap_or(Severity::High),
            unfixed: self.unfixed,
            database_age: duration(self.database_age.as_deref().unwrap_or("168h"))?,
        })
    }
}

impl SmokeTable {
    /// How the image is tried.
    ///
    /// # Errors
    /// When a limit is not valid, or a name in the environment is none (exit 2).
    pub fn resolve(self) -> Result<Trial, Failure> {
        environment("smoke.env", &self.env)?;
        let tries = self.tries.unwrap_or(20);
        if !(1..=1000).contains(&tries) {
            return Err(wrong(
                "smoke.tries",
                &tries.to_string(),
                "it is not from 1 to 1000",
            ));
        }
        Ok(Trial {
            env: self.env,
            tries,
            within: duration(self.within.as_deref().unwrap_or("20s"))?,
        })
    }
}

/// How long each step may take.
///
/// # Errors
/// When a limit is not a duration (exit 2).
pub fn limits(table: BTreeMap<Step, String>) -> Result<BTreeMap<Step, Duration>, Failure> {
    table
        .into_iter()
        .map(|(step, text)| Ok((step, duration(&text)?)))
        .collect()
}

fn port(key: &str, port: u16) -> Result<u16, Failure> {
    if port == 0 {
        return Err(wrong(key, "0", "it is not from 1 to 65535"));
    }
    Ok(port)
}

fn reference(key: &str, text: &str) -> Result<Reference, Failure> {
    let hint = "Name an image with its version, such as docker.io/library/postgres:17.5, or better with its digest too.";
    let reference: Reference = text.parse().map_err(|error| {
        wrong(key, text, "it is not an image")
            .because(error)
            .hint(hint)
    })?;
    // The parser puts `latest` where nothing is said.
    if reference.digest().is_none() && reference.tag().is_none_or(|tag| tag == "latest") {
        return Err(wrong(key, text, "it has no version, or `latest`, which is none").hint(hint));
    }
    Ok(reference)
}

fn environment(key: &str, env: &BTreeMap<String, String>) -> Result<(), Failure> {
    let name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    match env.keys().find(|key| !name(key)) {
        Some(bad) => Err(wrong(
            key,
            bad,
            "it is not the name of an environment variable",
        )),
        None => Ok(()),
    }
}

fn wrong(key: &str, value: &str, why: &str) -> Failure {
    Failure::usage(format!("{FILE}: {key} has `{value}`: {why}"))
}

fn list(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
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
    fn the_service_is_api_or_the_only_one_there_is() {
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
    fn an_image_is_static_from_scratch_and_dynamic_on_a_base() {
        assert_eq!(contents("").unwrap().libc, Libc::Static);
        let base = contents("base = \"debian:12.1\"\nuser = \"7\"").unwrap();
        assert_eq!(base.libc, Libc::Dynamic);
        assert_eq!(base.base.unwrap().whole(), "docker.io/library/debian:12.1");
        assert_eq!(base.user, "7:7");
    }

    #[test]
    fn what_an_image_cannot_have_is_said() {
        for (table, words) in [
            (
                "libc = \"dynamic\"",
                "no C library in an image from scratch",
            ),
            ("base = \"debian\"", "no version"),
            ("base = \"debian:latest\"", "`latest`"),
            ("base = \"De bian:1\"", "not an image"),
            ("user = \"0\"", "it is root"),
            ("user = \"0:5\"", "it is root"),
            ("user = \"www-data\"", "not a number"),
            ("env = { PORT = \"1\" }", "ci sets it itself"),
            ("env = { \"A B\" = \"1\" }", "not the name"),
            ("files = { nothing = \"/x\" }", "not among the sources"),
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
            ("files = { there = \"/api\" }", "the binary lies there"),
        ] {
            let failure = contents(table).unwrap_err();
            assert_eq!(failure.code as u8, 2);
            assert!(failure.message.contains(words), "{table}: {failure}");
        }
    }

    #[test]
    fn a_backing_service_is_a_host_with_an_image_by_its_version() {
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
            ("database", "image = \"postgres:17.5\"\nsteps = [\"lint\"]"),
            (
                "database",
                "image = \"postgres:17.5\"\nenv = { \"\" = \"\" }",
            ),
        ] {
            assert_eq!(of(name, more).unwrap_err().code as u8, 2, "{name} {more}");
        }
    }

    #[test]
    fn a_package_is_no_option_of_apt() {
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
