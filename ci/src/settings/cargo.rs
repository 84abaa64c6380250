//! How test, lint and build call cargo: `[cargo]`, `[test]` and `[lint]` of `ci.toml`.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Deserialize;

use super::tables::{environment, list, packages, wrong};
use crate::model::config_file::FILE;
use crate::source::project::{Package, Project};
use common::failure::Failure;

/// The variables of a step's container that `ci` itself sets.
const OWN_ENV: [&str; 5] = [
    "BUILD_SCRIPTS",
    "CARGO_HOME",
    "CARGO_TARGET_DIR",
    "RUSTUP_TOOLCHAIN",
    "SYNC",
];

/// Cargo in test, lint and build alike: `[cargo]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CargoTable {
    /// The features to enable, as for `cargo --features`: `NAME`, or `PACKAGE/NAME`.
    features: Vec<String>,
    /// Whether all features are enabled.
    all_features: bool,
    /// Whether the default features are enabled. Default: true.
    default_features: Option<bool>,
    /// Environment variables of test, lint and build, for the compiler, build scripts and macros.
    env: BTreeMap<String, String>,
    /// The names of environment variables of `ci` that test, lint, build and gates get as secrets, such as
    /// `CARGO_REGISTRIES_ACME_TOKEN`.
    secrets: Vec<String>,
    /// The hosts of private git dependencies, each with the name of the environment variable of `ci` that holds a token for it, or
    /// `USER:PASSWORD`.
    git_credentials: BTreeMap<String, String>,
    /// Whether cargo may use the SSH agent of the user who runs `ci`.
    ssh_agent: bool,
}

/// The tests: `[test]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TestTable {
    /// Environment variables of the tests, in addition to those of `[cargo]`.
    env: BTreeMap<String, String>,
    /// Debian packages that the tests need when they run, in addition to those of `[toolchain]`.
    packages: Vec<String>,
    /// Packages of the workspace that are not tested.
    exclude: Vec<String>,
    /// The targets that are tested. Default: all that `cargo test` tests.
    targets: Option<Vec<Target>>,
    /// Tests that are skipped for a time.
    skip: Vec<SkipTable>,
}

/// A test that is skipped for a time: `[[test.skip]]`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SkipTable {
    /// The full name of the test, as cargo prints it.
    name: String,
    /// The reason, and what ends the exception.
    because: String,
    /// The day on which the test runs again, such as `2026-12-31`.
    until: String,
}

/// The lint: `[lint]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LintTable {
    /// Whether clippy checks all features, instead of those of `[cargo]`.
    all_features: bool,
    /// Packages of the workspace that clippy does not check.
    exclude: Vec<String>,
    /// The targets that clippy checks. Default: all.
    targets: Option<Vec<Target>>,
}

/// A kind of targets of cargo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Libraries.
    Lib,
    /// Binaries.
    Bins,
    /// Integration tests.
    Tests,
    /// Examples.
    Examples,
    /// Benchmarks.
    Benches,
    /// The examples in the documentation of libraries; only for tests.
    Doc,
}

/// How cargo is called in test, lint and build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cargo {
    /// The features of the workspace's packages.
    pub features: Features,
    /// The features of the service's package alone, which is built without the others.
    pub service_features: Features,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The names of the environment variables that are secrets.
    pub secrets: Vec<String>,
    /// The hosts with git credentials, each with the name of the environment variable that holds them.
    pub git_credentials: BTreeMap<String, String>,
    /// Whether cargo may use the SSH agent of the user.
    pub ssh_agent: bool,
}

/// How the tests run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tests {
    /// The environment, in addition to that of [`Cargo`].
    pub env: BTreeMap<String, String>,
    /// Debian packages that the tests need when they run.
    pub packages: Vec<String>,
    /// What is tested.
    pub selection: Selection,
    /// The tests that are skipped today.
    pub skips: Vec<Skip>,
    /// The tests that were skipped until today or an earlier day.
    pub expired: Vec<Skip>,
}

/// What clippy checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lint {
    /// Whether clippy checks all features, instead of those of [`Cargo`].
    pub all_features: bool,
    /// What is checked.
    pub selection: Selection,
}

/// A test that is skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The full name of the test.
    pub name: String,
    /// The reason.
    pub because: String,
    /// The day on which the test runs again.
    pub until: jiff::civil::Date,
}

