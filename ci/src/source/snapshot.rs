//! The files of a run in a directory of their own, as git writes them with its default configuration.
//!
//! Attributes of the repository that determine a file's content alone (`eol`, `ident`, `working-tree-encoding`) apply, and settings of
//! this machine do not: the files are the same everywhere. git itself writes them, through a temporary repository that has no
//! settings and borrows the objects of the real one. The files of a dirty tree pass through its objects too, so that they follow the
//! same rules. The files of submodules are part of the tree: of a clean one, those of the commit that it refers to; of a dirty one,
//! those on the disk.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use super::git::{git, git_command, git_text, output_of};
use super::kept::Kept;
use super::lfs::{self, Filtered};
use super::submodules::{self, Link, Missing};
use common::failure::{Failure, OrFail};
use common::progress::Progress;
use common::scratch;

/// What a snapshot contains.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tree<'a> {
    /// The files of a commit.
    Commit(&'a str),
    /// The files of the working tree that git tracks or does not ignore, and those that a sparse checkout left out.
    OnDisk,
}

/// Where the files of a snapshot are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a directory of this run.
    Temporary,
    /// Where the previous run of the same working tree has left them, if no other run uses them.
    Kept,
}

#[derive(Debug)]
enum Folder {
    Temporary(tempfile::TempDir),
    Kept(Kept),
}

/// A copy of the sources.
#[derive(Debug)]
pub struct Snapshot {
    folder: Folder,
    missing: Vec<Missing>,
}

impl Snapshot {
    /// Writes the files of `tree` in the repository at `root`, and those of its submodules.
    ///
    /// # Errors
    /// When an object or a file cannot be read (exit code 3), a filter cannot be applied, or the tree contains another repository
    /// or a forged path (exit code 2).
    pub(super) fn new(
        root: &Path,
        tree: Tree<'_>,
        place: Place,
        progress: &dyn Progress,
    ) -> Result<Self, Failure> {
        if place == Place::Kept
            && let Some(kept) = Kept::of(root)
        {
            match update(root, tree, &kept, progress) {
                Ok(true) => {
                    return Ok(Self {
                        folder: Folder::Kept(kept),
                        missing: Vec::new(),
                    });
                }
                Ok(false) => {}
                Err(failure) => {
                    tracing::debug!("cannot update the kept sources: {failure}");
                    kept.clear();
                }
            }
        }
        let folder = temporary_folder()?;
        let mut missing = Vec::new();
        write_tree(root, tree, folder.path(), &mut missing, progress)?;
        for submodule in &mut missing {
            submodule.make_relative_to(folder.path());
        }
        Ok(Self {
            folder: Folder::Temporary(folder),
            missing,
        })
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        match &self.folder {
            Folder::Temporary(folder) => folder.path(),
            Folder::Kept(kept) => kept.files(),
        }
    }

    /// Returns the submodules whose files are missing, because they are not checked out.
    #[must_use]
    pub fn missing(&self) -> &[Missing] {
        &self.missing
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
                if std::fs::hard_link(entry.path(), &to).is_err() {
                    // On another file system.
                    copy_file(&entry, &to)?;
                }
            }
            Ok(())
        };
        copy().or_environment("cannot copy the sources")?;
        Ok(Self {
            folder: Folder::Temporary(folder),
            missing: self.missing.clone(),
        })
    }
}

/// Copies a file or a symbolic link.
fn copy_file(from: &walkdir::DirEntry, to: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    if from.path_is_symlink() {
        return std::os::unix::fs::symlink(std::fs::read_link(from.path())?, to);
    }
    std::fs::copy(from.path(), to).map(drop)
}

