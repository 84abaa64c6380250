//! Temporary directories. Each process keeps its own below one directory. If the process is killed, the next one removes that
//! directory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

/// The beginning of the names of the processes' directories.
const PREFIX: &str = "ci-run-";
/// The lock that a process holds while it uses its directory.
const LOCK: &str = "lock";
/// A directory without a lock may be about to get one, unless it is older.
const GRACE: Duration = Duration::from_mins(10);

/// The directory of this process.
struct Home {
    path: PathBuf,
    _lock: File,
}

static HOME: Mutex<Option<Home>> = Mutex::new(None);

/// Creates a temporary directory, which is removed when it is dropped.
///
/// # Errors
/// When the directory cannot be created.
pub fn folder() -> io::Result<TempDir> {
    let mut home = HOME.lock().unwrap_or_else(PoisonError::into_inner);
    let home = match &mut *home {
        Some(home) => home,
        none => none.insert(Home::create(&std::env::temp_dir())?),
    };
    TempDir::new_in(&home.path)
}

/// Removes the directory of this process. Call this at its end.
pub fn clean() {
    let mut home = HOME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(home) = home.take() {
        // The next process tries again.
        let _ = std::fs::remove_dir_all(&home.path);
    }
}

impl Home {
    fn create(below: &Path) -> io::Result<Self> {
        sweep(below);
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(below)?
            .keep();
        // Locked before it has its name, so that no other process finds it unlocked.
        let unnamed = path.join("lock.new");
        let lock = File::create(&unnamed)?;
        lock.lock()?;
        std::fs::rename(&unnamed, path.join(LOCK))?;
        Ok(Self { path, _lock: lock })
    }
}

/// Removes the directories of processes that were killed. Ignores those that it cannot remove: they may belong to another user.
fn sweep(below: &Path) {
    let Ok(entries) = std::fs::read_dir(below) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_ours && is_abandoned(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn is_abandoned(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        // The lock is released at once; a process never locks a directory again.
        Ok(lock) => lock.try_lock().is_ok(),
        Err(_) => std::fs::metadata(folder)
            .and_then(|data| data.modified())
            .is_ok_and(|time| {
                SystemTime::now()
                    .duration_since(time)
                    .is_ok_and(|age| age > GRACE)
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_what_a_killed_process_left_and_nothing_else() {
        let below = tempfile::tempdir().unwrap();
        let alive = Home::create(below.path()).unwrap();
        let killed = Home::create(below.path()).unwrap();
        std::fs::write(killed.path.join("file"), "").unwrap();
        let left = killed.path.clone();
        // A killed process releases its lock and removes nothing. Unlocked first, because a child process of another test may
        // have inherited the open file.
        killed._lock.unlock().unwrap();
        drop(killed);
        std::fs::create_dir(below.path().join("ci-run-new")).unwrap();
        std::fs::create_dir(below.path().join("other")).unwrap();
        sweep(below.path());
        assert!(!left.exists());
        for kept in [
            &alive.path,
            &below.path().join("ci-run-new"),
            &below.path().join("other"),
        ] {
            assert!(kept.exists(), "{}", kept.display());
        }
    }
}
