//! The git checkout of a run: its commit, its state and its files.
//!
//! The files of a clean tree are read from the git objects of HEAD, so that no other content (an `assume-unchanged` edit, a
//! filter, an edit during the run) is published under a clean SHA. The files of a dirty tree are those that git tracks or does
//! not ignore.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use crate::model::image_name::{DirtyTag, Tag};
use common::failure::{ExitCode, Failure, OrFail};
use common::progress::Progress;
use common::provision;

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
        let sha = git_text(&root, ["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).map_err(
            |_| {
                Failure::usage(format!(
                    "the repository at {} has no commit yet",
                    root.display()
                ))
                .hint("Create a commit first: `git add . && git commit`.")
            },
        )?;
        // The full SHA, because a tag or branch may have the name of the short one.
        let short = git_text(&root, ["rev-parse", "--short", &sha])?;
        let tag = Tag::of_commit(&short, &sha)?;
        let time = git_text(
            &root,
            [
                "show",
                "--no-patch",
                "--no-show-signature",
                "--format=%ct",
                &sha,
            ],
        )?
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
            commit: Commit { sha, time },
            state,
        })
    }

    /// Returns whether the working tree has no uncommitted changes.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        matches!(self.state, State::Clean(_))
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

    /// Copies the sources to a temporary directory, which is removed when the returned value is dropped.
    ///
    /// # Errors
    /// When an object or a file cannot be read, or the tree contains a submodule.
    pub fn snapshot(&self) -> Result<Snapshot, Failure> {
        let folder = temporary_folder()?;
        match self.state {
            State::Clean(_) => self.copy_objects(folder.path())?,
            State::Dirty(_) => self.copy_files(folder.path())?,
        }
        Ok(Snapshot { folder })
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

    fn copy_objects(&self, to: &Path) -> Result<(), Failure> {
        let listing = git(
            &self.root,
            ["ls-tree", "-r", "-z", "--full-tree", &self.commit.sha],
        )?;
        let mut entries = Vec::new();
        for line in listing
            .split(|byte| *byte == 0)
            .filter(|line| !line.is_empty())
        {
            entries.push(TreeEntry::parse(line)?);
        }
        let mut child = git_command(&self.root, ["cat-file", "--batch"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .or_environment("cannot start git")?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::environment(
                "cannot open the standard streams of git",
            ));
        };
        let mut objects = BufReader::new(output);
        for entry in &entries {
            let object = entry
                .read_from(&mut input, &mut objects)
                .or_environment(format!(
                    "cannot read {} of commit {} from git",
                    entry.path.display(),
                    self.commit.sha
                ))?;
            write_entry(&to.join(&entry.path), entry.kind, &object)?;
        }
        drop(input);
        let status = child.wait().or_environment("cannot wait for git")?;
        if !status.success() {
            return Err(Failure::environment(format!(
                "git cat-file failed ({status})"
            )));
        }
        Ok(())
    }

    fn copy_files(&self, to: &Path) -> Result<(), Failure> {
        let listing = git(
            &self.root,
            [
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
                "--deduplicate",
            ],
        )?;
        for line in listing
            .split(|byte| *byte == 0)
            .filter(|line| !line.is_empty())
        {
            let path = relative_path(line)?;
            let from = self.root.join(&path);
            // A tracked file that was deleted is part of the change.
            let Ok(data) = from.symlink_metadata() else {
                continue;
            };
            let unreadable = || format!("cannot read {}", from.display());
            let (kind, content) = if data.is_symlink() {
                let target = std::fs::read_link(&from).or_environment(unreadable())?;
                (Kind::Symlink, target.into_os_string().into_encoded_bytes())
            } else if data.is_dir() {
                return Err(submodule(&path));
            } else {
                let kind = if is_executable(&data) {
                    Kind::Program
                } else {
                    Kind::File
                };
                (kind, std::fs::read(&from).or_environment(unreadable())?)
            };
            write_entry(&to.join(&path), kind, &content)?;
        }
        Ok(())
    }
}

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

/// A copy of the sources in a temporary directory.
#[derive(Debug)]
pub struct Snapshot {
    folder: tempfile::TempDir,
}

impl Snapshot {
    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns a snapshot of the files for which `keep` returns true; it gets the path relative to the root.
    ///
    /// # Errors
    /// When the files cannot be copied.
    pub fn filter(&self, keep: impl Fn(&Path) -> bool) -> Result<Self, Failure> {
        let folder = temporary_folder()?;
        let copy = || -> std::io::Result<()> {
            for entry in walkdir::WalkDir::new(self.path()) {
                let entry = entry?;
                let below = entry.path().strip_prefix(self.path());
                let below = below.map_err(std::io::Error::other)?;
                if entry.file_type().is_dir() || !keep(below) {
                    continue;
                }
                let to = folder.path().join(below);
                if let Some(parent) = to.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                // Hard links are safe because snapshots are read-only.
                std::fs::hard_link(entry.path(), to)?;
            }
            Ok(())
        };
        copy().or_environment("cannot copy the sources")?;
        Ok(Self { folder })
    }
}

fn temporary_folder() -> Result<tempfile::TempDir, Failure> {
    tempfile::Builder::new()
        .prefix("ci-source-")
        .tempdir()
        .or_environment("cannot create a directory for the sources")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Program,
    Symlink,
}

