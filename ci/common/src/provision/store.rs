//! The cache directory, and how something is built into it exactly once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::failure::{Failure, OrFail};
use crate::progress::Progress;

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
    #[cfg(unix)]
    only_ours(&root)?;
    Ok(root)
}

/// What lies in the cache is executed, often by root: nobody else may have a hand in it.
#[cfg(unix)]
fn only_ours(root: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::MetadataExt;
    let data = root
        .metadata()
        .or_environment(format!("cannot look at {}", root.display()))?;
    if data.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Failure::environment(format!(
            "the cache directory {} belongs to another user ({}), and what lies in it would be run",
            root.display(),
            data.uid()
        ))
        .hint(format!(
            "Name a directory of your own with {OVERRIDE}. Under sudo, `sudo -H` takes root's."
        )));
    }
    if data.mode() & 0o022 != 0 {
        return Err(Failure::environment(format!(
            "others can write to the cache directory {}, and what lies in it would be run",
            root.display()
        ))
        .hint(format!(
            "If nobody else has put anything into it: chmod go-w {}. Else name another with {OVERRIDE}.",
            root.display()
        )));
    }
    Ok(())
}

/// What this process uses of the cache: a shared lock each, held until the process ends.
static IN_USE: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());

/// Builds `dest` once: `build` gets a path that does not exist yet, and makes a file or a folder there; the folder that
/// it is in is the build's own, for all that is to vanish with it. Safe for several processes at once and when
/// interrupted at any moment: `dest` either does not exist or is whole, and what interrupted builds left is removed by
/// the next. It stays until this process ends, whatever [`remove_unused`] is asked for meanwhile.
///
/// # Errors
/// What `build` returns, and when the folder of `dest` cannot be written.
pub async fn once<B, F>(
    dest: &Path,
    narrator: &dyn Progress,
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
        if dest.exists() && at.hold(narrator, what).await? {
            return Ok(dest.to_owned());
        }
        in_use().remove(dest);
        let there = || dest.exists();
        let lock = locked(&at.lock, File::try_lock, there, narrator, what).await?;
        // Another process may have built it while this one waited.
        let (Some(lock), false) = (lock, there()) else {
            continue;
        };
        let build = build.take().ok_or_else(|| {
            Failure::environment(cannot()).hint("Somebody removes it; run again.")
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
            // This goes on when the future is dropped: until it has ended nobody may remove what it moves.
            let _until_then = (unfinished, lock);
            sync(&target)?;
            fs::rename(&target, &to)?;
            if let Some(folder) = to.parent() {
                File::open(folder)?.sync_all()?;
            }
            Ok(())
        })
        .await
        .or_environment("a background task was cancelled")?
        .or_environment(format!("cannot keep {}", dest.display()))?;
    }
}

/// Removes what [`once`] has built, unless somebody uses or builds it; returns the bytes that this has freed. What an
/// interrupted removal leaves is removed by the next.
///
/// # Errors
/// When it cannot be locked or removed.
pub fn remove_unused(dest: &Path) -> std::io::Result<Option<u64>> {
    let Some(at) = Place::of(dest) else {
        return Ok(None);
    };
    match File::create(&at.lock)?.try_lock() {
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
        Ok(()) => {}
    }
    discard(dest).map(Some)
}

/// Removes a file or folder so that it is whole under its name or not there, whatever interrupts this; returns the
/// bytes that this has freed.
///
/// # Errors
/// When it cannot be removed.
pub fn discard(path: &Path) -> std::io::Result<u64> {
    let Some(at) = Place::of(path) else {
        return Ok(0);
    };
    let bytes = size_of(path);
    let doomed = at.folder.join(format!("{}removed", at.unfinished));
    // What an interrupted removal has left.
    let _ = remove(&doomed);
    match fs::rename(path, &doomed) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        renamed => renamed?,
    }
    remove(&doomed)?;
    Ok(bytes)
}

/// Removes what interrupted builds and removals have left in a folder; returns the bytes that this has freed.
#[must_use]
pub fn remove_unfinished(folder: &Path) -> u64 {
    let mut freed = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some((of, _)) = name.split_once(UNFINISHED) else {
            continue;
        };
        // Whoever is at work on it has the lock.
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

/// Where something is built, and the names that go with it.
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

    /// Keeps it from being removed; not where it has been removed already.
    async fn hold(&self, narrator: &dyn Progress, what: &str) -> Result<bool, Failure> {
        let gone = || !self.dest.exists();
        if !in_use().contains_key(self.dest) {
            let shared = File::try_lock_shared;
            let Some(lock) = locked(&self.lock, shared, gone, narrator, what).await? else {
                return Ok(false);
            };
            in_use().insert(self.dest.to_owned(), lock);
        }
        Ok(!gone())
    }
}

fn in_use() -> MutexGuard<'static, BTreeMap<PathBuf, File>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
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
pub async fn lock(file: &Path, narrator: &dyn Progress, what: &str) -> Result<File, Failure> {
    locked(file, File::try_lock, || false, narrator, what)
        .await?
        .ok_or_else(|| Failure::environment(format!("cannot lock {}", file.display())))
}

/// A lock, unless it is not wanted any more.
async fn locked(
    file: &Path,
    take: impl Fn(&File) -> Result<(), fs::TryLockError>,
    unwanted: impl Fn() -> bool,
    narrator: &dyn Progress,
    what: &str,
) -> Result<Option<File>, Failure> {
    let cannot = || format!("cannot lock {}", file.display());
    let handle = File::create(file).or_environment(cannot())?;
    let begun = Instant::now();
    let mut told = false;
    loop {
        match take(&handle) {
            Ok(()) => return Ok(Some(handle)),
            Err(fs::TryLockError::WouldBlock) if unwanted() => return Ok(None),
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
            // What cannot be removed now is only in the way of the disk's space.
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
    use crate::progress::Silent;

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
    #[tokio::test]
    async fn a_build_that_is_dropped_while_it_is_being_kept_is_whole_or_not_there() {
        const FILES: usize = 200;
        for _ in 0..20 {
            let folder = tempfile::tempdir().expect("a folder");
            let dest = folder.path().join("thing");
            let built = tokio::sync::Notify::new();
            let one = once(&dest, &Silent, "the thing", async |target: PathBuf| {
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
            // Waits for what goes on.
            once(&dest, &Silent, "the thing", async |_| {
                Err(Failure::gate("it was not kept"))
            })
            .await
            .expect("nothing has removed it");
            assert_eq!(fs::read_dir(&dest).expect("a folder").count(), FILES);
        }
    }

    #[tokio::test]
    async fn what_is_in_use_stays_and_what_is_removed_is_built_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let dest = folder.path().join("thing");
        let build = async |target: PathBuf| {
            fs::write(target, "whole").expect("a file");
            Ok(())
        };
        once(&dest, &Silent, "the thing", build)
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
        once(&dest, &Silent, "the thing", build)
            .await
            .expect("built");
        assert!(dest.exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_others_can_write_to_is_no_cache() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        only_ours(folder.path()).expect("it is ours alone");
        for mode in [0o770, 0o702] {
            let open = fs::Permissions::from_mode(mode);
            fs::set_permissions(folder.path(), open).expect("rights");
            let failure = only_ours(folder.path()).expect_err("others can write to it");
            assert!(failure.hint.is_some_and(|hint| hint.contains("chmod")));
        }
        if !nix::unistd::geteuid().is_root() {
            assert!(only_ours(Path::new("/")).is_err(), "root's");
        }
    }
}
