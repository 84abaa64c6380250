//! `ci init`: writes `ci.toml` and the workflow for the current workspace.

mod databases;
mod needs;
mod sources;
mod workflow;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use self::databases::Databases;
use self::needs::Needs;
use self::workflow::{HOME, Installed};
use crate::model::config_file::FILE;
use crate::model::step::Step;
use crate::report::{self, Reporter};
use crate::settings::Invocation;
use crate::settings::cargo::{Features, needed_features};
use crate::source::checkout::Checkout;
use crate::source::git::git_text;
use crate::source::project::{Package, Project};
use crate::source::snapshot::Place;
use crate::source::submodules;
use crate::trust::authority::GitHub;
use common::failure::{ExitCode, Failure, OrFail};
use common::pins;
use common::progress::Silent;

const TEMPLATE: &str = include_str!("ci.toml");
const WORKFLOW_PATH: &str = ".github/workflows/docker-builder.yml";
/// A package that depends on one of these is probably a service.
const FRAMEWORKS: [&str; 10] = [
    "actix-web",
    "axum",
    "hyper",
    "poem",
    "rocket",
    "salvo",
    "tide",
    "tonic",
    "trillium",
    "warp",
];
/// Crates that need something in the image.
const REQUIREMENTS: [(&str, &str); 6] = [
    ("openssl-sys", "OpenSSL"),
    ("native-tls", "OpenSSL"),
    ("rustls-native-certs", "CA certificates"),
    ("rustls-platform-verifier", "CA certificates"),
    ("pq-sys", "libpq"),
    ("mysqlclient-sys", "libmysqlclient"),
];

/// Writes `ci.toml` and the workflow unless they exist, and reports what it found. With `print`, only prints `ci.toml`.
///
/// # Errors
/// When there is no workspace, or no package has a binary (exit code 2); when a file cannot be written (exit code 3).
pub(super) fn run(
    invocation: &Invocation,
    print: bool,
    reporter: &Reporter,
) -> Result<ExitCode, Failure> {
    let directory = invocation.directory()?;
    let top = top(&directory);
    let project = Project::find(
        &top,
        &crate::source::project::path_below_root(&top, &directory)?,
    )?;
    let mut found = Found::examine(&top, &project)?;
    if print {
        report::data(&found.settings());
        return Ok(ExitCode::Success);
    }
    for line in &found.facts {
        reporter.header(&format!("found    {line}"));
    }
    let branch = default_branch(&top);
    reporter.header(&format!(
        "found    branch {branch}: a push to it publishes on GitHub"
    ));
    let installed = Installed::this();
    if let Some(task) = installed.task() {
        found.add_task(task);
    }
    let workflow = top.join(WORKFLOW_PATH);
    for (path, text) in [
        (project.sources.join(FILE), found.settings()),
        (
            workflow,
            workflow::text(&project, &branch, &found.needs, &installed),
        ),
    ] {
        let name = path
            .strip_prefix(&top)
            .unwrap_or(&path)
            .display()
            .to_string();
        if write_new(&path, &text).or_environment(format!("cannot write {name}"))? {
            reporter.header(&format!("wrote    {name}"));
        } else {
            reporter.header(&format!("kept     {name}, which already exists"));
        }
    }
    if let Err(failure) = check(invocation, &directory, &project) {
        found.add_task(failure.to_string());
        if let Some(hint) = failure.hint {
            found.add_task(hint);
        }
    }
    for line in &found.to_do {
        reporter.header(&format!("to do    {line}"));
    }
    reporter.header("then     commit these files and run ci");
    Ok(ExitCode::Success)
}

/// Checks what a run of all steps would check before it uses an engine, apart from the permission to publish.
fn check(invocation: &Invocation, directory: &Path, project: &Project) -> Result<(), Failure> {
    let checkout = Checkout::discover(directory)?;
    let snapshot = checkout.snapshot(Place::Temporary, &Silent)?;
    let file = std::fs::read_to_string(project.sources.join(FILE))
        .or_environment(format!("cannot read {FILE}"))?;
    let settings = invocation.settings(
        &project.sources,
        project,
        Some(&file),
        &GitHub::from_env(invocation.options.release_branch.as_deref()),
    )?;
    let steps: Vec<_> = Step::gates().filter(|step| settings.has(*step)).collect();
    submodules::require(snapshot.missing(), &steps, &settings.paths)
}