/// The targets of one call of cargo, which tests documentation in a call of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// All that `cargo test` tests.
    All,
    /// Targets that cargo compiles before it runs them: its arguments, each after a space.
    Compiled(String),
    /// The examples in the documentation, which are compiled when they run.
    Doc,
}

impl Targets {
    /// The arguments of cargo, each after a space.
    #[must_use]
    pub fn arguments(&self) -> &str {
        match self {
            Self::All => "",
            Self::Compiled(arguments) => arguments,
            Self::Doc => " --doc",
        }
    }
}

/// A part of the workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The packages that are left out.
    pub exclude: Vec<String>,
    /// The targets that are selected; `None` selects all.
    pub targets: Option<BTreeSet<Target>>,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Lib => "lib",
            Self::Bins => "bins",
            Self::Tests => "tests",
            Self::Examples => "examples",
            Self::Benches => "benches",
            Self::Doc => "doc",
        }
    }
}

impl Selection {
    /// The arguments of cargo that select the packages, each after a space.
    #[must_use]
    pub fn packages(&self) -> String {
        let exclude = self.exclude.iter();
        exclude.map(|name| format!(" --exclude {name}")).collect()
    }

    /// The calls of cargo that together select the targets; `None` if all targets are selected.
    #[must_use]
    pub fn targets(&self) -> Option<Vec<Targets>> {
        let targets = self.targets.as_ref()?;
        let (doc, compiled): (Vec<&Target>, Vec<&Target>) =
            targets.iter().partition(|it| **it == Target::Doc);
        let compiled = compiled.into_iter();
        let compiled: String = compiled.map(|it| format!(" --{}", it.name())).collect();
        let compiled = (!compiled.is_empty()).then_some(Targets::Compiled(compiled));
        let doc = (!doc.is_empty()).then_some(Targets::Doc);
        Some(compiled.into_iter().chain(doc).collect())
    }

    /// What the selection leaves out, as keys of the table `table` with their values.
    fn narrowings(&self, table: &str) -> Vec<String> {
        let mut all = Vec::new();
        if !self.exclude.is_empty() {
            all.push(format!("{table}.exclude = {:?}", self.exclude));
        }
        if let Some(targets) = &self.targets {
            let names: Vec<_> = targets.iter().map(|it| it.name()).collect();
            all.push(format!("{table}.targets = {names:?}"));
        }
        all
    }
}

impl Tests {
    /// Everything that `ci.toml` leaves out of the tests.
    #[must_use]
    pub fn narrowings(&self) -> Vec<String> {
        let mut all = self.selection.narrowings("test");
        all.extend(self.skips.iter().map(ToString::to_string));
        all
    }
}

impl Lint {
    /// Everything that `ci.toml` leaves out of the lint.
    #[must_use]
    pub fn narrowings(&self) -> Vec<String> {
        self.selection.narrowings("lint")
    }
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            because,
            until,
        } = self;
        write!(f, "test.skip {name} until {until}: {because}")
    }
}

/// A selection of features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Features {
    /// All features.
    All,
    /// These features, with or without the default ones.
    Some {
        /// `NAME` or `PACKAGE/NAME`.
        names: Vec<String>,
        /// Whether the default features are enabled, too.
        with_default: bool,
    },
}

impl Default for Features {
    fn default() -> Self {
        Self::Some {
            names: Vec::new(),
            with_default: true,
        }
    }
}

impl Features {
    /// The arguments of cargo, each after a space.
    #[must_use]
    pub fn arguments(&self) -> String {
        match self {
            Self::All => " --all-features".to_owned(),
            Self::Some {
                names,
                with_default,
            } => {
                let default = if *with_default {
                    ""
                } else {
                    " --no-default-features"
                };
                if names.is_empty() {
                    default.to_owned()
                } else {
                    format!("{default} --features {}", names.join(","))
                }
            }
        }
    }

