//! What the files of a workspace say about its needs: dependencies with C libraries, generated code, and how its
//! repository is checked out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::model::lockfile::{self, Lockfile};
use crate::source::project::{Package, Project};
use common::failure::{Failure, OrFail};
use common::pins;

/// Crates that compile against a library from a Debian package that the toolchain's image has, unless `Cargo.lock` also has the
/// second crate, which builds the library from source.
const IN_THE_IMAGE: [(&str, &str, &str); 3] = [
    (
        "mysqlclient-sys",
        "mysqlclient-src",
        "default-libmysqlclient-dev",
    ),
    ("openssl-sys", "openssl-src", "libssl-dev"),
    ("pq-sys", "pq-src", "libpq-dev"),
];
/// Crates that compile against a library from a Debian package that the toolchain's image lacks.
const NOT_IN_THE_IMAGE: [(&str, &str); 8] = [
    ("alsa-sys", "libasound2-dev"),
    ("hidapi", "libudev-dev"),
    ("libdbus-sys", "libdbus-1-dev"),
    ("libudev-sys", "libudev-dev"),
    ("sasl2-sys", "libsasl2-dev"),
    ("servo-fontconfig-sys", "libfontconfig1-dev"),
    ("tss-esapi-sys", "libtss2-dev"),
    ("yeslogic-fontconfig-sys", "libfontconfig1-dev"),
];
/// Build dependencies of crates, and the Debian packages that they call.
const CALLED: [(&str, &str); 2] = [("bindgen", "libclang-dev"), ("cmake", "cmake")];
/// Crates that call these only in uncommon configurations.
const RARELY_CALLS: [&str; 1] = ["aws-lc-sys"];
/// Build dependencies that call `protoc`.
const PROTOC_CALLERS: [&str; 4] = [
    "prost-build",
    "protobuf-codegen",
    "tonic-build",
    "tonic-prost-build",
];
/// Crates that bring `protoc`.
const PROTOC_BRINGERS: [&str; 3] = ["protobuf-src", "protoc-bin-vendored", "protox"];
/// Crates that ask git for the commit when a package is compiled. vergen itself does so up to version 8.
const COMMIT_READERS: [&str; 7] = [
    "build-data",
    "built",
    "git-version",
    "shadow-rs",
    "vergen",
    "vergen-gitcl",
    "vergen-gix",
];

/// The needs of a workspace.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Debian packages for `toolchain.packages`.
    pub packages: BTreeSet<&'static str>,
    /// Whether a build script asks git for the commit.
    pub commit: bool,
    /// Whether the repository has submodules.
    pub submodules: bool,
    /// Whether the repository has files in Git LFS.
    pub lfs: bool,
    /// What was found.
    pub facts: Vec<String>,
    /// What a person must do or check.
    pub to_do: Vec<String>,
    /// The dependencies of each crate in `Cargo.lock`.
    pub locked: BTreeMap<String, Vec<String>>,
}

impl Needs {
    /// Reads the files of `project` in the repository at `top`.
    ///
    /// # Errors
    /// When `Cargo.lock` is invalid (exit code 2) or cannot be read (exit code 3).
    pub(super) fn examine(top: &Path, project: &Project) -> Result<Self, Failure> {
        let file = project.sources.join("Cargo.lock");
        let text = std::fs::read_to_string(&file).or_environment("cannot read Cargo.lock")?;
        let lock = Lockfile::parse(&text).map_err(|error| {
            Failure::usage("Cargo.lock is invalid")
                .output(error.to_string())
                .hint("Run `cargo generate-lockfile`.")
        })?;
        let mut needs = Self::default();
        for package in &lock.packages {
            // `name version` if there are several versions.
            let names = package.dependencies.iter();
            let names = names.filter_map(|it| it.split(' ').next());
            let all = needs.locked.entry(package.name.clone()).or_default();
            all.extend(names.map(ToOwned::to_owned));
        }
        needs.toolchain(project);
        needs.libraries();
        needs.generators(project);
        let is_old = |it: &lockfile::Package| {
            let major = it.version.split('.').next();
            it.name == "vergen" && major.is_some_and(|it| it.parse().is_ok_and(|it: u32| it < 9))
        };
        needs.commit(top, project, lock.packages.iter().any(is_old));
        needs.git_dependencies(&lock);
        needs.repository(top);
        Ok(needs)
    }