/// The top of the working tree, or the outermost package if there is no git repository.
fn top(directory: &Path) -> PathBuf {
    let has = |name: &'static str| move |folder: &&Path| folder.join(name).exists();
    directory
        .ancestors()
        .find(has(".git"))
        .or_else(|| directory.ancestors().filter(has("Cargo.toml")).last())
        .unwrap_or(directory)
        .to_owned()
}

/// Writes a file unless it exists; returns whether the file was written.
fn write_new(path: &Path, text: &str) -> std::io::Result<bool> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => file.write_all(text.as_bytes()).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// The findings about a workspace.
#[derive(Debug, Default)]
struct Found {
    package: String,
    binary: String,
    repository: String,
    source: Option<String>,
    needs_base: bool,
    needs: Needs,
    /// The features for `cargo.features`.
    features: Vec<String>,
    databases: Databases,
    facts: Vec<String>,
    to_do: Vec<String>,
}

impl Found {
    fn examine(top: &Path, project: &Project) -> Result<Self, Failure> {
        let mut found = Self::default();
        let folder = match project.folder.to_str() {
            None | Some("") => String::new(),
            Some(folder) => format!(" in {folder}"),
        };
        found.report(format!(
            "a Cargo workspace{folder} with {} packages",
            project.packages.len()
        ));
        let package = found.service(project)?;
        found.package.clone_from(&package.name);
        found.binary = package
            .default_run
            .as_ref()
            .or_else(|| package.programs.iter().find(|name| **name == package.name))
            .or_else(|| package.programs.first())
            .cloned()
            .unwrap_or_default();
        if package.programs.len() > 1 {
            found.add_task(format!(
                "check service.binary: {} was chosen; the binaries of package {} are {}",
                found.binary,
                package.name,
                package.programs.join(", ")
            ));
        }
        found.report(format!(
            "service: binary {} of package {}",
            found.binary, found.package
        ));
        found.name(top, package);
        found.enable(project, package);
        found.needs = Needs::examine(top, project)?;
        found.dependencies();
        found.databases(project);
        found.add_task(format!(
            "check service.port and service.health in {FILE}: the smoke test sends GET /health to port 8000 of {}",
            found.binary
        ));
        Ok(found)
    }

    fn report(&mut self, what: String) {
        self.facts.push(what);
    }

    fn add_task(&mut self, what: String) {
        self.to_do.push(what);
    }

