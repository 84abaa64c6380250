//! The cache directory, and builds in it that run only once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::failure::{Failure, OrFail};
use crate::progress::Progress;

/// The environment variable that sets the cache directory: an absolute path.
const OVERRIDE: &str = "LAB_CI_CACHE_DIR";
/// The directory, in the cache directory, with the sources that runs keep for the next run of the same working tree.
pub const SOURCES: &str = "sources";
/// Part of the name of an unfinished build's directory.
const UNFINISHED: &str = ".unfinished-";

/// Returns the directory for everything that `ci` builds or downloads: `LAB_CI_CACHE_DIR`, or `infrastructure-lab-ci` in the
/// user's cache directory. If it does not exist, it is created with access for this user only.
///
/// # Errors
/// When the directory is unknown, unsafe or cannot be created (exit code 3), or `LAB_CI_CACHE_DIR` is invalid (exit code 2).
pub fn cache_root() -> Result<PathBuf, Failure> {
    let root = match std::env::var_os(OVERRIDE).filter(|value| !value.is_empty()) {
        Some(given) => {
            let given = PathBuf::from(given);
            if !given.is_absolute() {
                return Err(Failure::usage(format!(
                    "{OVERRIDE} must be an absolute path, not {}",
                    given.display()
                )));
            }
            given
        }
        None => directories::BaseDirs::new()
            .map(|user| user.cache_dir().join("infrastructure-lab-ci"))
            .ok_or_else(|| {
                Failure::environment(
                    "cannot find a cache directory: this user has no home directory",
                )
                .hint(format!("Set HOME, or set {OVERRIDE} to a directory."))
            })?,
    };
    create_private(&root)?;
    #[cfg(unix)]
    check_owner(&root)?;
    Ok(root)
}

/// Rejects a directory that another user can write to, because programs in it are executed, often as root.
#[cfg(unix)]
fn check_owner(root: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::MetadataExt;
    let data = root
        .metadata()
        .or_environment(format!("cannot read the metadata of {}", root.display()))?;
    if data.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Failure::environment(format!(
            "unsafe cache directory {}, from which programs are run: it belongs to another user ({})",
            root.display(),
            data.uid()
        ))
        .hint(format!(
            "Set {OVERRIDE} to a directory that you own. With sudo, use `sudo -H` for root's cache directory."
        )));
    }
    if data.mode() & 0o022 != 0 {
        return Err(Failure::environment(format!(
            "unsafe cache directory {}, from which programs are run: others can write to it",
            root.display()
        ))
        .hint(format!(
            "Run `chmod go-w {}` if nobody else has written to it. Otherwise set {OVERRIDE} to another directory.",
            root.display()
        )));
    }
    Ok(())
}

/// The cache entries that this process uses, each with a shared lock that is held until the process ends.
static IN_USE: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());

/// Builds `dest` unless it exists. `build` gets a path that does not exist yet and creates a file or a directory there; it may
/// put temporary files next to it. `dest` is complete or does not exist, even with concurrent processes and interrupted builds,
/// whose leftovers the next build removes. [`remove_unused`] keeps `dest` until this process ends.
///
/// # Errors
/// When `build` fails, or the directory of `dest` cannot be written (exit code 3).
pub async fn build_once<B, F>(
    dest: &Path,
    progress: &dyn Progress,
    what: &str,
    build: B,
) -> Result<PathBuf, Failure>
where
    B: FnOnce(PathBuf) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    let cannot = || format!("cannot prepare {}", dest.display());
    let Some(at) = Place::of(dest) else {
        return Err(Failure::environment(cannot()));
    };
    create_private(at.folder)?;
    let mut build = Some(build);
    loop {
        if dest.exists() && at.hold(progress, what).await? {
            return Ok(dest.to_owned());
        }
        in_use().remove(dest);
        let exists = || dest.exists();
        let lock = locked(&at.lock, File::try_lock, exists, progress, what).await?;
        // Another process may have built it in the meantime.
        let (Some(lock), false) = (lock, exists()) else {
            continue;
        };
        let build = build.take().ok_or_else(|| {
            Failure::environment(cannot()).hint("Run again; another process has removed it.")
        })?;
        remove_with_prefix(at.folder, &at.unfinished);
        let unfinished = tempfile::Builder::new()
            .prefix(&at.unfinished)
            .tempdir_in(at.folder)
            .or_environment(cannot())?;
        let target = unfinished.path().join(&at.name);
        build(target.clone()).await?;
        let to = dest.to_owned();
        tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            // This continues when the future is dropped: keep both until it has finished.
            let _guards = (unfinished, lock);
            sync(&target)?;
            fs::rename(&target, &to)?;
            if let Some(folder) = to.parent() {
                File::open(folder)?.sync_all()?;
            }
            Ok(())
        })
        .await
        .or_environment("a background task was cancelled")?
        .or_environment(format!("cannot save {}", dest.display()))?;
    }
}

/// Removes the result of [`build_once`] and returns the number of freed bytes, or `None` if a process uses or builds it. The next
/// removal finishes an interrupted one.
///
/// # Errors
/// When `dest` cannot be locked or removed.
pub fn remove_unused(dest: &Path) -> std::io::Result<Option<u64>> {
    match try_hold(dest)? {
        None => Ok(None),
        Some(_lock) => discard(dest).map(Some),
    }
}