    /// What cargo enables in `package` with this selection: its features, and what they name (`dep:NAME`, `NAME/FEATURE`,
    /// `NAME?/FEATURE`).
    pub(crate) fn enabled(&self, package: &Package) -> BTreeSet<String> {
        let mut open = match self {
            Self::All => package.features.keys().cloned().collect(),
            Self::Some {
                names,
                with_default,
            } => {
                let own = |name: &String| match name.split_once('/') {
                    Some((of, own)) if of == package.name => own.to_owned(),
                    _ => name.clone(),
                };
                let mut open: Vec<_> = names.iter().map(own).collect();
                open.extend(with_default.then(|| "default".to_owned()));
                open
            }
        };
        let mut enabled = BTreeSet::new();
        while let Some(name) = open.pop() {
            if enabled.contains(&name) {
                continue;
            }
            open.extend(package.features.get(&name).into_iter().flatten().cloned());
            // `sqlx/postgres` enables the optional dependency sqlx, and `sqlx?/postgres` does not.
            let dependency = name.split_once('/').map(|(dependency, _)| dependency);
            let dependency = dependency.filter(|it| package.features.contains_key(*it));
            open.extend(dependency.map(ToOwned::to_owned));
            enabled.insert(name);
        }
        enabled
    }

    /// The part of the selection that a package knows.
    fn of(&self, package: &Package) -> Self {
        let Self::Some {
            names,
            with_default,
        } = self
        else {
            return Self::All;
        };
        let known = |name: &&String| match name.split_once('/') {
            Some((of, _)) => of == package.name || package.dependencies.iter().any(|it| it == of),
            None => package.features.contains_key(*name),
        };
        Self::Some {
            names: names.iter().filter(known).cloned().collect(),
            with_default: *with_default,
        }
    }
}

impl CargoTable {
    /// Validates the table for the service's `binary` in `package`.
    ///
    /// # Errors
    /// When a feature does not exist, the binary needs another one, or a variable is invalid (exit code 2).
    pub fn resolve(self, project: &Project, package: &str, binary: &str) -> Result<Cargo, Failure> {
        compiler_environment("cargo.env", &self.env)?;
        let names = self
            .secrets
            .iter()
            .map(|name| (name.clone(), String::new()));
        compiler_environment("cargo.secrets", &names.collect())?;
        if let Some(both) = self
            .secrets
            .iter()
            .find(|name| self.env.contains_key(*name))
        {
            return Err(wrong("cargo.secrets", both, "also in cargo.env")
                .hint("A secret does not belong into the repository: remove it from cargo.env."));
        }
        let names = self.git_credentials.values();
        let names = names.map(|name| (name.clone(), String::new())).collect();
        compiler_environment("cargo.git-credentials", &names)?;
        if let Some(bad) = self.git_credentials.keys().find(|host| !is_host(host)) {
            return Err(wrong("cargo.git-credentials", bad, "not a host").hint(
                "Use a host and the name of a variable: { \"git.example.com\" = \"GIT_TOKEN\" }.",
            ));
        }
        for name in &self.features {
            check_feature(project, name)?;
        }
        let with_default = self.default_features.unwrap_or(true);
        let features = if self.all_features {
            if !self.features.is_empty() || !with_default {
                return Err(Failure::usage(format!(
                    "{FILE}: cargo.all-features already enables every feature"
                ))
                .hint("Remove cargo.features and cargo.default-features, or cargo.all-features."));
            }
            Features::All
        } else {
            Features::Some {
                names: self.features,
                with_default,
            }
        };
        let service_features = match project.package(package) {
            Some(package) => {
                let own = features.of(package);
                check_required(package, binary, &own)?;
                own
            }
            None => features.clone(),
        };
        Ok(Cargo {
            features,
            service_features,
            env: self.env,
            secrets: self.secrets,
            git_credentials: self.git_credentials,
            ssh_agent: self.ssh_agent,
        })
    }
}

fn check_feature(project: &Project, name: &str) -> Result<(), Failure> {
    let wrong = |why: &str| wrong("cargo.features", name, why);
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_alphanumeric() || c == '_')
            && name
                .chars()
                .all(|c| c.is_alphanumeric() || "_-+.".contains(c))
    };
    if !name.split('/').all(is_name) || name.split('/').count() > 2 {
        return Err(wrong("not the name of a feature").hint("Use NAME, or PACKAGE/NAME."));
    }
    let (package, feature) = match name.split_once('/') {
        Some((package, feature)) => (Some(package), feature),
        None => (None, name),
    };
    // The features of a dependency are only known to cargo.
    if package.is_some_and(|name| project.package(name).is_none()) {
        return Ok(());
    }
    let packages = project
        .packages
        .iter()
        .filter(|it| package.is_none_or(|name| it.name == name));
    let mut known: BTreeSet<_> = packages.flat_map(|it| it.features.keys()).collect();
    if known.contains(&feature.to_owned()) {
        return Ok(());
    }
    known.remove(&"default".to_owned());
    Err(wrong("no package of the workspace has this feature")
        .hint(format!("Use some of: {}.", list(known))))
}

