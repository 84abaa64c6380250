//! An embedded engine for a benchmark, with an empty cache and with the programs and stand-ins that this machine already has.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Ci, Project};

/// A separate cache directory with its own engine. The engine is stopped on drop.
pub struct Engine {
    cache: PathBuf,
    programs: PathBuf,
    /// The cache directory of this user.
    user: PathBuf,
}

impl Engine {
    /// Creates the cache directory `cache`. Its path must be short, because it contains the engine's socket.
    pub fn new(cache: &Path) -> Self {
        let status = Ci::new(Path::new("/"), &["engine", "status", "--format", "json"]);
        let status: Value = serde_json::from_str(&status.run().exits(0).stdout).unwrap();
        let engine = PathBuf::from(status["folder"].as_str().unwrap());
        if !engine.join("bin").exists() {
            // Builds what a machine builds only once.
            let first = Project::new("bench-first");
            first.ci(&["scan", "--engine", "embedded"]).run().exits(0);
        }
        std::fs::create_dir_all(cache).unwrap();
        let programs = cache.join(engine.file_name().unwrap());
        std::fs::create_dir(&programs).unwrap();
        copy(&engine.join("bin"), &programs);
        let engine = Self {
            cache: cache.to_owned(),
            programs,
            user: engine.parent().unwrap().to_owned(),
        };
        for entry in engine.of_user() {
            let to = cache.join(entry.file_name().unwrap());
            if entry.is_dir() && !to.exists() {
                std::os::unix::fs::symlink(entry, to).unwrap();
            }
        }
        engine
    }

    /// The entries of the user's cache directory.
    fn of_user(&self) -> impl Iterator<Item = PathBuf> {
        let entries = std::fs::read_dir(&self.user).unwrap();
        entries.map(|entry| entry.unwrap().path())
    }

    /// Also copies the compiled cargo-auditable, which an ephemeral runner lacks.
    pub fn copy_tools(&self) {
        for tool in self.of_user().filter(|path| is_tool(path)) {
            // The engine does not follow links.
            copy(&tool, &self.cache);
        }
    }

    /// Gives the user a cargo-auditable that was compiled here, so that it is not compiled by each benchmark.
    pub fn share_tools(&self) {
        for entry in std::fs::read_dir(&self.cache).unwrap().flatten() {
            let to = self.user.join(entry.file_name());
            if is_tool(&entry.path()) && !to.exists() {
                let incomplete = tempfile::tempdir_in(&self.user).unwrap();
                copy(&entry.path(), incomplete.path());
                let complete = incomplete.path().join(entry.file_name());
                std::fs::rename(complete, to).unwrap();
            }
        }
    }

    /// A call of `ci` with this engine.
    pub fn ci(&self, folder: &Path, arguments: &[&str]) -> Ci {
        Ci::new(folder, arguments).env("LAB_CI_CACHE_DIR", self.cache.to_str().unwrap())
    }

    /// Stops the engine and empties its cache.
    pub fn reset(&self) {
        self.ci(Path::new("/"), &["engine", "down"]).run().exits(0);
        let _ = std::fs::remove_dir_all(self.programs.join("state"));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Without an assertion, as this may be part of unwinding.
        self.ci(Path::new("/"), &["engine", "down"]).run();
    }
}

fn is_tool(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.is_file() && name.starts_with("cargo-auditable-")
}

/// Copies a file or a directory to the directory `to`, or to a new path.
pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}