/// Protects `dest` from other processes that use it, and from its removal, until the returned lock is dropped. `None` if another process
/// uses it.
///
/// # Errors
/// When the lock cannot be created.
pub fn try_hold(dest: &Path) -> std::io::Result<Option<File>> {
    let Some(at) = Place::of(dest) else {
        return Ok(None);
    };
    let lock = File::create(&at.lock)?;
    match lock.try_lock() {
        // Another process may have removed the file meanwhile, as `forget` does.
        Ok(()) => Ok(is_at(&lock, &at.lock).then_some(lock)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Removes `dest` with its lock, for one that is not used again. Does nothing if a process uses it.
///
/// # Errors
/// When `dest` cannot be locked or removed.
pub fn forget(dest: &Path) -> std::io::Result<()> {
    let (Some(at), Some(_lock)) = (Place::of(dest), try_hold(dest)?) else {
        return Ok(());
    };
    discard(dest)?;
    fs::remove_file(at.lock)
}

/// Whether this is the file at `path`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |data: fs::Metadata| (data.dev(), data.ino());
    let (opened, there) = (file.metadata().map(id), fs::metadata(path).map(id));
    matches!((opened, there), (Ok(opened), Ok(there)) if opened == there)
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Removes a file or directory atomically: after an interruption, `path` is complete or does not exist. Returns the number of
/// freed bytes.
///
/// # Errors
/// When `path` cannot be removed.
pub fn discard(path: &Path) -> std::io::Result<u64> {
    let Some(at) = Place::of(path) else {
        return Ok(0);
    };
    let bytes = size_of(path);
    let removed = at.folder.join(format!("{}removed", at.unfinished));
    // The leftovers of an interrupted removal.
    let _ = remove(&removed);
    match fs::rename(path, &removed) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        renamed => renamed?,
    }
    remove(&removed)?;
    Ok(bytes)
}

/// Removes the leftovers of interrupted builds and removals in a directory, and returns the number of freed bytes.
#[must_use]
pub fn remove_unfinished(folder: &Path) -> u64 {
    let mut freed = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some((of, _)) = name.split_once(UNFINISHED) else {
            continue;
        };
        // A running build holds the lock.
        let lock = File::create(folder.join(format!("{of}.lock")));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            let bytes = size_of(&entry.path());
            if remove(&entry.path()).is_ok() {
                freed += bytes;
            }
        }
    }
    freed
}

/// The destination of a build, with the names of its lock and its temporary directory.
struct Place<'a> {
    dest: &'a Path,
    folder: &'a Path,
    name: String,
    lock: PathBuf,
    unfinished: String,
}

impl<'a> Place<'a> {
    fn of(dest: &'a Path) -> Option<Self> {
        let (folder, name) = (dest.parent()?, dest.file_name()?.to_string_lossy());
        Some(Self {
            dest,
            folder,
            lock: folder.join(format!(".{name}.lock")),
            unfinished: format!(".{name}{UNFINISHED}"),
            name: name.into_owned(),
        })
    }

    /// Protects the destination from removal. Returns false if it has already been removed.
    async fn hold(&self, progress: &dyn Progress, what: &str) -> Result<bool, Failure> {
        let removed = || !self.dest.exists();
        if !in_use().contains_key(self.dest) {
            let shared = File::try_lock_shared;
            let Some(lock) = locked(&self.lock, shared, removed, progress, what).await? else {
                return Ok(false);
            };
            in_use().insert(self.dest.to_owned(), lock);
        }
        Ok(!removed())
    }
}

fn in_use() -> MutexGuard<'static, BTreeMap<PathBuf, File>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the disk usage of a file, or of a directory and everything below it, in bytes.
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

/// Waits for the exclusive lock on `file`. The lock is released when the returned file is dropped or this process ends.
///
/// # Errors
/// When the lock file cannot be opened or locked (exit code 3).
pub async fn lock(file: &Path, progress: &dyn Progress, what: &str) -> Result<File, Failure> {
    locked(file, File::try_lock, || false, progress, what)
        .await?
        .ok_or_else(|| Failure::environment(format!("cannot lock {}", file.display())))
}

