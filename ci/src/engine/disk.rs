//! The limit of the disk space that an engine on this machine uses for its cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytesize::ByteSize;
use nix::sys::statvfs::statvfs;
use serde_json::json;

use common::failure::{Failure, OrFail};
use common::provision::{cache_root, create_private};

/// The environment variable that changes the limit.
pub(crate) const VARIABLE: &str = "LAB_CI_ENGINE_DISK";
/// The default limit, unless [`DEFAULT_SHARE`] of the disk is more.
const DEFAULT: ByteSize = ByteSize::gb(10);
/// In percent of the disk.
const DEFAULT_SHARE: u64 = 10;
/// The smallest limit: the images of the steps alone take almost two gigabytes.
const SMALLEST: ByteSize = ByteSize::gb(3);
/// The part of the limit that the engine counts, in percent. It does not count the compressed layers of the images that it has
/// pulled: 0.4 GB for the stand-ins.
const COUNTED: u64 = 85;
/// The space that the engine leaves free, unless [`DEFAULT_SHARE`] of the disk is less. On a large disk that is almost full, a
/// share alone would remove the whole cache after each run.
const FREE: ByteSize = ByteSize::gb(10);

/// The size of a disk, in bytes.
pub(crate) struct Space {
    total: u64,
    /// What this user can still write.
    pub(crate) available: u64,
}

impl Space {
    /// Reads the size of the disk that contains `folder`.
    pub(crate) fn of(folder: &Path) -> nix::Result<Self> {
        let disk = statvfs(folder)?;
        let bytes = |blocks| wide(blocks).saturating_mul(wide(disk.fragment_size()));
        Ok(Self {
            total: bytes(disk.blocks()),
            available: bytes(disk.blocks_available()),
        })
    }
}

/// The integer types of `statvfs` differ between systems.
fn wide(number: impl Into<u64>) -> u64 {
    number.into()
}

/// The largest size of an engine's cache. The engine removes the least recently used entries, at the latest a minute after a
/// session, and at once if the disk is almost full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskLimit {
    /// 10 GB, or 10 % of the disk if that is more.
    Default,
    Size(ByteSize),
    /// In percent of the disk.
    Share(u64),
}

impl DiskLimit {
    /// Reads the limit from [`VARIABLE`].
    ///
    /// # Errors
    /// When the value is neither a size nor a percentage (exit code 2).
    pub(crate) fn from_env() -> Result<Self, Failure> {
        match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => text.parse(),
            _ => Ok(Self::Default),
        }
    }

    /// The limit for a cache on the disk of `folder`, in bytes.
    ///
    /// # Errors
    /// When the size of the disk cannot be read (exit code 3).
    pub(crate) fn bytes(self, folder: &Path) -> Result<u64, Failure> {
        Ok(self.of_disk(total(folder)?))
    }

    fn is_allowed(self) -> bool {
        match self {
            Self::Default => true,
            Self::Size(size) => size >= SMALLEST,
            Self::Share(percent) => (1..=90).contains(&percent),
        }
    }

    fn of_disk(self, total: u64) -> u64 {
        let share = |percent| total / 100 * percent;
        match self {
            Self::Default => share(DEFAULT_SHARE).max(DEFAULT.as_u64()),
            Self::Size(size) => size.as_u64(),
            Self::Share(percent) => share(percent).max(SMALLEST.as_u64()),
        }
    }

    /// The settings of an engine whose cache is on the disk of `folder`, for its `engine.json`.
    ///
    /// # Errors
    /// When the size of the disk cannot be read (exit code 3).
    pub(super) fn engine_json(self, folder: &Path) -> Result<String, Failure> {
        let total = total(folder)?;
        Ok(settings(
            self.of_disk(total) / 100 * COUNTED,
            free_on(total),
        ))
    }
}

/// The size of the disk of `folder`, in bytes.
fn total(folder: &Path) -> Result<u64, Failure> {
    let space = Space::of(folder);
    let space =
        space.or_environment(format!("cannot read the disk size of {}", folder.display()))?;
    Ok(space.total)
}

/// The space that an engine leaves free on a disk of this size, in bytes.
#[must_use]
pub fn free_on(total: u64) -> u64 {
    (total / 100 * DEFAULT_SHARE).min(FREE.as_u64())
}