/// Makes the kept files those of a tree in the repository at `root`. Returns false if the tree has submodules, whose files only
/// [`write_tree`] can write.
fn update(
    root: &Path,
    tree: Tree<'_>,
    kept: &Kept,
    progress: &dyn Progress,
) -> Result<bool, Failure> {
    let borrower = Borrower::new(root)?;
    let (tree, entries) = borrower.list(tree, progress)?;
    if entries.iter().any(|it| matches!(it.kind, Kind::Link(_))) {
        return Ok(false);
    }
    let (files, index) = (kept.files(), kept.index().display().to_string());
    borrower.write(&index, &tree, &entries, files, progress)?;
    // Files without an entry in the index.
    let clean = ["clean", "-ffdx", "--quiet"];
    borrower.git(&index, files, &clean, Vec::new())?;
    Ok(true)
}

/// Writes the files of a tree in the repository at `root`, and those of its submodules, to the directory `to`. Adds the submodules
/// that are missing, with their paths below `to`.
fn write_tree(
    root: &Path,
    tree: Tree<'_>,
    to: &Path,
    missing: &mut Vec<Missing>,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let borrower = Borrower::new(root)?;
    let on_disk = matches!(tree, Tree::OnDisk);
    let (tree, entries) = borrower.list(tree, progress)?;
    borrower.write(WRITTEN, &tree, &entries, to, progress)?;
    for link in entries.into_iter().filter_map(TreeEntry::into_link) {
        let below = to.join(&link.path);
        let Some(found) = submodules::find(root, &link, on_disk) else {
            missing.push(Missing::new(below, root, &link, to));
            continue;
        };
        let tree = if found.in_place {
            Tree::OnDisk
        } else {
            Tree::Commit(&link.commit)
        };
        write_tree(&found.repository, tree, &below, missing, progress).map_err(|mut failure| {
            let name = link.path.display();
            failure.message = format!("in submodule {name}: {}", failure.message);
            failure
        })?;
    }
    Ok(())
}

fn temporary_folder() -> Result<tempfile::TempDir, Failure> {
    scratch::folder().or_environment("cannot create a directory for the sources")
}

/// A temporary repository without settings that borrows the objects of another one.
struct Borrower<'a> {
    root: &'a Path,
    folder: tempfile::TempDir,
    /// The index of the other repository.
    index: PathBuf,
    /// Whether that index is in two files.
    is_index_split: bool,
}

impl<'a> Borrower<'a> {
    fn new(root: &'a Path) -> Result<Self, Failure> {
        let describe = [
            "rev-parse",
            "--show-object-format",
            "--git-path",
            "objects",
            "--git-path",
            "index",
            // Prints nothing if the index is one file.
            "--shared-index-path",
        ];
        let described = git_text(root, describe)?;
        let mut lines = described.lines();
        let (Some(format), Some(objects), Some(index)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(Failure::environment(
                "git did not print the paths of its objects and of its index",
            ));
        };
        let borrower = Self {
            root,
            folder: temporary_folder()?,
            index: root.join(index),
            is_index_split: lines.next().is_some(),
        };
        borrower
            .create(format, &root.join(objects))
            .or_environment("cannot prepare a copy of the sources")?;
        Ok(borrower)
    }

    /// Creates the repository, as <https://git-scm.com/docs/gitrepository-layout> describes it.
    fn create(&self, format: &str, objects: &Path) -> std::io::Result<()> {
        let directory = self.git_dir();
        let config = format!(
            "[core]\n\trepositoryFormatVersion = 1\n[extensions]\n\tobjectFormat = {format}\n"
        );
        std::fs::create_dir_all(directory.join("objects/info"))?;
        std::fs::create_dir(directory.join("refs"))?;
        std::fs::write(directory.join("HEAD"), "ref: refs/heads/main\n")?;
        std::fs::write(directory.join("config"), config)?;
        std::fs::write(
            directory.join("objects/info/alternates"),
            format!("{}\n", objects.display()),
        )
    }

    fn git_dir(&self) -> PathBuf {
        self.folder.path().join(".git")
    }