/// Waits for a lock until `unwanted` returns true.
async fn locked(
    file: &Path,
    take: impl Fn(&File) -> Result<(), fs::TryLockError>,
    unwanted: impl Fn() -> bool,
    progress: &dyn Progress,
    what: &str,
) -> Result<Option<File>, Failure> {
    let cannot = || format!("cannot lock {}", file.display());
    let handle = File::create(file).or_environment(cannot())?;
    let begun = Instant::now();
    let mut reported = false;
    loop {
        match take(&handle) {
            Ok(()) => return Ok(Some(handle)),
            Err(fs::TryLockError::WouldBlock) if unwanted() => return Ok(None),
            Err(fs::TryLockError::WouldBlock) => {
                // Most waits are short and not worth a message.
                if !reported && begun.elapsed() > Duration::from_secs(1) {
                    progress.notice(&format!("waiting for another ci process: {what}"));
                    reported = true;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(fs::TryLockError::Error(error)) => return Err(error).or_environment(cannot()),
        }
    }
}

/// Creates a directory and its parents with access for this user only.
///
/// # Errors
/// When the directory cannot be created (exit code 3).
pub fn create_private(folder: &Path) -> Result<(), Failure> {
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
            // A failed removal only costs disk space.
            let _ = remove(&entry.path());
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

/// Writes everything at `path` to the disk before it returns.
#[cfg(target_os = "linux")]
fn sync(path: &Path) -> std::io::Result<()> {
    // One call for the file system is faster than one for each of ten thousand files.
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
    use crate::progress::Silent;

    #[tokio::test]
    async fn concurrent_builds_build_only_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let dest = folder.path().join("deep/thing");
        let built = AtomicUsize::new(0);
        let one = || {
            build_once(&dest, &Silent, "the thing", async |target: PathBuf| {
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
    async fn interrupted_build_leaves_no_result() {
        let folder = tempfile::tempdir().expect("a folder");
        let dest = folder.path().join("thing");
        // The leftovers of a killed process: an unfinished directory and an unlocked lock file.
        fs::create_dir(folder.path().join(".thing.unfinished-killed")).expect("a folder");
        fs::write(folder.path().join(".thing.lock"), "").expect("a file");
        let slow = build_once(&dest, &Silent, "the thing", async |target: PathBuf| {
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

        let failing = build_once(&dest, &Silent, "the thing", async |_| {
            Err(Failure::gate("no"))
        })
        .await;
        assert!(failing.is_err() && !dest.exists());

        build_once(&dest, &Silent, "the thing", async |target: PathBuf| {
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

    #[tokio::test]
    async fn build_that_is_dropped_while_it_is_saved_is_complete_or_absent() {
        const FILES: usize = 200;
        for _ in 0..5 {
            let folder = tempfile::tempdir().expect("a folder");
            let dest = folder.path().join("thing");
            let built = tokio::sync::Notify::new();
            let one = build_once(&dest, &Silent, "the thing", async |target: PathBuf| {
                fs::create_dir(&target).expect("a new folder");
                for number in 0..FILES {
                    fs::write(target.join(number.to_string()), "x").expect("a file");
                }
                built.notify_one();
                Ok(())
            });
            tokio::select! {
                biased;
                done = one => drop(done.expect("built")),
                () = built.notified() => {}
            }
            // Waits for the background task.
            build_once(&dest, &Silent, "the thing", async |_| {
                Err(Failure::gate("it was not saved"))
            })
            .await
            .expect("the dropped build was saved");
            assert_eq!(fs::read_dir(&dest).expect("a folder").count(), FILES);
        }
    }

    #[tokio::test]
    async fn keeps_entries_in_use_and_rebuilds_removed_entries() {
        let folder = tempfile::tempdir().expect("a folder");
        let dest = folder.path().join("thing");
        let build = async |target: PathBuf| {
            fs::write(target, "whole").expect("a file");
            Ok(())
        };
        build_once(&dest, &Silent, "the thing", build)
            .await
            .expect("built");
        assert_eq!(remove_unused(&dest).expect("locked"), None);
        assert!(dest.exists());
        // As if this process had ended.
        in_use().remove(&dest);
        fs::create_dir(folder.path().join(".thing.unfinished-killed")).expect("a folder");
        fs::write(folder.path().join(".thing.unfinished-killed/x"), "x").expect("a file");
        assert!(
            remove_unused(&dest)
                .expect("removed")
                .is_some_and(|bytes| bytes > 0)
        );
        assert!(!dest.exists());
        assert!(remove_unfinished(folder.path()) > 0);
        build_once(&dest, &Silent, "the thing", build)
            .await
            .expect("built");
        assert!(dest.exists());
    }

    #[cfg(unix)]
    #[test]
    fn rejects_cache_directory_that_others_can_write_to() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        check_owner(folder.path()).expect("it is ours alone");
        for mode in [0o770, 0o702] {
            let open = fs::Permissions::from_mode(mode);
            fs::set_permissions(folder.path(), open).expect("rights");
            let failure = check_owner(folder.path()).expect_err("others can write to it");
            assert!(failure.hint.is_some_and(|hint| hint.contains("chmod")));
        }
        if !nix::unistd::geteuid().is_root() {
            assert!(check_owner(Path::new("/")).is_err(), "root's");
        }
    }

    #[test]
    fn a_lock_that_was_removed_protects_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dest = folder.path().join("dest");
        fs::create_dir(&dest).unwrap();
        let held = try_hold(&dest).unwrap();
        assert!(held.is_some() && try_hold(&dest).unwrap().is_none());
        forget(&dest).unwrap();
        assert!(dest.exists());
        let lock = held.unwrap();
        let at = folder.path().join(".dest.lock");
        assert!(is_at(&lock, &at));
        // Unlocked first, because a child process of another test may have inherited the open file.
        lock.unlock().unwrap();
        drop(lock);
        forget(&dest).unwrap();
        assert!(!dest.exists() && !at.exists());
    }
}