struct TreeEntry {
    kind: Kind,
    object: String,
    path: PathBuf,
}

impl TreeEntry {
    /// Parses `<mode> SP <type> SP <object> TAB <path>`.
    fn parse(line: &[u8]) -> Result<Self, Failure> {
        let invalid = || Failure::environment("cannot parse the output of git ls-tree");
        let tab = line
            .iter()
            .position(|byte| *byte == b'\t')
            .ok_or_else(invalid)?;
        let head = std::str::from_utf8(&line[..tab]).map_err(|_| invalid())?;
        let path = relative_path(&line[tab + 1..])?;
        let mut fields = head.split(' ');
        let kind = match fields.next() {
            Some("100755") => Kind::Program,
            Some("120000") => Kind::Symlink,
            Some("160000") => return Err(submodule(&path)),
            Some(_) => Kind::File,
            None => return Err(invalid()),
        };
        let object = fields.nth(1).ok_or_else(invalid)?.to_owned();
        Ok(Self { kind, object, path })
    }

    /// Reads the object through `git cat-file --batch`, which answers `<object> SP <type> SP <size> LF <content> LF`.
    fn read_from(
        &self,
        input: &mut impl Write,
        objects: &mut impl BufRead,
    ) -> std::io::Result<Vec<u8>> {
        writeln!(input, "{}", self.object)?;
        input.flush()?;
        let mut head = String::new();
        objects.read_line(&mut head)?;
        let size: u64 = head
            .trim_end()
            .rsplit(' ')
            .next()
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| std::io::Error::other(format!("git printed: {}", head.trim_end())))?;
        let mut content = Vec::new();
        objects.by_ref().take(size).read_to_end(&mut content)?;
        objects.read_until(b'\n', &mut Vec::new())?;
        if content.len() as u64 == size {
            Ok(content)
        } else {
            Err(std::io::ErrorKind::UnexpectedEof.into())
        }
    }
}

fn submodule(path: &Path) -> Failure {
    Failure::usage(format!("{} is a git submodule or another repository", path.display()))
        .hint("Vendor the files or depend on a released crate. Submodules are not supported, because a commit does not contain their files.")
}

#[cfg(unix)]
fn relative_path(bytes: &[u8]) -> Result<PathBuf, Failure> {
    use std::os::unix::ffi::OsStrExt;
    check_inside(PathBuf::from(OsStr::from_bytes(bytes)))
}

#[cfg(not(unix))]
fn relative_path(bytes: &[u8]) -> Result<PathBuf, Failure> {
    check_inside(PathBuf::from(String::from_utf8_lossy(bytes).into_owned()))
}

/// Rejects a path that leads out of the directory that the tree is written to. A forged tree can contain such paths.
fn check_inside(path: PathBuf) -> Result<PathBuf, Failure> {
    if path
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        Ok(path)
    } else {
        Err(Failure::usage(format!(
            "the commit contains a path outside of its tree: {}",
            path.display()
        )))
    }
}

fn write_entry(to: &Path, kind: Kind, content: &[u8]) -> Result<(), Failure> {
    let cannot = || format!("cannot write {}", to.display());
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).or_environment(cannot())?;
        set_mode(folder, 0o755).or_environment(cannot())?;
    }
    if kind == Kind::Symlink {
        return symlink(content, to).or_environment(cannot());
    }
    std::fs::write(to, content).or_environment(cannot())?;
    // Set explicitly, so that the umask has no effect.
    set_mode(to, if kind == Kind::Program { 0o755 } else { 0o644 }).or_environment(cannot())
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(unix)]
fn symlink(target: &[u8], to: &Path) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    std::os::unix::fs::symlink(OsStr::from_bytes(target), to)
}

#[cfg(unix)]
pub(crate) fn is_executable(data: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    data.permissions().mode() & 0o100 != 0
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) -> std::io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn symlink(_: &[u8], _: &Path) -> std::io::Result<()> {
    Err(std::io::Error::other("symbolic links need a Unix system"))
}

#[cfg(not(unix))]
pub(crate) fn is_executable(_: &std::fs::Metadata) -> bool {
    false
}

fn git_command<I, S>(directory: &Path, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::null());
    // Ignore the environment of a git hook, which may name another repository, and the replacements of `git replace`.
    for name in [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
    ]
    .iter()
    .chain(&provision::SECRETS)
    {
        command.env_remove(name);
    }
    command
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .env("GIT_OPTIONAL_LOCKS", "0")
        // There is no user to answer a prompt.
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C");
    command
}

fn git<I, S>(directory: &Path, arguments: I) -> Result<Vec<u8>, Failure>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = git_command(directory, arguments);
    let output = command.output().map_err(|error| {
        Failure::environment("cannot run git")
            .because(error)
            .hint("Install git. ci reads the commit and the sources with it.")
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let arguments: Vec<_> = command
        .get_args()
        .skip(2)
        .map(OsStr::to_string_lossy)
        .collect();
    Err(Failure::usage(format!("git {} failed", arguments.join(" "))).output(message))
}

fn git_text<I, S>(directory: &Path, arguments: I) -> Result<String, Failure>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let text = String::from_utf8(git(directory, arguments)?)
        .or_environment("the output of git is not UTF-8")?;
    Ok(text.trim_end_matches('\n').to_owned())
}
