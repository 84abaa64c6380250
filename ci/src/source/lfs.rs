//! Replaces the pointers of Git LFS by their files, and rejects filters that `ci` cannot apply.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::git::{git, git_text};
use common::digest;
use common::failure::{Failure, OrFail};
use common::progress::Progress;

/// The first line of a [pointer](https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
const VERSION: &str = "version https://git-lfs.github.com/spec/v1";
/// Longer files are no pointers, according to the same specification.
const LONGEST: u64 = 1024;

/// A file with an attribute `filter`.
#[derive(Debug)]
pub(super) struct Filtered {
    /// The path, relative to the root.
    pub path: PathBuf,
    /// The value of the attribute.
    pub filter: String,
}

/// A pointer to a file in Git LFS.
#[derive(Debug, PartialEq, Eq)]
struct Pointer {
    /// The SHA-256 of the file, in hexadecimal digits.
    oid: String,
}

/// Applies the filters of these files of the repository at `root`, which were written to `folder` without any.
///
/// # Errors
/// When a file needs another filter than Git LFS, or a file of Git LFS is neither on this machine nor can be fetched (exit code 2).
pub(super) fn apply(
    root: &Path,
    folder: &Path,
    filtered: &[Filtered],
    progress: &dyn Progress,
) -> Result<(), Failure> {
    reject_other_filters(root, filtered)?;
    let mut pointers = BTreeMap::new();
    for file in filtered.iter().filter(|file| file.filter == "lfs") {
        if let Some(pointer) = Pointer::read(&folder.join(&file.path))? {
            pointers.insert(file.path.clone(), pointer);
        }
    }
    if pointers.is_empty() {
        return Ok(());
    }
    let store = store(root)?;
    let is_missing = |pointer: &Pointer| !store.join(pointer.place()).is_file();
    let missing = pointers.values().filter(|it| is_missing(it)).count();
    if missing > 0 {
        progress.notice(&format!("fetching {missing} files from Git LFS"));
        // Whatever fails, the missing files are reported below.
        if let Err(failure) = git(root, ["lfs", "fetch"]) {
            tracing::debug!("git lfs fetch: {failure}");
        }
    }
    for (path, pointer) in &pointers {
        if is_missing(pointer) {
            return Err(Failure::usage(format!(
                "{} is in Git LFS (filter lfs), and its content is neither on this machine nor can be fetched",
                path.display()
            ))
            .output(format!("oid sha256:{}", pointer.oid))
            .hint("Install git-lfs and run `git lfs fetch`. On GitHub, set `lfs: true` at actions/checkout."));
        }
        replace(&folder.join(path), &store.join(pointer.place()), pointer)?;
    }
    Ok(())
}

/// Rejects filters that change a file's content with a program of this machine.
fn reject_other_filters(root: &Path, filtered: &[Filtered]) -> Result<(), Failure> {
    let mut known: BTreeMap<&str, bool> = BTreeMap::new();
    for Filtered { path, filter } in filtered {
        if filter == "lfs" {
            continue;
        }
        let needed = *known.entry(filter).or_insert_with(|| {
            let setting = |name: &str| {
                let key = format!("filter.{filter}.{name}");
                git_text(root, ["config", "--get", &key]).unwrap_or_default()
            };
            !setting("smudge").is_empty()
                || !setting("process").is_empty()
                || matches!(&*setting("required"), "true" | "yes" | "on" | "1")
        });
        if needed {
            return Err(Failure::usage(format!(
                "{} needs the git filter {filter}, which ci cannot apply",
                path.display()
            ))
            .hint("Commit the file as it is, or remove its attribute `filter` from .gitattributes. Of all filters, ci only knows Git LFS."));
        }
    }
    Ok(())
}

/// The directory with the files of Git LFS.
fn store(root: &Path) -> Result<PathBuf, Failure> {
    let common = root.join(git_text(root, ["rev-parse", "--git-common-dir"])?);
    let configured = git_text(root, ["config", "--get", "lfs.storage"]).unwrap_or_default();
    let base = match &*configured {
        "" => common.join("lfs"),
        path => common.join(path),
    };
    Ok(base.join("objects"))
}

/// Replaces a pointer by its file.
fn replace(pointer_file: &Path, from: &Path, pointer: &Pointer) -> Result<(), Failure> {
    let cannot = || format!("cannot write {}", pointer_file.display());
    let found =
        digest::sha256_of_file(from).or_environment(format!("cannot read {}", from.display()))?;
    if found != format!("sha256:{}", pointer.oid) {
        return Err(Failure::environment(format!(
            "{} is damaged: its content has digest {found}",
            from.display()
        ))
        .hint("Delete the file and run `git lfs fetch`."));
    }
    let permissions = std::fs::metadata(pointer_file)
        .or_environment(cannot())?
        .permissions();
    std::fs::copy(from, pointer_file).or_environment(cannot())?;
    std::fs::set_permissions(pointer_file, permissions).or_environment(cannot())
}

impl Pointer {
    /// Reads a file; `None` if it is not a pointer, as a file that was committed without Git LFS.
    fn read(file: &Path) -> Result<Option<Self>, Failure> {
        let cannot = || format!("cannot read {}", file.display());
        if std::fs::metadata(file).or_environment(cannot())?.len() > LONGEST {
            return Ok(None);
        }
        let content = std::fs::read(file).or_environment(cannot())?;
        Ok(std::str::from_utf8(&content).ok().and_then(Self::parse))
    }

    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(VERSION)?;
        let oid = rest
            .lines()
            .find_map(|line| line.strip_prefix("oid sha256:"))?;
        let is_hex = oid.len() == 64 && oid.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| Self {
            oid: oid.to_owned(),
        })
    }

    /// The path of the file in the store.
    fn place(&self) -> PathBuf {
        let (first, rest) = self.oid.split_at(2);
        let (second, _) = rest.split_at(2);
        [first, second, &self.oid].iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pointers() {
        let oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
        let text = format!("{VERSION}\noid sha256:{oid}\nsize 12345\n");
        let pointer = Pointer::parse(&text).unwrap();
        assert_eq!(pointer.oid, oid);
        assert_eq!(pointer.place(), Path::new("4d/7a").join(oid));
        for other in ["", "text", &text.replace(oid, "../../etc/passwd")] {
            assert_eq!(Pointer::parse(other), None, "{other}");
        }
    }
}
