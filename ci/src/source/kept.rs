//! The directory in which the sources of a working tree stay from run to run, so that a run writes, and uploads to the engine, only
//! what has changed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::digest::sha256;
use common::failure::{Failure, OrFail};
use common::provision;

/// How long the sources of a working tree stay after its last run.
const UNUSED: Duration = Duration::from_hours(24 * 30);

/// The kept sources of one working tree. No other process can use them until this is dropped.
#[derive(Debug)]
pub(super) struct Kept {
    files: PathBuf,
    index: PathBuf,
    _lock: File,
}

impl Kept {
    /// The sources of the working tree at `root`. `None` if another process uses them, or there is no place for them: a run can do
    /// without.
    pub(super) fn of(root: &Path) -> Option<Self> {
        match Self::find(root) {
            Ok(kept) => kept,
            Err(failure) => {
                tracing::debug!("cannot keep the sources: {failure}");
                None
            }
        }
    }

    fn find(root: &Path) -> Result<Option<Self>, Failure> {
        let all = provision::cache_root()?.join(provision::SOURCES);
        provision::create_private(&all)?;
        let id = sha256(root.as_os_str().as_encoded_bytes());
        let id: String = id.trim_start_matches("sha256:").chars().take(16).collect();
        sweep(&all, &id);
        let folder = all.join(id);
        let cannot = || format!("cannot use {}", folder.display());
        let Some(lock) = provision::try_hold(&folder).or_environment(cannot())? else {
            return Ok(None);
        };
        let files = folder.join("files");
        provision::create_private(&files)?;
        let root = root.as_os_str().as_encoded_bytes();
        fs::write(folder.join("root"), root).or_environment(cannot())?;
        // A killed run has left it.
        let _ = fs::remove_file(folder.join("index.lock"));
        Ok(Some(Self {
            files,
            index: folder.join("index"),
            _lock: lock,
        }))
    }

    /// The directory of the files.
    pub(super) fn files(&self) -> &Path {
        &self.files
    }

    /// The index of git that lists the files.
    pub(super) fn index(&self) -> &Path {
        &self.index
    }

    /// Removes the files.
    pub(super) fn clear(&self) {
        for path in [self.files(), self.index()] {
            if let Err(error) = provision::discard(path) {
                tracing::debug!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// Removes the sources of working trees that are gone or have not been used for long, except for that of `own`.
fn sweep(all: &Path, own: &str) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let folder = entry.path();
        if entry.file_name() == own || !folder.is_dir() {
            continue;
        }
        let note = folder.join("root");
        let Ok(root) = fs::read(&note) else { continue };
        let age = fs::metadata(&note).and_then(|data| data.modified());
        let age = age.ok().and_then(|time| time.elapsed().ok());
        let is_unused = age.is_some_and(|age| age > UNUSED);
        if (is_unused || !path_of(root).is_dir())
            && let Err(error) = provision::forget(&folder)
        {
            tracing::debug!("cannot remove {}: {error}", folder.display());
        }
    }
}

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> PathBuf {
    String::from_utf8_lossy(&bytes).into_owned().into()
}