    /// Runs git in the temporary repository with one of its index files and a working tree.
    fn git(
        &self,
        index: &str,
        work_tree: &Path,
        arguments: &[&str],
        input: Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        let mut command = git_command(self.root, std::iter::empty::<&str>());
        command
            .arg("--git-dir")
            .arg(self.git_dir())
            .arg("--work-tree")
            .arg(work_tree)
            // The stored files of the working tree are read only once, so compressing them would not pay.
            .args(["-c", "core.looseCompression=0"])
            .args(arguments)
            .env("GIT_INDEX_FILE", self.git_dir().join(index));
        without_settings(&mut command);
        output_of(command, input)
    }

    /// The commit or tree of git that has these files, and its entries.
    fn list(
        &self,
        tree: Tree<'_>,
        progress: &dyn Progress,
    ) -> Result<(String, Vec<TreeEntry>), Failure> {
        let tree = match tree {
            Tree::Commit(sha) => sha.to_owned(),
            Tree::OnDisk => self.tree_on_disk()?,
        };
        self.fetch_missing(&tree, progress)?;
        let entries = self.entries(&tree)?;
        Ok((tree, entries))
    }

    /// Stores the files of the working tree, and returns their tree.
    fn tree_on_disk(&self) -> Result<String, Failure> {
        let index = "index-on-disk";
        self.copy_index(index)?;
        let listing = git(
            self.root,
            [
                "ls-files",
                "-z",
                "-v",
                "--cached",
                "--others",
                "--exclude-standard",
            ],
        )?;
        let mut paths = Vec::new();
        let mut assumed = Vec::new();
        let mut replaced = Vec::new();
        let mut links = None;
        for line in nul_separated(&listing) {
            let (Some(tag), Some(path)) = (line.first(), line.get(2..)) else {
                continue;
            };
            // `S` marks files that are not checked out, and a small letter those whose changes git is configured to ignore.
            if tag.eq_ignore_ascii_case(&b'S') {
                continue;
            }
            if tag.is_ascii_lowercase() {
                assumed.extend_from_slice(path);
                assumed.push(0);
            }
            let relative = relative_path(path)?;
            if self
                .root
                .join(&relative)
                .symlink_metadata()
                .is_ok_and(|data| data.is_dir())
            {
                // git lists a repository that it does not track with a slash.
                if path.ends_with(b"/") {
                    return Err(other_repository(&relative));
                }
                let links: &Vec<_> = match &mut links {
                    Some(links) => links,
                    none => none.insert(self.links_in_the_index()?),
                };
                // A submodule stays, and a file that a directory has replaced goes.
                if !links.contains(&relative) {
                    replaced.extend_from_slice(path);
                    replaced.push(0);
                }
                continue;
            }
            paths.extend_from_slice(path);
            paths.push(0);
        }
        if !assumed.is_empty() {
            let forget = ["update-index", "--no-assume-unchanged", "-z", "--stdin"];
            self.git(index, self.root, &forget, assumed)?;
        }
        if !replaced.is_empty() {
            let remove = ["update-index", "--force-remove", "-z", "--stdin"];
            self.git(index, self.root, &remove, replaced)?;
        }
        if !paths.is_empty() {
            let store = [
                "update-index",
                "--add",
                "--remove",
                "--replace",
                "-z",
                "--stdin",
            ];
            self.git(index, self.root, &store, paths)?;
        }
        let tree = self.git(
            index,
            self.root,
            &["write-tree", "--missing-ok"],
            Vec::new(),
        )?;
        Ok(String::from_utf8_lossy(&tree).trim().to_owned())
    }

    /// The paths of the submodules in the repository's index.
    fn links_in_the_index(&self) -> Result<Vec<PathBuf>, Failure> {
        let staged = git(self.root, ["ls-files", "-z", "--stage"])?;
        nul_separated(&staged)
            .filter(|line| line.starts_with(b"160000 "))
            .filter_map(|line| line.splitn(2, |byte| *byte == b'\t').nth(1))
            .map(relative_path)
            .collect()
    }

