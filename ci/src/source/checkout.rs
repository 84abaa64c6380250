//! The git checkout of a run: its commit, its state and its files.
//!
//! The files of a clean tree are read from the git objects of HEAD, so that no other content (an `assume-unchanged` edit, an edit
//! during the run) is published under a clean SHA. The files of a dirty tree are those that git tracks or does not ignore.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::git::{git, git_text};
use super::snapshot::{Place, Snapshot, Tree};
use crate::model::image_name::{DirtyTag, Tag};
use common::failure::{ExitCode, Failure, OrFail};
use common::progress::Progress;

/// The commit of HEAD.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The full SHA.
    pub sha: String,
    /// The committer's time, in seconds since the epoch.
    pub time: i64,
}

/// The validated full SHA of a commit. It cannot be mistaken for a git option or a ref name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sha(String);

impl Sha {
    /// Returns the hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Sha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Sha {
    type Err = Failure;

    /// Parses 40 hexadecimal digits, or 64 for a repository with SHA-256.
    fn from_str(text: &str) -> Result<Self, Failure> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if matches!(text.len(), 40 | 64) && text.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Failure::usage(format!("`{text}` is not a full commit SHA")))
        }
    }
}

/// The state of the working tree, with the resulting image tag.
#[derive(Clone, Debug)]
pub enum State {
    /// The working tree equals HEAD.
    Clean(Tag),
    /// The working tree has uncommitted changes.
    Dirty(DirtyTag),
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clean(tag) => tag.fmt(f),
            Self::Dirty(tag) => tag.fmt(f),
        }
    }
}

/// The full SHA of the commit that is checked out in `directory`, followed by `-dirty` if files there differ from it; `None` if git
/// does not track the directory.
#[must_use]
pub fn commit_of(directory: &Path) -> Option<String> {
    git_text(directory, ["ls-files", "--error-unmatch", "Cargo.toml"]).ok()?;
    let sha = git_text(directory, ["rev-parse", "HEAD"]).ok()?;
    let changes = git_text(directory, ["status", "--porcelain", "--", "."]).ok()?;
    Some(if changes.is_empty() {
        sha
    } else {
        format!("{sha}-dirty")
    })
}

/// A git working tree with at least one commit.
#[derive(Clone, Debug)]
pub struct Checkout {
    /// The top of the working tree.
    pub root: PathBuf,
    /// The commit of HEAD.
    pub commit: Commit,
    /// Whether there are uncommitted changes.
    pub state: State,
    /// The first files with uncommitted changes, relative to the root.
    pub changes: Vec<String>,
}

impl Checkout {
    /// Finds the working tree that contains `directory`.
    ///
    /// # Errors
    /// When git is missing (exit code 3), or there is no working tree or no commit (exit code 2).
    pub fn discover(directory: &Path) -> Result<Self, Failure> {
        let root = git_text(directory, ["rev-parse", "--show-toplevel"]).map_err(|failure| {
            if failure.code == ExitCode::Environment {
                return failure;
            }
            Failure::usage(format!(
                "{} is not in a git working tree",
                directory.display()
            ))
            .output(failure.output.unwrap_or_default())
            .hint("Run ci in a git checkout. ci names images after the commit.")
        })?;
        let root = PathBuf::from(root);
        let describe = [
            "show",
            "--no-patch",
            "--no-show-signature",
            "--format=%H %ct",
            "HEAD",
            "--",
        ];
        let described = git_text(&root, describe).map_err(|failure| {
            if git(&root, ["rev-parse", "--verify", "--quiet", "HEAD"]).is_ok() {
                return failure;
            }
            Failure::usage(format!(
                "the repository at {} has no commit yet",
                root.display()
            ))
            .hint("Create a commit first: `git add . && git commit`.")
        })?;
        let (sha, time) = described.split_once(' ').unwrap_or((&described, ""));
        let tag = Tag::of_commit(sha, Tag::LENGTH)?;
        let time = time
            .parse()
            .or_environment("git printed a commit time that is not a number")?;
        let changes = git(
            &root,
            [
                "status",
                "--porcelain=v1",
                "-z",
                "--untracked-files=all",
                "--ignore-submodules=none",
            ],
        )?;
        let state = if changes.is_empty() {
            State::Clean(tag)
        } else {
            State::Dirty(tag.dirty())
        };
        Ok(Self {
            root,
            commit: Commit {
                sha: sha.to_owned(),
                time,
            },
            state,
            changes: first_changes(&changes),
        })
    }