    /// The package that is most likely the service.
    fn service<'a>(&mut self, project: &'a Project) -> Result<&'a Package, Failure> {
        let mut packages: Vec<_> = project
            .packages
            .iter()
            .filter(|package| !package.programs.is_empty())
            .collect();
        packages.sort_by_key(|package| {
            let serves = package
                .dependencies
                .iter()
                .any(|name| FRAMEWORKS.contains(&name.as_str()));
            (!serves, package.name != "api")
        });
        let first = *packages.first().ok_or_else(|| {
            Failure::usage("no package of the workspace has a binary")
                .hint("Add a binary target to the service's package.")
        })?;
        if packages.len() > 1 {
            let names: Vec<_> = packages.iter().map(|it| it.name.as_str()).collect();
            self.add_task(format!(
                "check service.package: {} was chosen; packages with a binary: {}",
                first.name,
                names.join(", ")
            ));
        }
        Ok(first)
    }

    /// Names the image after the git remote. Only this command uses the remote, because a person reviews its result.
    fn name(&mut self, top: &Path, package: &Package) {
        let remote = remote(top);
        match &remote {
            Some((host, path)) => {
                self.repository = path.to_lowercase();
                self.source = Some(format!("https://{host}/{path}"));
                self.report(format!(
                    "remote {host}/{path}: the image is ghcr.io/{}",
                    self.repository
                ));
            }
            None => {
                self.repository = format!("owner/{}", package.name.to_lowercase());
                self.add_task(format!("set repository in {FILE} to the image's name"));
            }
        }
    }

    fn dependencies(&mut self) {
        for (name, what) in REQUIREMENTS {
            // Built from source, it becomes part of the binary.
            let is_part_of_binary = name == "openssl-sys" && self.needs.has("openssl-src");
            if self.needs.has(name) && !is_part_of_binary {
                self.report(format!(
                    "{name} in Cargo.lock: the service may need {what} in its image"
                ));
                self.needs_base = true;
            }
        }
        if self.needs_base {
            self.add_task(format!(
                "add the digest that `ci build` prints to image.base in {FILE}, or use another base image than {}; `scratch` is enough for rustls with bundled root certificates",
                pins::BASE_IMAGE
            ));
        }
        self.facts.append(&mut self.needs.facts);
        self.to_do.append(&mut self.needs.to_do);
    }

    /// Enables the features that the binary requires.
    fn enable(&mut self, project: &Project, package: &Package) {
        let needed = needed_features(package, &self.binary, &Features::default());
        if needed.is_empty() {
            return;
        }
        self.report(format!(
            "binary {} requires features that are not enabled by default: cargo.features has {}",
            self.binary,
            needed.join(", ")
        ));
        let others = || project.packages.iter().filter(|it| it.name != package.name);
        let qualified = |name: String| {
            if others().any(|other| other.features.contains_key(&name)) {
                format!("{}/{name}", package.name)
            } else {
                name
            }
        };
        self.features = needed.into_iter().map(qualified).collect();
    }

    fn databases(&mut self, project: &Project) {
        let features = Features::Some {
            names: self.features.clone(),
            with_default: true,
        };
        self.databases = Databases::examine(project, &features);
        self.facts.append(&mut self.databases.facts);
        self.to_do.append(&mut self.databases.to_do);
    }

    fn settings(&self) -> String {
        let source = match &self.source {
            Some(url) => format!("source = \"{url}\""),
            None => "# source = \"https://github.com/owner/name\"".to_owned(),
        };
        let base = if self.needs_base {
            format!("base = \"{}\"", pins::BASE_IMAGE)
        } else {
            "# base = \"scratch\"".to_owned()
        };
        let packages: Vec<_> = self
            .needs
            .packages
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect();
        let packages = if packages.is_empty() {
            "# packages = [\"libpq-dev\", \"protobuf-compiler\"]".to_owned()
        } else {
            format!("packages = [{}]", packages.join(", "))
        };
        let commit = if self.needs.commit {
            "commit = true"
        } else {
            "# commit = false"
        };
        let databases = &self.databases;
        let mut text = with_services(&databases.tables)
            .replace("@home@", HOME)
            .replace("@packages@", &packages)
            .replace("@commit@", commit)
            .replace("@repository@", &self.repository)
            .replace("@source@", &source)
            .replace("@package@", &self.package)
            .replace("@binary@", &self.binary)
            .replace("@base@", &base)
            .replace("@postgres@", pins::POSTGRES_IMAGE);
        for (table, line) in [
            ("cargo", list("features", &self.features)),
            ("cargo", env(&databases.cargo_env)),
            ("test", env(&databases.test_env)),
            ("smoke", env(&databases.smoke_env)),
        ] {
            if let Some(line) = line {
                text = with_line(&text, table, &line);
            }
        }
        text
    }
}

/// The template with these tables instead of the example of a backing service.
fn with_services(tables: &str) -> String {
    if tables.is_empty() {
        return TEMPLATE.to_owned();
    }
    let paragraph = |text: &str| match text.split_once("\n# [services.") {
        Some((comment, _)) => format!("{comment}\n{}", tables.trim_end()),
        None => text.to_owned(),
    };
    let paragraphs: Vec<_> = TEMPLATE.split("\n\n").map(paragraph).collect();
    paragraphs.join("\n\n")
}

/// Replaces the comment with the same key in the table.
fn with_line(text: &str, table: &str, line: &str) -> String {
    let key = line.split(" = ").next().unwrap_or_default();
    let example = format!("# {key} = ");
    let mut is_open = false;
    let lines = text.lines().map(|old| {
        if old.starts_with('[') {
            is_open = old == format!("[{table}]");
        }
        if is_open && old.starts_with(&example) {
            is_open = false;
            format!("{line}\n")
        } else {
            format!("{old}\n")
        }
    });
    lines.collect()
}

/// A key whose value is a list; `None` if the list is empty.
fn list(key: &str, values: &[String]) -> Option<String> {
    let values: Vec<_> = values.iter().map(|it| format!("\"{it}\"")).collect();
    (!values.is_empty()).then(|| format!("{key} = [{}]", values.join(", ")))
}

