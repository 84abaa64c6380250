//! The Cargo workspace in the sources of a run. Its manifests are read directly, so that neither cargo nor an engine is required.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cargo_toml::{Dependency, Manifest, OptionalFile};

use super::cargo_config::CargoConfig;
use super::toolchain::ToolchainFile;
use common::failure::{Failure, OrFail};

/// A Cargo workspace, or a single package without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Project {
    /// The directory relative to the root of the sources; empty if it is the root.
    pub folder: PathBuf,
    /// The absolute path of the same directory.
    pub sources: PathBuf,
    /// The packages, sorted by name.
    pub packages: Vec<Package>,
    /// The build scripts of the packages, relative to the root of the sources.
    pub build_scripts: Vec<PathBuf>,
    /// The settings of cargo in the repository.
    pub cargo: CargoConfig,
    /// The toolchain that the repository asks for.
    pub toolchain: Option<ToolchainFile>,
}

/// A package of the workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    pub(crate) name: String,
    /// The names of the binary targets.
    pub programs: Vec<String>,
    /// `default-run` of the manifest.
    pub default_run: Option<String>,
    /// `repository` of the manifest, which may be inherited from the workspace.
    pub repository: Option<String>,
    /// The names of the direct dependencies.
    pub dependencies: Vec<String>,
    /// The features, and what each enables, including the implicit features of optional dependencies.
    pub features: BTreeMap<String, Vec<String>>,
    /// The `required-features` of the binary targets that have some, by the target's name.
    pub required_features: BTreeMap<String, Vec<String>>,
    /// The names of the direct dependencies of the build script.
    pub build_dependencies: Vec<String>,
    /// The direct dependencies of the package and of its tests, with their features.
    pub uses: Vec<Use>,
}

/// A direct dependency of a package or of its tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// The name in the manifest.
    pub name: String,
    /// The crate, whose name differs if the manifest renames it.
    pub of: String,
    /// The features that the dependency's table enables.
    pub features: Vec<String>,
    /// Whether the dependency is only there with a feature of the package.
    pub is_optional: bool,
}

impl Project {
    /// Finds the workspace of the directory `inside` in `sources` in the same way as cargo: the nearest workspace among its
    /// parent directories, or else the nearest package.
    ///
    /// # Errors
    /// When there is no package, a manifest is invalid, or `Cargo.lock` is missing (exit code 2).
    pub fn find(sources: &Path, inside: &Path) -> Result<Self, Failure> {
        let mut nearest = None;
        for folder in inside.ancestors() {
            let file = sources.join(folder).join("Cargo.toml");
            if !file.is_file() {
                continue;
            }
            let manifest = read(sources, &file)?;
            let is_workspace = manifest.workspace.is_some();
            if is_workspace || nearest.is_none() {
                nearest = Some((folder, manifest));
            }
            if is_workspace {
                break;
            }
        }
        let (folder, manifest) = nearest.ok_or_else(|| {
            Failure::usage("there is no Cargo.toml among the sources")
                .hint("Run ci in a Cargo workspace, or pass its directory with --workspace. ci only reads files that are committed or not ignored.")
        })?;
        if !sources.join(folder).join("Cargo.lock").is_file() {
            return Err(Failure::usage(format!(
                "there is no {} among the sources",
                folder.join("Cargo.lock").display()
            ))
            .hint("Run `cargo generate-lockfile` and commit the file, so that ci builds the dependencies that it tests."));
        }
        let mut project = Self {
            folder: folder.to_owned(),
            sources: sources.join(folder),
            packages: Vec::new(),
            build_scripts: Vec::new(),
            cargo: CargoConfig::read(sources, folder)?,
            toolchain: ToolchainFile::find(sources, folder)?,
        };
        let top = sources.join(folder);
        let workspace = manifest.workspace.clone();
        let mut open = vec![(top.clone(), manifest)];
        let mut seen = vec![top.clone()];
        let mut admit = |path: PathBuf, open: &mut Vec<_>| {
            let file = path.join("Cargo.toml");
            if file.is_file() && !seen.contains(&path) {
                open.push((path.clone(), read(sources, &file)?));
                seen.push(path);
            }
            Ok::<_, Failure>(())
        };
        if let Some(workspace) = &workspace {
            for pattern in &workspace.members {
                let pattern = top.join(pattern).display().to_string();
                let paths = glob::glob(&pattern).map_err(|error| {
                    Failure::usage("invalid pattern in workspace.members of Cargo.toml")
                        .because(error)
                })?;
                for path in paths.flatten() {
                    if workspace.exclude.iter().all(|out| path != top.join(out)) {
                        admit(path, &mut open)?;
                    }
                }
            }
        }
        while let Some((folder, manifest)) = open.pop() {
            // Path dependencies below the workspace directory are members, too.
            for dependency in paths(&manifest) {
                let path = normal(&folder.join(dependency));
                if !path.starts_with(sources) {
                    let manifest = folder.strip_prefix(sources).unwrap_or(&folder);
                    return Err(Failure::usage(format!(
                        "{} depends on {dependency}, which is outside of the repository",
                        manifest.join("Cargo.toml").display()
                    ))
                    .hint("Move the package into the repository, or depend on it with `git` or a released version: a commit must contain everything that its build needs."));
                }
                if path.starts_with(&top) {
                    admit(path, &mut open)?;
                }
            }
            let script = build_script(&folder, &manifest).map(|script| normal(&script));
            let script =
                script.and_then(|script| Some(script.strip_prefix(sources).ok()?.to_owned()));
            project.build_scripts.extend(script);
            project.packages.extend(package(&manifest));
        }
        project.packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(project)
    }