    /// Returns whether the working tree has no uncommitted changes.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        matches!(self.state, State::Clean(_))
    }

    /// Returns the same checkout with tags of this length.
    ///
    /// # Errors
    /// When the SHA is shorter (exit code 3).
    pub fn with_tag_length(self, length: usize) -> Result<Self, Failure> {
        let tag = Tag::of_commit(&self.commit.sha, length)?;
        let state = match self.state {
            State::Clean(_) => State::Clean(tag),
            State::Dirty(_) => State::Dirty(tag.dirty()),
        };
        Ok(Self { state, ..self })
    }

    /// Returns the same checkout as dirty, so that its files are read from the disk.
    #[must_use]
    pub fn as_on_disk(self) -> Self {
        let state = match self.state {
            State::Clean(tag) => State::Dirty(tag.dirty()),
            dirty @ State::Dirty(_) => dirty,
        };
        Self { state, ..self }
    }

    /// Copies the sources to a directory, which no other run uses before the returned value is dropped. `progress` shows what is
    /// fetched.
    ///
    /// # Errors
    /// When an object or a file cannot be read (exit code 3), a filter cannot be applied or the tree contains another repository
    /// (exit code 2).
    pub fn snapshot(&self, place: Place, progress: &dyn Progress) -> Result<Snapshot, Failure> {
        let of = match self.state {
            State::Clean(_) => Tree::Commit(&self.commit.sha),
            State::Dirty(_) => Tree::OnDisk,
        };
        Snapshot::new(&self.root, of, place, progress)
    }

    /// Requires that a branch of a configured remote contains the commit. Fetches from the remotes if this clone lacks it.
    ///
    /// # Errors
    /// When no remote branch contains the commit (exit code 1), or no remote is configured (exit code 2).
    pub fn require_on_a_remote(&self, sha: &Sha, progress: &dyn Progress) -> Result<(), Failure> {
        let remotes = git_text(&self.root, ["remote"])?;
        let remotes: Vec<_> = remotes.lines().collect();
        if remotes.is_empty() {
            return Err(Failure::usage(format!(
                "cannot find the origin of commit {sha}: the repository at {} has no remote",
                self.root.display()
            ))
            .hint("Add the remote that the image was built from: `git remote add origin URL`."));
        }
        if self.is_on_a_remote(sha, &remotes)? {
            return Ok(());
        }
        let mut errors = String::new();
        for remote in &remotes {
            progress.notice(&format!(
                "commit {sha} is not in this clone: fetching from {remote}"
            ));
            if let Err(failure) = git(&self.root, ["fetch", "--quiet", "--no-tags", "--", remote]) {
                errors.push_str(&format!(
                    "{remote}: {}\n",
                    failure.output.unwrap_or(failure.message)
                ));
            }
        }
        if self.is_on_a_remote(sha, &remotes)? {
            return Ok(());
        }
        let failure = Failure::gate(format!(
            "commit {sha} from the label of the image is not on any branch of {}",
            remotes.join(", ")
        ))
        .hint("Run `git fetch --unshallow` if this clone is shallow. Otherwise the image is from another repository, or its label was changed.");
        Err(if errors.is_empty() {
            failure
        } else {
            failure.output(errors)
        })
    }

    /// Returns whether a file at this path would be part of the sources: inside the working tree and not ignored by git.
    #[must_use]
    pub fn is_source_path(&self, file: &Path) -> bool {
        // Resolve links and `..` in the part of the path that exists.
        let resolved = file.ancestors().find_map(|folder| {
            let rest = file.strip_prefix(folder).ok()?;
            Some(folder.canonicalize().ok()?.join(rest))
        });
        let file = resolved.as_deref().unwrap_or(file);
        let check_ignore = [
            OsStr::new("check-ignore"),
            OsStr::new("--quiet"),
            OsStr::new("--no-index"),
            OsStr::new("--"),
            file.as_os_str(),
        ];
        file.starts_with(&self.root) && git(&self.root, check_ignore).is_err()
    }

    fn is_on_a_remote(&self, sha: &Sha, remotes: &[&str]) -> Result<bool, Failure> {
        let exists = ["cat-file", "-e", &format!("{sha}^{{commit}}")];
        if git(&self.root, exists).is_err() {
            return Ok(false);
        }
        let mut refs = vec![
            "for-each-ref".to_owned(),
            "--format=%(refname)".to_owned(),
            format!("--contains={sha}"),
        ];
        refs.extend(
            remotes
                .iter()
                .map(|remote| format!("refs/remotes/{remote}/")),
        );
        Ok(!git(&self.root, refs)?.is_empty())
    }

    /// Checks out `sha` into the new directory `folder`, which is removed when the returned value is dropped.
    ///
    /// # Errors
    /// When `git worktree add` fails.
    pub fn worktree(&self, sha: &Sha, folder: &Path) -> Result<Worktree, Failure> {
        let add = [
            // The hooks of this repository are not part of the commit.
            OsStr::new("-c"),
            OsStr::new("core.hooksPath=/dev/null"),
            OsStr::new("worktree"),
            OsStr::new("add"),
            OsStr::new("--quiet"),
            OsStr::new("--detach"),
            folder.as_os_str(),
            OsStr::new(sha.as_str()),
        ];
        git(&self.root, add)?;
        Ok(Worktree {
            repository: self.root.clone(),
            folder: folder.to_owned(),
        })
    }
}

/// The first files in the output of `git status --porcelain=v1 -z`.
fn first_changes(status: &[u8]) -> Vec<String> {
    let lines = status.split(|byte| *byte == 0);
    let mut names = Vec::new();
    let mut renamed_from = false;
    for line in lines.filter(|line| !line.is_empty()) {
        // The old name of a renamed file follows in a line of its own, without a state.
        if std::mem::take(&mut renamed_from) {
            continue;
        }
        renamed_from = line.starts_with(b"R") || line.starts_with(b"C");
        if names.len() == CHANGES {
            names.push("…".to_owned());
            break;
        }
        names.push(String::from_utf8_lossy(line.get(3..).unwrap_or_default()).into_owned());
    }
    names
}

/// How many changed files are named.
const CHANGES: usize = 5;

/// A temporary git worktree with one commit checked out. Dropping it removes the worktree.
#[derive(Debug)]
pub struct Worktree {
    repository: PathBuf,
    folder: PathBuf,
}

impl Worktree {
    /// Returns the root of the worktree.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        let remove = [
            OsStr::new("worktree"),
            OsStr::new("remove"),
            OsStr::new("--force"),
            self.folder.as_os_str(),
        ];
        // git prunes a leftover worktree later.
        if let Err(failure) = git(&self.repository, remove) {
            tracing::warn!("{failure}");
        }
    }
}