/// The variables of a table; `None` if there are none.
fn env(values: &BTreeMap<String, String>) -> Option<String> {
    let values: Vec<_> = values
        .iter()
        .map(|(name, value)| format!("{name} = \"{value}\""))
        .collect();
    (!values.is_empty()).then(|| format!("env = {{ {} }}", values.join(", ")))
}

/// The host and path of the remote `origin`.
fn remote(top: &Path) -> Option<(String, String)> {
    parse_remote(&git_text(top, ["remote", "get-url", "origin"]).ok()?)
}

/// The default branch of the remote `origin`, otherwise the current branch.
fn default_branch(top: &Path) -> String {
    let branch_of = |name| git_text(top, ["symbolic-ref", "--short", name]).ok();
    branch_of("refs/remotes/origin/HEAD")
        .and_then(|name| Some(name.strip_prefix("origin/")?.to_owned()))
        .or_else(|| branch_of("HEAD"))
        .unwrap_or_else(|| "main".to_owned())
}

/// Parses `https://host/path`, `ssh://user@host/path` and `user@host:path` into host and path, without user, port and `.git`.
fn parse_remote(url: &str) -> Option<(String, String)> {
    let (host, path) = match url.split_once("://") {
        Some((_, rest)) => rest.split_once('/')?,
        None => url.split_once(':')?,
    };
    let host = host.rsplit('@').next()?.split(':').next()?;
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    (host.contains('.') && path.contains('/')).then(|| (host.to_owned(), path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_every_form_of_a_remote() {
        let acme = Some(("github.com".to_owned(), "Acme/shop".to_owned()));
        for url in [
            "https://github.com/Acme/shop",
            "https://token@github.com/Acme/shop.git",
            "git@github.com:Acme/shop.git",
            "ssh://git@github.com:22/Acme/shop.git",
        ] {
            assert_eq!(parse_remote(url), acme, "{url}");
        }
        for url in ["", "/srv/git/shop.git", "../shop", "file:///srv/shop.git"] {
            assert_eq!(parse_remote(url), None, "{url}");
        }
    }

    /// The settings with every commented key enabled.
    fn uncommented(text: &str) -> String {
        text.lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if rest.starts_with('[')
                        || rest.split(" = ").next().is_some_and(|key| {
                            rest.contains(" = ")
                                && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
                        }) =>
                {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect()
    }

    #[test]
    fn the_template_has_exactly_the_keys_of_the_settings() {
        let found = Found {
            package: "api".into(),
            binary: "api".into(),
            repository: "acme/shop".into(),
            ..Found::default()
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("config")).unwrap();
        std::fs::write(folder.path().join("config/production.toml"), "").unwrap();
        let project = Project {
            sources: folder.path().to_owned(),
            packages: vec![
                Package {
                    name: "api".into(),
                    programs: vec!["api".into()],
                    features: [("postgres".to_owned(), Vec::new())].into(),
                    ..Package::default()
                },
                Package {
                    name: "legacy".into(),
                    ..Package::default()
                },
            ],
            ..Project::default()
        };
        let github = GitHub::default();
        let settings = |text: &str| {
            Invocation::parse(["ci"])
                .unwrap()
                .settings(folder.path(), &project, Some(text), &github)
                .unwrap_or_else(|failure| panic!("{failure} {:?}\n{text}", failure.output))
        };
        let defaults = settings(&found.settings());
        let all = uncommented(&found.settings());
        assert_eq!(settings(&all).services.len(), 1);
        assert_eq!(settings(&all).service, defaults.service);
        // The values in comments are the defaults.
        assert_eq!(settings(&all).scan, defaults.scan);
        assert_eq!(settings(&all).smoke.within, defaults.smoke.within);
        let tables = all.lines().filter(|line| line.starts_with('['));
        // Every step is a key of these tables.
        let tables = tables.filter(|line| !["[limits]", "[paths]"].contains(line));
        for head in std::iter::once("").chain(tables) {
            let keys = crate::settings::keys(head);
            assert!(!keys.is_empty(), "{head}");
            for key in keys {
                let there = |line: &str| {
                    line.starts_with(&format!("{key} = "))
                        || line.trim_start_matches('[').starts_with(&format!("{key}]"))
                        || line.starts_with(&format!("[{key}."))
                        || line.ends_with(&format!(".{key}]]"))
                };
                assert!(all.lines().any(there), "the template lacks {key} of {head}");
            }
        }
    }
}
