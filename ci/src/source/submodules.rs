//! The submodules of a repository: where their files come from, and which of them are missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::git::{git, git_text};
use super::paths::Paths;
use crate::model::config_file::FILE;
use crate::model::step::Step;
use common::failure::Failure;

/// A submodule as a tree refers to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The path, relative to the repository that contains the submodule.
    pub path: PathBuf,
    /// The commit.
    pub commit: String,
}

/// The files of a submodule.
pub(super) struct Found {
    /// The repository with the submodule's objects.
    pub repository: PathBuf,
    /// Whether this is the submodule's own working tree, whose files may differ from those of the commit.
    pub in_place: bool,
}

/// A submodule whose files are not on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The path, relative to the root of the sources.
    path: PathBuf,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// Its directory has no repository.
    NotCheckedOut,
    /// Its repository lacks this commit.
    NoCommit(String),
    /// `.gitmodules` does not name it, so that no other clone can have it.
    NotRegistered,
}

impl Missing {
    /// The submodule at `path` in the sources, where [`find`] found nothing. `top` is the directory with the files of the repository
    /// that contains it.
    pub(super) fn new(path: PathBuf, root: &Path, link: &Link, top: &Path) -> Self {
        let why = if checkout_at(&root.join(&link.path)).is_some() {
            Why::NoCommit(link.commit.clone())
        } else if is_registered(root, &link.path, top) {
            Why::NotCheckedOut
        } else {
            Why::NotRegistered
        };
        Self { path, why }
    }

    /// Makes the path relative to the directory of the sources.
    pub(super) fn make_relative_to(&mut self, sources: &Path) {
        if let Ok(relative) = self.path.strip_prefix(sources) {
            self.path = relative.to_owned();
        }
    }

    fn failure(&self, needed: &[Step]) -> Failure {
        let path = self.path.display();
        let what = match &self.why {
            Why::NotCheckedOut => format!("submodule {path} is not checked out"),
            Why::NoCommit(commit) => {
                format!("commit {commit} of submodule {path} is not on this machine")
            }
            Why::NotRegistered => format!(
                "{path} is a commit of another repository, and .gitmodules does not name it"
            ),
        };
        let update = match &self.why {
            Why::NotRegistered => format!(
                "Run `git rm --cached {path}`, and `git submodule add URL {path}` to make it a submodule."
            ),
            Why::NotCheckedOut | Why::NoCommit(_) => "Run `git submodule update --init --recursive`. On GitHub, set `submodules: recursive` at actions/checkout.".to_owned(),
        };
        let names: Vec<_> = needed.iter().map(ToString::to_string).collect();
        let first = needed
            .first()
            .map_or("build", |step| step.definition().name);
        Failure::usage(format!(
            "{what}, and it is part of the sources of {}",
            names.join(", ")
        ))
        .hint(format!(
            "{update} If a step does not need it, exclude it in [paths] of {FILE}: {first} = [\"**\", \"!{path}/**\"]."
        ))
    }
}

/// Requires that no step of `steps` gets the files of a missing submodule; `paths` limits the sources of the steps.
///
/// # Errors
/// When a step may need a missing submodule (exit code 2).
pub fn require(
    missing: &[Missing],
    steps: &[Step],
    paths: &BTreeMap<Step, Paths>,
) -> Result<(), Failure> {
    for submodule in missing {
        let needs = |step: &Step| {
            step.definition().reads_sources
                && paths
                    .get(step)
                    .is_none_or(|paths| paths.may_include_below(&submodule.path))
        };
        let needed: Vec<_> = steps.iter().copied().filter(needs).collect();
        if !needed.is_empty() {
            return Err(submodule.failure(&needed));
        }
    }
    Ok(())
}

/// Finds the files of a submodule of the repository at `root`: in its own directory, or, because git does not check out submodules
/// in a new worktree, in the main one.
pub(super) fn find(root: &Path, link: &Link, on_disk: bool) -> Option<Found> {
    let in_place = checkout_at(&root.join(&link.path));
    if on_disk && let Some(repository) = in_place {
        return Some(Found {
            repository,
            in_place: true,
        });
    }
    let in_main = || checkout_at(&main_worktree(root)?.join(&link.path));
    let commit = format!("{}^{{commit}}", link.commit);
    let has_commit = |at: &PathBuf| git(at, ["cat-file", "-e", &commit]).is_ok();
    let repository = in_place
        .filter(has_commit)
        .or_else(|| in_main().filter(has_commit))?;
    Some(Found {
        repository,
        in_place: false,
    })
}

/// The directory, if it is the top of a working tree.
fn checkout_at(directory: &Path) -> Option<PathBuf> {
    directory.join(".git").symlink_metadata().ok()?;
    let top = git_text(directory, ["rev-parse", "--show-toplevel"]).ok()?;
    let directory = directory.canonicalize().ok()?;
    (Path::new(&top).canonicalize().ok()? == directory).then_some(directory)
}

/// The main working tree of the repository, if `root` is another one.
fn main_worktree(root: &Path) -> Option<PathBuf> {
    let common = git_text(root, ["rev-parse", "--git-common-dir"]).ok()?;
    let common = root.join(common).canonicalize().ok()?;
    let main = common.parent()?;
    (common.ends_with(".git") && main != root).then(|| main.to_owned())
}

/// Whether `.gitmodules` in `top` names the submodule at `path`.
fn is_registered(root: &Path, path: &Path, top: &Path) -> bool {
    let file = top.join(".gitmodules").display().to_string();
    let list = [
        "config",
        "--file",
        &file,
        "--get-regexp",
        r"^submodule\..*\.path$",
    ];
    // git fails if there is no such file.
    git_text(root, list).is_ok_and(|registered| {
        registered
            .lines()
            .any(|line| line.split_once(' ').map(|(_, path)| Path::new(path)) == Some(path))
    })
}
