//! The cache directory, and how something is built into it exactly once.

use std::fs::{self, File};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::failure::{Failure, OrFail};
use crate::narrator::Narrator;

/// Names another cache directory; has to be an absolute path.
const OVERRIDE: &str = "LAB_CI_CACHE_DIR";
/// Marks what an unfinished build has written.
const UNFINISHED: &str = ".unfinished-";

/// Everything that `ci` builds or downloads for itself lies here: `infrastructure-lab-ci` in the user's cache
/// directory, or what `LAB_CI_CACHE_DIR` says. It is created where it does not exist, for this user only.
///
/// # Errors
/// When it is neither given nor known, or cannot be created.
pub fn cache_root() -> Result<PathBuf, Failure> {
    let root = match std::env::var_os(OVERRIDE).filter(|value| !value.is_empty()) {
        Some(given) => {
            let given = PathBuf::from(given);
            if !given.is_absolute() {
                return Err(Failure::usage(format!(
                    "{OVERRIDE} has to be an absolute path, not {}",
                    given.display()
                )));
            }
            given
        }
        None => directories::BaseDirs::new()
            .map(|user| user.cache_dir().join("infrastructure-lab-ci"))
            .ok_or_else(|| {
                Failure::environment("this user has no home directory to keep a cache in")
                    .hint(format!("Set HOME, or name a directory with {OVERRIDE}."))
            })?,
    };
    create_private(&root)?;
    Ok(root)
}

/// Builds `dest` once: `build` gets a path that does not exist yet, in the same folder, and makes a file or a folder
/// there. Safe for several processes at once and when interrupted at any moment: `dest` either does not exist or is
/// whole, and what interrupted builds left is removed by the next.
///
/// # Errors
/// What `build` returns, and when the folder of `dest` cannot be written.
pub async fn once<B, F>(
    dest: &Path,
    narrator: &dyn Narrator,
    what: &str,
    build: B,
) -> Result<PathBuf, Failure>
where
    B: FnOnce(PathBuf) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    if dest.exists() {
        return Ok(dest.to_owned());
    }
    let cannot = || format!("cannot prepare {}", dest.display());
    let (Some(folder), Some(name)) = (dest.parent(), dest.file_name()) else {
        return Err(Failure::environment(cannot()));
    };
    let name = name.to_string_lossy();
    create_private(folder)?;
    let _lock = lock(&folder.join(format!(".{name}.lock")), narrator, what).await?;
    // Another process may have built it while this one waited.
    if dest.exists() {
        return Ok(dest.to_owned());
    }
    let prefix = format!(".{name}{UNFINISHED}");
    remove_with_prefix(folder, &prefix);
    let unfinished = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(folder)
        .or_environment(cannot())?;
    let target = unfinished.path().join(name.as_ref());
    build(target.clone()).await?;
    let dest = dest.to_owned();
    let (from, to) = (target, dest.clone());
    tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        sync(&from)?;
        fs::rename(&from, &to)?;
        if let Some(folder) = to.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    })
    .await
    .or_environment("a background task was cancelled")?
    .or_environment(format!("cannot keep {}", dest.display()))?;
    Ok(dest)
}

/// The bytes that a file, or everything in a folder, takes on the disk.
#[must_use]
pub fn size_of(path: &Path) -> u64 {
    let Ok(data) = path.symlink_metadata() else {
        return 0;
    };
    #[cfg(unix)]
    let own = std::os::unix::fs::MetadataExt::blocks(&data) * 512;
    #[cfg(not(unix))]
    let own = data.len();
    if !data.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| size_of(&entry.path())).sum::<u64>()
}

/// Takes the lock in `file`, waiting for whoever has it; it is free again when the returned file is dropped, and when
/// this process ends in whatever way.
pub(crate) async fn lock(
    file: &Path,
    narrator: &dyn Narrator,
    what: &str,
) -> Result<File, Failure> {
    let cannot = || format!("cannot lock {}", file.display());
    let handle = File::create(file).or_environment(cannot())?;
    let begun = Instant::now();
    let mut told = false;
    loop {
        match handle.try_lock() {
            Ok(()) => return Ok(handle),
            Err(fs::TryLockError::WouldBlock) => {
                // Most waits end at once and are nobody's business.
                if !told && begun.elapsed() > Duration::from_secs(1) {
                    narrator.notice(&format!(
                        "waiting for another ci that is at work on: {what}"
                    ));
                    told = true;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(fs::TryLockError::Error(error)) => return Err(error).or_environment(cannot()),
        }
    }
}

/// Creates a folder, and those above it, that only this user can look into.
pub(crate) fn create_private(folder: &Path) -> Result<(), Failure> {
    if folder.is_dir() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .create(folder)
        .or_environment(format!("cannot create {}", folder.display()))
}

fn remove_with_prefix(folder: &Path, prefix: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            // What cannot be removed now is only in the way of the disk's space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Everything at `path` is on the disk when this returns.
#[cfg(target_os = "linux")]
fn sync(path: &Path) -> std::io::Result<()> {
    // One call for the whole file system is quicker than one for each of ten thousand files.
    nix::unistd::syncfs(File::open(path)?)?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn sync(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            sync(&entry?.path())?;
        }
    }
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::narrator::Silent;

    #[tokio::test]
    async fn many_at_once_build_one_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let dest = folder.path().join("deep/thing");
        let built = AtomicUsize::new(0);
        let one = || {
            once(&dest, &Silent, "the thing", async |target: PathBuf| {
                built.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
                fs::create_dir(&target).expect("a new folder");
                fs::write(target.join("file"), "whole").expect("a file");
                Ok(())
            })
        };
        let (a, b, c) = tokio::join!(one(), one(), one());
        for path in [a, b, c] {
            let path = path.expect("it was built");
            assert_eq!(
                fs::read_to_string(path.join("file")).expect("whole"),
                "whole"
            );
        }
        assert_eq!(built.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_interrupted_build_leaves_nothing_that_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let dest = folder.path().join("thing");
        // What a killed process leaves: its half-built folder, and a lock file that nobody holds.
        fs::create_dir(folder.path().join(".thing.unfinished-killed")).expect("a folder");
        fs::write(folder.path().join(".thing.lock"), "").expect("a file");
        let slow = once(&dest, &Silent, "the thing", async |target: PathBuf| {
            fs::write(target, "half").expect("a file");
            std::future::pending::<()>().await;
            Ok(())
        });
        assert!(
            tokio::time::timeout(Duration::from_millis(100), slow)
                .await
                .is_err()
        );
        assert!(!dest.exists());

        let failing = once(&dest, &Silent, "the thing", async |_| {
            Err(Failure::gate("no"))
        })
        .await;
        assert!(failing.is_err() && !dest.exists());

        once(&dest, &Silent, "the thing", async |target: PathBuf| {
            fs::write(target, "whole").expect("a file");
            Ok(())
        })
        .await
        .expect("built at last");
        assert_eq!(fs::read_to_string(&dest).expect("whole"), "whole");
        let left: Vec<_> = fs::read_dir(folder.path())
            .expect("the folder")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains(UNFINISHED))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