    /// Returns the names of the packages whose build scripts depend on a crate.
    #[must_use]
    pub fn packages_built_with(&self, name: &str) -> Vec<String> {
        let depends = |package: &&Package| package.build_dependencies.iter().any(|it| it == name);
        let packages = self.packages.iter().filter(depends);
        packages.map(|package| package.name.clone()).collect()
    }

    /// Returns the package with this name.
    #[must_use]
    pub fn package(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.name == name)
    }
}

/// The build script of the package in `folder`, if it has one: `package.build`, or `build.rs` if that exists and is not disabled.
fn build_script(folder: &Path, manifest: &Manifest) -> Option<PathBuf> {
    match &manifest.package.as_ref()?.build {
        Some(OptionalFile::Path(path)) => Some(folder.join(path)),
        Some(OptionalFile::Flag(false)) => None,
        Some(OptionalFile::Flag(true)) | None => {
            let script = folder.join("build.rs");
            script.is_file().then_some(script)
        }
    }
}

fn read(sources: &Path, file: &Path) -> Result<Manifest, Failure> {
    let name = file.strip_prefix(sources).unwrap_or(file).display();
    Manifest::from_path(file).map_err(|error| {
        Failure::usage(format!("{name} is not a valid manifest"))
            .output(error.to_string())
            .hint("Run `cargo metadata` for details.")
    })
}

fn package(manifest: &Manifest) -> Option<Package> {
    let package = manifest.package.as_ref()?;
    Some(Package {
        name: package.name.clone(),
        programs: manifest
            .bin
            .iter()
            .filter_map(|target| target.name.clone())
            .collect(),
        default_run: package.default_run.clone(),
        repository: package.repository().map(ToOwned::to_owned),
        dependencies: manifest.dependencies.keys().cloned().collect(),
        features: features(manifest),
        required_features: manifest
            .bin
            .iter()
            .filter(|target| !target.required_features.is_empty())
            .filter_map(|target| Some((target.name.clone()?, target.required_features.clone())))
            .collect(),
        build_dependencies: manifest.build_dependencies.keys().cloned().collect(),
        uses: manifest
            .dependencies
            .iter()
            .chain(&manifest.dev_dependencies)
            .map(|(name, dependency)| Use {
                name: name.clone(),
                of: dependency.package().unwrap_or(name).to_owned(),
                features: dependency.req_features().to_vec(),
                is_optional: dependency.optional(),
            })
            .collect(),
    })
}

/// An optional dependency is a feature, unless another feature names it with `dep:`.
fn features(manifest: &Manifest) -> BTreeMap<String, Vec<String>> {
    let mut features = manifest.features.clone();
    let named: Vec<_> = features
        .values()
        .flatten()
        .filter_map(|it| it.strip_prefix("dep:").map(ToOwned::to_owned))
        .collect();
    for (name, dependency) in &manifest.dependencies {
        if dependency.optional() && !named.contains(name) {
            features.entry(name.clone()).or_default();
        }
    }
    features
}

fn paths(manifest: &Manifest) -> impl Iterator<Item = &str> {
    manifest
        .dependencies
        .values()
        .chain(manifest.dev_dependencies.values())
        .chain(manifest.build_dependencies.values())
        .filter_map(Dependency::detail)
        .filter_map(|detail| detail.path.as_deref())
}

/// Returns the path without `.` and `..`, so that it can be compared.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                normal.pop();
            }
            std::path::Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

