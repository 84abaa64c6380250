//! The sources that a run is about: which commit, clean or not, and exactly which bytes.
//!
//! A clean tree is read from the git objects of HEAD, so that nothing on the disk (an `assume-unchanged` edit, a
//! filter, an edit during the run) ships under a clean SHA. A dirty one is what git tracks or does not ignore.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use crate::model::image_name::{DirtyTag, Tag};
use common::failure::{ExitCode, Failure, OrFail};
use common::progress::Progress;
use common::provision;

/// The commit that HEAD names.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The full SHA.
    pub sha: String,
    /// The committer's time, in seconds since the epoch.
    pub time: i64,
}

/// The full SHA of a commit, as text that is nothing else: it cannot be an option of git's, or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sha(String);

impl Sha {
    /// Its text.
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

    /// 40 digits, or 64 in a repository with SHA-256.
    fn from_str(text: &str) -> Result<Self, Failure> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if matches!(text.len(), 40 | 64) && text.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Failure::usage("it is not the full SHA of a commit"))
        }
    }
}

/// Whether the working tree is HEAD's, and the tag that follows from it.
#[derive(Clone, Debug)]
pub enum State {
    /// Nothing is changed.
    Clean(Tag),
    /// Something is.
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

/// A git working tree with at least one commit.
#[derive(Clone, Debug)]
pub struct Checkout {
    /// The top of the working tree.
    pub root: PathBuf,
    /// HEAD.
    pub commit: Commit,
    /// Clean or dirty.
    pub state: State,
}

impl Checkout {
    /// Looks at the working tree that `directory` lies in.
    ///
    /// # Errors
    /// When git is missing (exit 3), or there is no working tree or no commit (exit 2).
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
            .hint("Run ci in a checkout; what it builds and publishes is named by its commit.")
        })?;
        let root = PathBuf::from(root);
        let sha = git_text(&root, ["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).map_err(
            |_| {
                Failure::usage(format!(
                    "the repository at {} has no commit yet",
                    root.display()
                ))
                .hint("Commit something first: git add . && git commit")
            },
        )?;
        // A tag or branch called like the short SHA changes nothing here: git is asked about the object.
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

    /// Whether nothing is changed against HEAD.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        matches!(self.state, State::Clean(_))
    }

    /// The same working tree, taken as it is on the disk.
    #[must_use]
    pub fn as_on_disk(self) -> Self {
        let state = match self.state {
            State::Clean(tag) => State::Dirty(tag.dirty()),
            dirty @ State::Dirty(_) => dirty,
        };
        Self { state, ..self }
    }

    /// Copies the sources into a folder of their own, which lives as long as the value that is returned.
    ///
    /// # Errors
    /// When an object or file cannot be read, or the tree holds what a build cannot take (a submodule).
    pub fn snapshot(&self) -> Result<Snapshot, Failure> {
        let folder = own_folder()?;
        match self.state {
            State::Clean(_) => self.copy_objects(folder.path())?,
            State::Dirty(_) => self.copy_files(folder.path())?,
        }
        Ok(Snapshot { folder })
    }

    /// Demands that a remote which is configured here has the commit; what they have is fetched, where it is not known yet.
    ///
    /// # Errors
    /// When none has it (exit 1), or no remote is configured (exit 2).
    pub fn require_on_a_remote(&self, sha: &Sha, narrator: &dyn Progress) -> Result<(), Failure> {
        let remotes = git_text(&self.root, ["remote"])?;
        let remotes: Vec<_> = remotes.lines().collect();
        if remotes.is_empty() {
            return Err(Failure::usage(format!(
                "the repository at {} has no remote, so that nothing says whose commit {sha} is",
                self.root.display()
            ))
            .hint("Add the one that the image was built from: git remote add origin URL"));
        }
        if self.is_on_a_remote(sha, &remotes)? {
            return Ok(());
        }
        let mut said = String::new();
        for remote in &remotes {
            narrator.notice(&format!(
                "commit {sha} is not known here yet: asking {remote}"
            ));
            if let Err(failure) = git(&self.root, ["fetch", "--quiet", "--no-tags", "--", remote]) {
                said.push_str(&format!(
                    "{remote}: {}\n",
                    failure.output.unwrap_or(failure.message)
                ));
            }
        }
        if self.is_on_a_remote(sha, &remotes)? {
            return Ok(());
        }
        let failure = Failure::gate(format!(
            "commit {sha}, which the image says it is of, is in no branch of {}",
            remotes.join(", ")
        ))
        .hint("The image is another repository's, its label was changed, or this clone is shallow: git fetch --unshallow");
        Err(if said.is_empty() {
            failure
        } else {
            failure.output(said)
        })
    }

    /// Whether git would take a file at this place for one of the sources: it lies in the working tree, and is not ignored.
    #[must_use]
    pub fn would_see(&self, file: &Path) -> bool {
        // By way of links and `..`, as far as there is something.
        let there = file.ancestors().find_map(|folder| {
            let rest = file.strip_prefix(folder).ok()?;
            Some(folder.canonicalize().ok()?.join(rest))
        });
        let file = there.as_deref().unwrap_or(file);
        let ask = [
            OsStr::new("check-ignore"),
            OsStr::new("--quiet"),
            OsStr::new("--no-index"),
            OsStr::new("--"),
            file.as_os_str(),
        ];
        file.starts_with(&self.root) && git(&self.root, ask).is_err()
    }

    fn is_on_a_remote(&self, sha: &Sha, remotes: &[&str]) -> Result<bool, Failure> {
        let there = ["cat-file", "-e", &format!("{sha}^{{commit}}")];
        if git(&self.root, there).is_err() {
            return Ok(false);
        }
        let mut ask = vec![
            "for-each-ref".to_owned(),
            "--format=%(refname)".to_owned(),
            format!("--contains={sha}"),
        ];
        ask.extend(
            remotes
                .iter()
                .map(|remote| format!("refs/remotes/{remote}/")),
        );
        Ok(!git(&self.root, ask)?.is_empty())
    }

    /// Checks `sha` out into `folder`, which does not exist yet; what is returned removes it again.
    ///
    /// # Errors
    /// When git cannot.
    pub fn worktree(&self, sha: &Sha, folder: &Path) -> Result<Worktree, Failure> {
        let add = [
            // A hook of this repository's is no part of the commit.
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
            of: self.root.clone(),
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
            return Err(Failure::environment("git has no standard streams"));
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
        let status = child.wait().or_environment("lost git")?;
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

/// A working tree of its own, with one commit checked out; it goes with this value.
#[derive(Debug)]
pub struct Worktree {
    of: PathBuf,
    folder: PathBuf,
}

impl Worktree {
    /// Its top.
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
        // What stays is pruned by git itself in time.
        if let Err(failure) = git(&self.of, remove) {
            tracing::warn!("{failure}");
        }
    }
}

/// The sources of a run in a folder of their own.
#[derive(Debug)]
pub struct Snapshot {
    folder: tempfile::TempDir,
}

impl Snapshot {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Those of the files that `keep` wants, each asked about by its path below the top.
    ///
    /// # Errors
    /// When they cannot be copied.
    pub fn only(&self, keep: impl Fn(&Path) -> bool) -> Result<Self, Failure> {
        let folder = own_folder()?;
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
                // Nobody writes into a snapshot: one file under two names will do.
                std::fs::hard_link(entry.path(), to)?;
            }
            Ok(())
        };
        copy().or_environment("cannot copy the sources")?;
        Ok(Self { folder })
    }
}