/// One policy for everything. The engine's default policies would also remove cache volumes that were not used for two days.
fn settings(max_used: u64, min_free: u64) -> String {
    let settings = json!({
        "logLevel": "warn",
        "gc": {
            "policies": [{
                "all": true,
                "maxUsedSpace": max_used,
                "minFreeSpace": min_free,
            }],
        },
    });
    format!("{settings:#}\n")
}

impl FromStr for DiskLimit {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let limit = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().map(Self::Share),
            None => text.parse().ok().map(Self::Size),
        };
        limit.filter(|limit| limit.is_allowed()).ok_or_else(|| {
            Failure::usage(format!("{VARIABLE} is `{text}`, which is not a disk limit")).hint(format!(
                "Set {VARIABLE} to a size of at least 3GB, such as 20GB, or to 1% to 90% of the disk."
            ))
        })
    }
}

/// A directory for `XDG_CONFIG_HOME`, from which Dagger's CLI takes the settings of an engine that it starts in a container
/// runtime: the user's own settings with the limit added. `None` if the user has an `engine.json`.
///
/// # Errors
/// When the directory cannot be written (exit code 3), or [`VARIABLE`] is invalid (exit code 2).
pub(super) fn config_home() -> Result<Option<PathBuf>, Failure> {
    let limit = DiskLimit::from_env()?;
    let users = users_config_home();
    if let Some(users) = &users
        && users.join("dagger/engine.json").exists()
    {
        return Ok(None);
    }
    let root = cache_root()?;
    let home = root.join("engine-config");
    let cannot = || format!("cannot write {}", home.display());
    // The runtime has the file mounted, so it is changed in place.
    create_private(&home.join("dagger"))?;
    fs::write(home.join("dagger/engine.json"), limit.engine_json(&root)?)
        .or_environment(cannot())?;
    if let Some(users) = users {
        // The CLI's runtime reads its own settings from there, and the CLI the user's CA certificates.
        link_entries(&users, &home).or_environment(cannot())?;
        link_entries(&users.join("dagger"), &home.join("dagger")).or_environment(cannot())?;
    }
    Ok(Some(home))
}

/// Creates a link in `to` for each entry of `from` that does not exist there.
fn link_entries(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let link = to.join(entry.file_name());
        match std::os::unix::fs::symlink(entry.path(), link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Where Dagger's CLI looks for the user's settings.
fn users_config_home() -> Option<PathBuf> {
    if let Some(home) = std::env::var_os("XDG_CONFIG_HOME").filter(|home| !home.is_empty()) {
        return Some(home.into());
    }
    let home = PathBuf::from(std::env::var_os("HOME")?);
    Some(if cfg!(target_os = "macos") {
        home.join("Library/Application Support")
    } else {
        home.join(".config")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_ten_gigabytes_or_a_tenth_of_the_disk() {
        let default = DiskLimit::Default;
        assert_eq!(default.of_disk(50_000_000_000), 10_000_000_000);
        assert_eq!(default.of_disk(500_000_000_000), 50_000_000_000);
    }

    #[test]
    fn at_most_ten_gigabytes_stay_free() {
        assert_eq!(free_on(50_000_000_000), 5_000_000_000);
        assert_eq!(free_on(500_000_000_000), 10_000_000_000);
    }

    #[test]
    fn parses_sizes_and_shares() {
        for (text, bytes) in [
            ("20GB", 20_000_000_000),
            ("4 GiB", 4 << 30),
            ("15%", 15_000_000_000),
            ("1%", 3_000_000_000),
        ] {
            let limit: DiskLimit = text.parse().unwrap();
            assert_eq!(limit.of_disk(100_000_000_000), bytes, "{text}");
        }
        for text in ["", "much", "10", "2GB", "0%", "95%", "-1GB", "GB"] {
            let failure = text.parse::<DiskLimit>().unwrap_err();
            assert!(failure.hint.unwrap().contains(VARIABLE), "{text}");
        }
    }

    #[test]
    fn links_only_missing_entries() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["containers", "dagger"] {
            fs::create_dir(from.path().join(name)).unwrap();
        }
        fs::create_dir(to.path().join("dagger")).unwrap();
        for _ in 0..2 {
            link_entries(from.path(), to.path()).unwrap();
        }
        assert!(to.path().join("containers").is_symlink());
        assert!(!to.path().join("dagger").is_symlink());
        link_entries(&from.path().join("absent"), to.path()).unwrap();
    }
}
