//! Where the settings come from, to load them again while the service runs.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{problem::Problems, settings::Settings};

/// The file, if there is one, and the environment of the process.
#[derive(Debug)]
pub struct Source {
    file: Option<PathBuf>,
    /// The version of the file that was loaded last.
    loaded: Option<Version>,
    /// Another version, which was seen once.
    seen: Option<Version>,
}

/// Identifies the content of a file: its device, inode, size, and time of modification in seconds and nanoseconds. Symbolic links
/// are followed, so that a link to another file is another version, as after an update of a ConfigMap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version([i128; 5]);

impl Source {
    /// The file at `path`, if there is one, and the environment.
    #[must_use]
    pub const fn new(path: Option<PathBuf>) -> Self {
        Self {
            file: path,
            loaded: None,
            seen: None,
        }
    }

    /// The file, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Loads the settings.
    ///
    /// # Errors
    /// Returns every problem of the file and of the environment.
    pub fn load(&mut self) -> Result<Settings, Problems> {
        // Before reading: a change in between is noticed later.
        self.loaded = self.version();
        self.seen = None;
        Settings::load(self.file(), &|name| env::var_os(name))
    }

    /// Whether the file has changed since it was loaded, and not since the last call: programs that do not replace a file write it
    /// in parts.
    pub fn has_changed(&mut self) -> bool {
        // Without a version, the file is missing, which is often only for a moment.
        let current = self.version();
        let new = current.filter(|_| current != self.loaded);
        let settled = new.is_some() && new == self.seen;
        self.seen = new;
        settled
    }

    fn version(&self) -> Option<Version> {
        let file = fs::metadata(self.file()?).ok()?;
        Some(Version([
            file.dev().into(),
            file.ino().into(),
            file.size().into(),
            file.mtime().into(),
            file.mtime_nsec().into(),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn notices_each_change_once_it_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // The layout of a ConfigMap: api.toml -> ..data/api.toml, ..data -> one
        for (version, text) in [("one", "title = \"1\""), ("two", "title = \"2\"")] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("api.toml"), text).unwrap();
        }
        symlink("one", path("..data")).unwrap();
        symlink("..data/api.toml", path("api.toml")).unwrap();
        let mut source = Source::new(Some(path("api.toml")));
        assert_eq!(source.load().unwrap().title, "1");
        assert!(!source.has_changed());
        assert!(!source.has_changed());

        symlink("two", path("..new")).unwrap();
        fs::rename(path("..new"), path("..data")).unwrap();
        assert!(!source.has_changed());
        assert!(source.has_changed());
        assert_eq!(source.load().unwrap().title, "2");
        assert!(!source.has_changed());

        // A file that is written in place, and one that is missing for a moment.
        fs::write(path("two/api.toml"), "title = \"three\"").unwrap();
        assert!(!source.has_changed());
        fs::write(path("two/api.toml"), "title = \"three or four\"").unwrap();
        assert!(!source.has_changed());
        fs::rename(path("two"), path("gone")).unwrap();
        assert!(!source.has_changed());
        fs::rename(path("gone"), path("two")).unwrap();
        assert!(!source.has_changed());
        assert!(source.has_changed());
        assert_eq!(source.load().unwrap().title, "three or four");
    }

    #[test]
    fn environment_alone_does_not_change() {
        let mut source = Source::new(None);
        assert!(source.load().is_ok());
        assert!(!source.has_changed());
        assert!(!source.has_changed());
    }
}