    /// Copies the repository's index, whose times tell git which files are unchanged.
    fn copy_index(&self, index: &str) -> Result<(), Failure> {
        let to = self.git_dir().join(index);
        if !self.is_index_split {
            match copy_with_time(&self.index, &to) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => {
                    return Err(Failure::environment("cannot read the index of git").because(error));
                }
            }
        }
        // The other part of a split index would be missing. Without times, git reads every file.
        let staged = git(self.root, ["ls-files", "-z", "--stage"])?;
        let fill = ["update-index", "-z", "--index-info"];
        self.git(index, self.root, &fill, staged).map(drop)
    }

    /// Fetches the objects that a partial clone lacks, all at once.
    fn fetch_missing(&self, tree: &str, progress: &dyn Progress) -> Result<(), Failure> {
        // git fails if no such setting exists.
        let Ok(promisors) = git_text(
            self.root,
            ["config", "--get-regexp", r"^remote\..*\.promisor$", "true"],
        ) else {
            return Ok(());
        };
        let Some(remote) = promisors
            .lines()
            .next()
            .and_then(|line| line.split(' ').next())
            .and_then(|key| key.strip_prefix("remote.")?.strip_suffix(".promisor"))
        else {
            return Ok(());
        };
        let tree = format!("{tree}^{{tree}}");
        // A clone without trees learns which blobs it lacks only from the trees.
        let mut before = Vec::new();
        loop {
            let list = ["rev-list", "--objects", "--missing=print", &tree];
            let objects = self.git("unused", self.root, &list, Vec::new())?;
            let objects = String::from_utf8_lossy(&objects);
            let missing: Vec<_> = objects
                .lines()
                .filter_map(|line| line.strip_prefix('?').map(ToOwned::to_owned))
                .collect();
            if missing.is_empty() || missing == before {
                return Ok(());
            }
            progress.notice(&format!(
                "this clone is partial: fetching {} missing objects from {remote}",
                missing.len()
            ));
            self.fetch(remote, &missing)?;
            before = missing;
        }
    }

    fn fetch(&self, remote: &str, objects: &[String]) -> Result<(), Failure> {
        let fetch = [
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--recurse-submodules=no",
            "--filter=blob:none",
            "--stdin",
            remote,
        ];
        let input = objects.join("\n") + "\n";
        output_of(git_command(self.root, fetch), input.into_bytes())
            .map(drop)
            .map_err(|failure| {
                Failure::environment(format!(
                    "cannot fetch the missing objects of this partial clone from {remote}"
                ))
                .output(failure.output.unwrap_or(failure.message))
                .hint("Check the network and the credentials for the remote.")
            })
    }

    fn entries(&self, tree: &str) -> Result<Vec<TreeEntry>, Failure> {
        let list = ["ls-tree", "-r", "-z", "--full-tree", tree];
        let listing = self.git("unused", self.root, &list, Vec::new())?;
        nul_separated(&listing).map(TreeEntry::parse).collect()
    }

    /// Writes the files to a directory, except for those that `index` describes as they are.
    fn write(
        &self,
        index: &str,
        tree: &str,
        entries: &[TreeEntry],
        to: &Path,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        // The change of a mode or a hard link is no change of the content.
        let write = [
            "-c",
            "core.trustctime=false",
            "read-tree",
            "--reset",
            "-u",
            tree,
        ];
        self.git(index, to, &write, Vec::new()).map_err(|failure| {
            Failure::environment("git cannot write the files of the sources")
                .output(failure.output.unwrap_or(failure.message))
                .hint("Run `git fsck` to find damaged objects, and free some disk space.")
        })?;
        for entry in entries {
            entry.set_mode(to)?;
        }
        let filtered = self.filtered(index, entries)?;
        lfs::apply(self.root, to, &filtered, progress)
    }

    /// The files with an attribute `filter`.
    fn filtered(&self, index: &str, entries: &[TreeEntry]) -> Result<Vec<Filtered>, Failure> {
        let has_attributes = entries
            .iter()
            .any(|entry| entry.path.file_name() == Some(OsStr::new(".gitattributes")));
        if !has_attributes {
            return Ok(Vec::new());
        }
        let mut paths = Vec::new();
        let is_file = |entry: &&TreeEntry| matches!(entry.kind, Kind::File | Kind::Program);
        for entry in entries.iter().filter(is_file) {
            paths.extend_from_slice(entry.path.as_os_str().as_encoded_bytes());
            paths.push(0);
        }
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let check = ["check-attr", "--cached", "-z", "--stdin", "filter"];
        let answers = self.git(index, self.folder.path(), &check, paths)?;
        let mut fields = nul_separated(&answers);
        let mut filtered = Vec::new();
        while let (Some(path), Some(_), Some(value)) = (fields.next(), fields.next(), fields.next())
        {
            if !matches!(value, b"unspecified" | b"unset" | b"set") {
                filtered.push(Filtered {
                    path: relative_path(path)?,
                    filter: String::from_utf8_lossy(value).into_owned(),
                });
            }
        }
        Ok(filtered)
    }
}