fn own_folder() -> Result<tempfile::TempDir, Failure> {
    tempfile::Builder::new()
        .prefix("ci-source-")
        .tempdir()
        .or_environment("cannot make a folder for the sources")
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
    /// `<mode> SP <type> SP <object> TAB <path>`.
    fn parse(line: &[u8]) -> Result<Self, Failure> {
        let strange = || Failure::environment("git ls-tree printed a line that is not an entry");
        let tab = line
            .iter()
            .position(|byte| *byte == b'\t')
            .ok_or_else(strange)?;
        let head = std::str::from_utf8(&line[..tab]).map_err(|_| strange())?;
        let path = relative_path(&line[tab + 1..])?;
        let mut fields = head.split(' ');
        let kind = match fields.next() {
            Some("100755") => Kind::Program,
            Some("120000") => Kind::Symlink,
            Some("160000") => return Err(submodule(&path)),
            Some(_) => Kind::File,
            None => return Err(strange()),
        };
        let object = fields.nth(1).ok_or_else(strange)?.to_owned();
        Ok(Self { kind, object, path })
    }

    /// One question and answer of `git cat-file --batch`: `<object> SP <type> SP <size> LF <content> LF`.
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
            .ok_or_else(|| std::io::Error::other(format!("git says: {}", head.trim_end())))?;
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
        .hint("Submodules are not part of the commit's own content; vendor the files or depend on a released crate.")
}

#[cfg(unix)]
fn relative_path(bytes: &[u8]) -> Result<PathBuf, Failure> {
    use std::os::unix::ffi::OsStrExt;
    inside(PathBuf::from(OsStr::from_bytes(bytes)))
}

#[cfg(not(unix))]
fn relative_path(bytes: &[u8]) -> Result<PathBuf, Failure> {
    inside(PathBuf::from(String::from_utf8_lossy(bytes).into_owned()))
}

/// A tree can be forged; its paths must not lead out of the folder that they are written to.
fn inside(path: PathBuf) -> Result<PathBuf, Failure> {
    if path
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        Ok(path)
    } else {
        Err(Failure::usage(format!(
            "the commit holds a path that leads out of it: {}",
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
    // Explicit, so that the umask changes nothing.
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
    // The repository is the one around `directory`, whatever a hook's environment says; and a commit is what its
    // SHA says, whatever `git replace` was told.
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
        // Nobody is there to answer.
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
            .hint("Install git: the commit names what is built.")
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let words: Vec<_> = command
        .get_args()
        .skip(2)
        .map(OsStr::to_string_lossy)
        .collect();
    Err(Failure::usage(format!("git {} failed", words.join(" "))).output(said))
}

fn git_text<I, S>(directory: &Path, arguments: I) -> Result<String, Failure>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let text = String::from_utf8(git(directory, arguments)?)
        .or_environment("git printed what is not UTF-8")?;
    Ok(text.trim_end_matches('\n').to_owned())
}