/// Cargo silently leaves out a binary whose features are not enabled, or fails in the middle of a run.
fn check_required(package: &Package, binary: &str, features: &Features) -> Result<(), Failure> {
    let missing = missing(package, binary, features);
    if missing.is_empty() {
        return Ok(());
    }
    let needed = needed_features(package, binary, features);
    let quoted: Vec<_> = needed.iter().map(|name| format!("{name:?}")).collect();
    Err(Failure::usage(format!(
        "binary {binary} of package {} requires features that are not enabled: {}",
        package.name,
        list(&missing)
    ))
    .hint(format!(
        "Set features = [{}] in the table [cargo] of {FILE}.",
        quoted.join(", ")
    )))
}

/// The features that `binary` requires and that are not enabled.
fn missing(package: &Package, binary: &str, features: &Features) -> Vec<String> {
    let enabled = features.enabled(package);
    let required = package.required_features.get(binary).into_iter().flatten();
    let missing = required.filter(|_| *features != Features::All);
    let missing = missing.filter(|name| !enabled.contains(*name));
    missing.cloned().collect()
}

/// The fewest features that enable, in addition to `features`, all that `binary` requires.
pub(crate) fn needed_features(package: &Package, binary: &str, features: &Features) -> Vec<String> {
    let mut needed = missing(package, binary, features);
    let all = needed.clone();
    for name in &all {
        let others: Vec<_> = needed.iter().filter(|it| *it != name).cloned().collect();
        let enough = Features::Some {
            names: others.clone(),
            with_default: false,
        };
        if enough.enabled(package).contains(name) {
            needed = others;
        }
    }
    needed
}

impl TestTable {
    /// Validates the table.
    ///
    /// # Errors
    /// When a variable, a package, a target or an exception is invalid (exit code 2).
    pub fn resolve(self, project: &Project, today: jiff::civil::Date) -> Result<Tests, Failure> {
        compiler_environment("test.env", &self.env)?;
        let skips: Vec<_> = self
            .skip
            .into_iter()
            .map(SkipTable::resolve)
            .collect::<Result<_, _>>()?;
        let (skips, expired) = skips.into_iter().partition(|skip| today < skip.until);
        Ok(Tests {
            env: self.env,
            packages: packages("test.packages", self.packages)?,
            selection: selection("test", project, self.exclude, self.targets)?,
            skips,
            expired,
        })
    }
}

impl LintTable {
    /// Validates the table.
    ///
    /// # Errors
    /// When a package or a target is invalid (exit code 2).
    pub fn resolve(self, project: &Project) -> Result<Lint, Failure> {
        if self.targets.iter().flatten().any(|it| *it == Target::Doc) {
            return Err(wrong("lint.targets", "doc", "only for tests"));
        }
        Ok(Lint {
            all_features: self.all_features,
            selection: selection("lint", project, self.exclude, self.targets)?,
        })
    }
}

impl SkipTable {
    fn resolve(self) -> Result<Skip, Failure> {
        if self.name.trim().is_empty() || self.name.contains('\0') {
            return Err(wrong(
                "test.skip.name",
                &self.name,
                "not the name of a test",
            ));
        }
        if self.because.trim().is_empty() {
            return Err(wrong("test.skip.because", &self.because, "no reason")
                .hint("Write why the test is skipped, and what ends the exception."));
        }
        let until = self.until.parse().map_err(|error| {
            wrong("test.skip.until", &self.until, "not a date")
                .because(error)
                .hint("Use a date such as 2026-12-31.")
        })?;
        Ok(Skip {
            name: self.name,
            because: self.because,
            until,
        })
    }
}