/// Returns the path of `directory` relative to the root of its working tree.
///
/// # Errors
/// When a path cannot be resolved (exit code 3).
pub fn path_below_root(root: &Path, directory: &Path) -> Result<PathBuf, Failure> {
    let cannot = || format!("cannot resolve {}", directory.display());
    let directory = directory.canonicalize().or_environment(cannot())?;
    let root = root.canonicalize().or_environment(cannot())?;
    Ok(directory
        .strip_prefix(&root)
        .map(Path::to_owned)
        .unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let file = folder.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        folder
    }

    fn manifest(name: &str, more: &str) -> String {
        format!("[package]\nname = \"{name}\"\nversion = \"1.0.0\"\nedition = \"2024\"\n{more}")
    }

    #[test]
    fn finds_a_package_without_workspace() {
        let shop = manifest(
            "shop",
            "default-run = \"serve\"\nrepository = \"https://example.com/shop\"\n[[bin]]\nname = \"serve\"\npath = \"src/serve.rs\"\n",
        );
        let sources = sources(&[
            ("Cargo.toml", &shop),
            ("Cargo.lock", ""),
            ("src/serve.rs", "fn main() {}"),
            ("src/bin/migrate.rs", "fn main() {}"),
        ]);
        let project = Project::find(sources.path(), Path::new("src")).unwrap();
        assert_eq!(project.folder, Path::new(""));
        let package = project.package("shop").unwrap();
        assert_eq!(package.default_run.as_deref(), Some("serve"));
        assert_eq!(
            package.repository.as_deref(),
            Some("https://example.com/shop")
        );
        assert!(package.programs.contains(&"migrate".to_owned()));
        assert!(package.programs.contains(&"serve".to_owned()));
    }

    #[test]
    fn finds_members_by_pattern_and_by_path() {
        let sources = sources(&[
            (
                "backend/Cargo.toml",
                "[workspace]\nmembers = [\"crates/*\"]\nexclude = [\"crates/old\"]\n[workspace.package]\nrepository = \"https://example.com/all\"\n",
            ),
            ("backend/Cargo.lock", ""),
            (
                "backend/crates/web/Cargo.toml",
                &manifest(
                    "web",
                    "repository.workspace = true\n[dependencies]\ncore = { path = \"../../core\" }\n",
                ),
            ),
            ("backend/crates/web/src/main.rs", "fn main() {}"),
            ("backend/crates/old/Cargo.toml", &manifest("old", "")),
            ("backend/crates/old/src/main.rs", "fn main() {}"),
            ("backend/core/Cargo.toml", &manifest("core", "")),
            ("backend/core/src/lib.rs", ""),
        ]);
        for inside in ["backend", "backend/crates/web/src"] {
            let project = Project::find(sources.path(), Path::new(inside)).unwrap();
            assert_eq!(project.folder, Path::new("backend"));
            let names: Vec<_> = project.packages.iter().map(|p| p.name.as_str()).collect();
            assert_eq!(names, ["core", "web"]);
            assert_eq!(project.packages[1].programs, ["web"]);
            assert_eq!(
                project.packages[1].repository.as_deref(),
                Some("https://example.com/all")
            );
        }
    }

    #[test]
    fn lists_the_dependencies_of_packages_and_their_tests() {
        let sources = sources(&[
            (
                "Cargo.toml",
                "[workspace]\nmembers = [\"web\"]\n[workspace.dependencies]\nsqlx = { version = \"1\", features = [\"postgres\"] }\n",
            ),
            ("Cargo.lock", ""),
            (
                "web/Cargo.toml",
                &manifest(
                    "web",
                    "[dependencies]\nsqlx = { workspace = true, features = [\"macros\"] }\nstore = { package = \"redis\", version = \"1\", optional = true }\n\
                     [dev-dependencies]\ninsta = \"1\"\n",
                ),
            ),
            ("web/src/main.rs", "fn main() {}"),
        ]);
        let project = Project::find(sources.path(), Path::new("web")).unwrap();
        let uses = |name: &str, of: &str, features: &[&str], is_optional| Use {
            name: name.to_owned(),
            of: of.to_owned(),
            features: features.iter().map(|it| (*it).to_owned()).collect(),
            is_optional,
        };
        let mut found = project.packages[0].uses.clone();
        for it in &mut found {
            it.features.sort();
        }
        assert_eq!(
            found,
            [
                uses("sqlx", "sqlx", &["macros", "postgres"], false),
                uses("store", "redis", &[], true),
                uses("insta", "insta", &[], false),
            ]
        );
    }

    #[test]
    fn rejects_missing_and_invalid_files() {
        let find = |files: &[(&str, &str)]| {
            let failure = Project::find(sources(files).path(), Path::new("")).unwrap_err();
            assert_eq!(failure.code as u8, 2);
            failure.message
        };
        assert!(find(&[]).contains("no Cargo.toml"));
        assert!(find(&[("Cargo.toml", &manifest("x", ""))]).contains("no Cargo.lock"));
        assert!(find(&[("Cargo.toml", "[package")]).contains("not a valid manifest"));
    }
}