/// Copies an index with its modification time. git reads files again that are as new as the index, because their times, in seconds,
/// do not tell whether they were edited since.
fn copy_with_time(from: &Path, to: &Path) -> std::io::Result<()> {
    let time = std::fs::metadata(from)?.modified()?;
    std::fs::copy(from, to)?;
    std::fs::File::options()
        .write(true)
        .open(to)?
        .set_modified(time)
}

/// The index of the files that were written.
const WRITTEN: &str = "index-written";

/// Makes git ignore the settings and attributes of this machine and its user.
fn without_settings(command: &mut Command) {
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
        // The default is below the user's home.
        .env("XDG_CONFIG_HOME", "/dev/null");
}

fn nul_separated(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split(|byte| *byte == 0)
        .filter(|part| !part.is_empty())
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Program,
    Symlink,
    /// A submodule at this commit.
    Link(String),
}

struct TreeEntry {
    kind: Kind,
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
        let mut head = head.split(' ');
        let kind = match head.next() {
            Some("100755") => Kind::Program,
            Some("120000") => Kind::Symlink,
            Some("160000") => Kind::Link(head.nth(1).ok_or_else(invalid)?.to_owned()),
            Some(_) => Kind::File,
            None => return Err(invalid()),
        };
        Ok(Self { kind, path })
    }

    /// Returns the submodule, if it is one.
    fn into_link(self) -> Option<Link> {
        match self.kind {
            Kind::Link(commit) => Some(Link {
                path: self.path,
                commit,
            }),
            Kind::File | Kind::Program | Kind::Symlink => None,
        }
    }

    /// Sets the modes of the file and its directory, so that the umask has no effect.
    fn set_mode(&self, below: &Path) -> Result<(), Failure> {
        let mode = match self.kind {
            Kind::File => 0o644,
            Kind::Program | Kind::Link(_) => 0o755,
            Kind::Symlink => return Ok(()),
        };
        let file = below.join(&self.path);
        let cannot = || format!("cannot write {}", file.display());
        set_mode(&file, mode).or_environment(cannot())?;
        let folders = self.path.ancestors().skip(1);
        for folder in folders.filter(|folder| !folder.as_os_str().is_empty()) {
            set_mode(&below.join(folder), 0o755).or_environment(cannot())?;
        }
        Ok(())
    }
}

fn other_repository(path: &Path) -> Failure {
    // Git lists it with a slash at its end.
    let path: PathBuf = path.components().collect();
    let path = path.display();
    Failure::usage(format!(
        "{path} is another git repository, which this one does not track"
    ))
    .hint(format!(
        "Add it to .gitignore, or make it a submodule with `git submodule add URL {path}`."
    ))
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

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let data = std::fs::metadata(path)?;
    if data.permissions().mode() & 0o7777 == mode {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
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
pub(crate) fn is_executable(_: &std::fs::Metadata) -> bool {
    false
}
