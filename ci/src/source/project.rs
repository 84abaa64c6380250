//! The Cargo workspace in a run's sources: where it lies, and what programs are in it. Read from its manifests, so that neither
//! cargo nor an engine has to be there.

use std::path::{Path, PathBuf};

use cargo_toml::{Dependency, Manifest};

use common::failure::{Failure, OrFail};

/// A Cargo workspace, or a package that is one by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Project {
    /// Its folder, relative to the top of the sources; empty where it is the top.
    pub folder: PathBuf,
    /// The same folder, absolute: where its files are read.
    pub sources: PathBuf,
    /// Its packages, by name.
    pub packages: Vec<Package>,
}

/// A package of the workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The names of its binary targets.
    pub programs: Vec<String>,
    /// Its `default-run`.
    pub default_run: Option<String>,
    /// Its `repository`, which may be the workspace's.
    pub repository: Option<String>,
    /// The names of what it depends on.
    pub dependencies: Vec<String>,
}

impl Project {
    /// Finds the workspace that the folder `inside` of `sources` belongs to, as cargo would: the next one upwards, or where there
    /// is none, the next package.
    ///
    /// # Errors
    /// When there is none, a manifest is not valid, or there is no `Cargo.lock` (exit 2).
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
                .hint("Run ci in a Cargo workspace, or name its folder with --workspace. A file has to be committed, or at least not ignored, to count.")
        })?;
        if !sources.join(folder).join("Cargo.lock").is_file() {
            return Err(Failure::usage(format!(
                "there is no {} among the sources",
                folder.join("Cargo.lock").display()
            ))
            .hint("Commit it (`cargo generate-lockfile` makes it): what is tested has to be what is built."));
        }
        let mut project = Self {
            folder: folder.to_owned(),
            sources: sources.join(folder),
            packages: Vec::new(),
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
                    Failure::usage("Cargo.toml has a member that is no pattern").because(error)
                })?;
                for path in paths.flatten() {
                    if workspace.exclude.iter().all(|out| path != top.join(out)) {
                        admit(path, &mut open)?;
                    }
                }
            }
        }
        while let Some((folder, manifest)) = open.pop() {
            // What a member depends on by its path, below the workspace, is a member too.
            for path in paths(&manifest) {
                let path = normal(&folder.join(path));
                if path.starts_with(&top) {
                    admit(path, &mut open)?;
                }
            }
            project.packages.extend(package(&manifest));
        }
        project.packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(project)
    }

    /// The package of this name.
    #[must_use]
    pub fn package(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.name == name)
    }
}

fn read(sources: &Path, file: &Path) -> Result<Manifest, Failure> {
    let name = file.strip_prefix(sources).unwrap_or(file).display();
    Manifest::from_path(file).map_err(|error| {
        Failure::usage(format!("{name} is not a valid manifest"))
            .output(error.to_string())
            .hint("`cargo metadata` says more.")
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
    })
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

/// The path without its `..`, which a manifest may have and a comparison may not.
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

/// Where `directory` lies below the top of its working tree.
///
/// # Errors
/// When it cannot be looked at (exit 3).
pub fn below(root: &Path, directory: &Path) -> Result<PathBuf, Failure> {
    let cannot = || format!("cannot look at {}", directory.display());
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
    fn a_package_alone_is_a_workspace() {
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
    fn members_come_by_pattern_and_by_path_and_inherit() {
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
    fn what_is_missing_is_named() {
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