fn selection(
    table: &str,
    project: &Project,
    exclude: Vec<String>,
    targets: Option<Vec<Target>>,
) -> Result<Selection, Failure> {
    let names = || list(project.packages.iter().map(|package| &package.name));
    if let Some(bad) = exclude.iter().find(|name| project.package(name).is_none()) {
        let key = format!("{table}.exclude");
        return Err(wrong(&key, bad, "not a package of the workspace")
            .hint(format!("Use some of: {}.", names())));
    }
    let is_left = |name: &String| !exclude.contains(name);
    if !project.packages.is_empty() && !project.packages.iter().any(|it| is_left(&it.name)) {
        return Err(Failure::usage(format!(
            "{FILE}: {table}.exclude leaves no package"
        )));
    }
    if targets.as_ref().is_some_and(Vec::is_empty) {
        return Err(Failure::usage(format!("{FILE}: {table}.targets is empty"))
            .hint("Name a target, or remove the key to select all."));
    }
    Ok(Selection {
        exclude,
        targets: targets.map(|targets| targets.into_iter().collect()),
    })
}

/// Whether this is a host name, with an optional port.
fn is_host(text: &str) -> bool {
    reqwest::Url::parse(&format!("https://{text}")).is_ok_and(|url| {
        let rest = url.as_str().trim_start_matches("https://");
        rest.trim_end_matches('/') == text.to_lowercase()
            && url.username().is_empty()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
    })
}