    /// Whether `Cargo.lock` has this crate.
    pub(super) fn has(&self, name: &str) -> bool {
        self.locked.contains_key(name)
    }

    fn toolchain(&mut self, project: &Project) {
        if let Some(file) = &project.toolchain {
            let channel = file.channel.as_ref().map_or(pins::RUST, |it| it.name());
            let path = file.path.display();
            self.facts
                .push(format!("{path}: every step uses Rust {channel}"));
        }
    }

    fn libraries(&mut self) {
        for (name, source, package) in IN_THE_IMAGE {
            if self.has(name) && !self.has(source) {
                self.facts.push(format!(
                    "{name} in Cargo.lock: it compiles against {package}, which the toolchain's image has"
                ));
            }
        }
        for (name, package) in NOT_IN_THE_IMAGE {
            if self.has(name) {
                self.needs_package(package, &format!("{name} in Cargo.lock"));
            }
        }
    }

    fn generators(&mut self, project: &Project) {
        let brings_protoc = PROTOC_BRINGERS.iter().any(|name| self.has(name));
        let caller = PROTOC_CALLERS
            .into_iter()
            .find(|name| !project.packages_built_with(name).is_empty());
        if let Some(caller) = caller.filter(|_| !brings_protoc) {
            self.needs_package("protobuf-compiler", &format!("build dependency {caller}"));
        }
        for (called, package) in CALLED {
            let calls = |(name, dependencies): &(&String, &Vec<String>)| {
                !RARELY_CALLS.contains(&name.as_str()) && dependencies.iter().any(|it| it == called)
            };
            let caller = self.locked.iter().find(calls).map(|(name, _)| name.clone());
            if let Some(caller) = caller {
                self.needs_package(package, &format!("{caller} in Cargo.lock"));
            }
        }
    }

    fn needs_package(&mut self, package: &'static str, why: &str) {
        self.facts
            .push(format!("{why}: toolchain.packages has {package}"));
        self.packages.insert(package);
    }

    fn commit(&mut self, top: &Path, project: &Project, has_old_vergen: bool) {
        for name in COMMIT_READERS {
            if name == "vergen" && !has_old_vergen {
                continue;
            }
            let uses = |package: &&Package| {
                let mut all = package
                    .dependencies
                    .iter()
                    .chain(&package.build_dependencies);
                all.any(|it| it == name)
            };
            for package in project.packages.iter().filter(uses) {
                let package = &package.name;
                self.facts
                    .push(format!("{package} depends on {name}: build.commit is set"));
                self.commit = true;
            }
        }
        for script in &project.build_scripts {
            let text = std::fs::read_to_string(top.join(script)).unwrap_or_default();
            if text.contains("Command::new(\"git\")") {
                let script = script.display();
                self.facts
                    .push(format!("{script} calls git: build.commit is set"));
                self.commit = true;
            }
        }
    }

    fn git_dependencies(&mut self, lock: &Lockfile) {
        let urls: BTreeSet<_> = lock
            .packages
            .iter()
            .filter_map(|package| package.source.as_deref()?.strip_prefix("git+"))
            .filter_map(|source| source.split(['?', '#']).next())
            .collect();
        for url in urls {
            self.facts.push(format!(
                "git dependency {url}: a private one needs cargo.git-credentials or cargo.ssh-agent"
            ));
        }
    }

    fn repository(&mut self, top: &Path) {
        if top.join(".gitmodules").is_file() {
            self.facts
                .push("submodules: the workflow checks them out".to_owned());
            self.submodules = true;
        }
        let attributes = std::fs::read_to_string(top.join(".gitattributes")).unwrap_or_default();
        if attributes.contains("filter=lfs") {
            self.facts
                .push("Git LFS: the workflow fetches its files".to_owned());
            self.lfs = true;
        }
    }
}