/// Validates variables of a container in which cargo compiles.
fn compiler_environment(key: &str, env: &BTreeMap<String, String>) -> Result<(), Failure> {
    environment(key, env)?;
    for name in env.keys() {
        if OWN_ENV.contains(&name.as_str()) {
            return Err(wrong(key, name, "reserved variable").hint("ci sets this variable itself."));
        }
        // What is tested would not be what is built, which has flags of its own.
        if name.ends_with("RUSTFLAGS") {
            return Err(wrong(key, name, "would not apply to every step alike").hint(
                "Set build.rustflags in .cargo/config.toml of the repository, which applies to every step.",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: jiff::civil::Date = jiff::civil::date(2026, 11, 28);

    fn project() -> Project {
        let features = |list: &[(&str, &[&str])]| {
            let owned = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect();
            let pair = |(name, more): &(&str, &[&str])| ((*name).to_owned(), owned(more));
            list.iter().map(pair).collect()
        };
        let web = Package {
            name: "web".to_owned(),
            programs: vec!["web".to_owned()],
            dependencies: vec!["store".to_owned(), "sqlx".to_owned()],
            features: features(&[
                ("default", &["metrics"]),
                ("metrics", &[]),
                ("postgres", &["sql", "sqlx/postgres"]),
                ("sql", &[]),
            ]),
            required_features: [("web".to_owned(), vec!["sql".to_owned()])].into(),
            ..Package::default()
        };
        let store = Package {
            name: "store".to_owned(),
            features: features(&[("memory", &[])]),
            ..Package::default()
        };
        Project {
            packages: vec![store, web],
            ..Project::default()
        }
    }

    fn resolve(table: &str) -> Result<Cargo, Failure> {
        let table: CargoTable = toml::from_str(table).unwrap();
        table.resolve(&project(), "web", "web")
    }

    #[test]
    fn the_service_gets_the_features_that_its_package_knows() {
        for (table, workspace, service) in [
            (
                "features = [\"postgres\", \"memory\"]",
                " --features postgres,memory",
                " --features postgres",
            ),
            (
                "features = [\"web/sql\", \"store/memory\", \"sqlx/tls\"]\ndefault-features = false",
                " --no-default-features --features web/sql,store/memory,sqlx/tls",
                " --no-default-features --features web/sql,store/memory,sqlx/tls",
            ),
            ("all-features = true", " --all-features", " --all-features"),
        ] {
            let cargo = resolve(table).unwrap();
            assert_eq!(cargo.features.arguments(), workspace);
            assert_eq!(cargo.service_features.arguments(), service);
        }
        assert_eq!(Features::default().arguments(), "");
    }

    #[test]
    fn rejects_unknown_features_and_names_required_ones() {
        for (table, words) in [
            ("", "requires features that are not enabled: sql"),
            ("features = [\"metrics\"]", "not enabled: sql"),
            ("features = [\"postgress\"]", "no package of the workspace"),
            ("features = [\"store/sql\"]", "no package of the workspace"),
            ("features = [\"a b\"]", "not the name of a feature"),
            ("features = [\"--sql\"]", "not the name of a feature"),
            ("features = [\"a/b/c\"]", "not the name of a feature"),
            (
                "features = [\"sql\"]\nall-features = true",
                "already enables every feature",
            ),
            (
                "all-features = true\ndefault-features = false",
                "already enables every feature",
            ),
        ] {
            let failure = resolve(table).unwrap_err();
            assert_eq!(failure.code as u8, 2);
            assert!(failure.message.contains(words), "{table}: {failure}");
        }
        let hint = resolve("").unwrap_err().hint.unwrap();
        assert!(hint.contains("features = [\"sql\"]"), "{hint}");
    }

    #[test]
    fn the_compiler_gets_neither_flags_nor_variables_of_ci() {
        for (name, is_valid) in [
            ("DATABASE_URL", true),
            ("RUSTFLAGS", false),
            ("CARGO_BUILD_RUSTFLAGS", false),
            ("CARGO_TARGET_DIR", false),
            ("A B", false),
        ] {
            let env: BTreeMap<_, _> = [(name.to_owned(), "x".to_owned())].into();
            let test = TestTable {
                env: env.clone(),
                ..TestTable::default()
            };
            assert_eq!(test.resolve(&project(), TODAY).is_ok(), is_valid, "{name}");
            let cargo = CargoTable {
                features: vec!["sql".to_owned()],
                env,
                ..CargoTable::default()
            };
            let cargo = cargo.resolve(&project(), "web", "web");
            assert_eq!(cargo.is_ok(), is_valid, "{name}");
        }
    }

    #[test]
    fn hosts_have_neither_scheme_nor_user_nor_path() {
        for good in [
            "github.com",
            "git.acme.example:8443",
            "10.0.0.7",
            "[::1]:80",
        ] {
            assert!(is_host(good), "{good}");
        }
        for bad in [
            "https://github.com",
            "github.com/acme",
            "me@github.com",
            "",
            "a b",
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    fn tests(table: &str) -> Result<Tests, Failure> {
        let table: TestTable = toml::from_str(table).unwrap();
        table.resolve(&project(), TODAY)
    }

    #[test]
    fn a_selection_becomes_arguments_and_is_listed() {
        let skip = |until: &str| {
            format!(
                "[[skip]]\nname = \"tests::slow\"\nbecause = \"issue 7\"\nuntil = \"{until}\"\n"
            )
        };
        let narrowed = tests(&format!(
            "exclude = [\"store\"]\ntargets = [\"doc\", \"lib\", \"tests\"]\n{}",
            skip("2026-11-29")
        ))
        .unwrap();
        assert_eq!(narrowed.selection.packages(), " --exclude store");
        let calls = narrowed.selection.targets().unwrap();
        let compiled = Targets::Compiled(" --lib --tests".to_owned());
        assert_eq!(calls, [compiled, Targets::Doc]);
        assert_eq!(
            narrowed.narrowings(),
            [
                "test.exclude = [\"store\"]",
                "test.targets = [\"lib\", \"tests\", \"doc\"]",
                "test.skip tests::slow until 2026-11-29: issue 7",
            ]
        );
        let expired = tests(&skip("2026-11-28")).unwrap();
        assert_eq!((expired.skips.len(), expired.expired.len()), (0, 1));
        assert!(expired.narrowings().is_empty());
        assert_eq!(tests("").unwrap().selection.targets(), None);
        for (table, words) in [
            ("exclude = [\"stores\"]", "not a package of the workspace"),
            ("exclude = [\"store\", \"web\"]", "leaves no package"),
            ("targets = []", "test.targets is empty"),
            (&*skip("soon"), "not a date"),
            (&*skip("2026-12-01").replace("issue 7", " "), "no reason"),
        ] {
            let failure = tests(table).unwrap_err();
            assert_eq!(failure.code as u8, 2);
            assert!(failure.message.contains(words), "{table}: {failure}");
        }
        let lint: LintTable = toml::from_str("targets = [\"doc\"]").unwrap();
        assert!(lint.resolve(&project()).is_err());
    }
}
