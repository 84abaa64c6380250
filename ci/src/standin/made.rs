//! Builds a stand-in image once and keeps it in the cache directory.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use dagger_sdk::{Container, DaggerConn};
use sha2::{Digest, Sha256};

use crate::image::archive::{self, Compression, ImageConfig, Platform};
use common::failure::{Failure, OrFail};
use common::file_tree;
use common::progress::Progress;
use common::provision;

/// How long stand-ins with other inputs are kept, because users switch between branches.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const IMAGE: &str = "image.tar";

/// A stand-in image: an OCI archive on this host. It is an archive and not a directory, because the engine compares each file of a
/// directory with its copy in each session: a second for the ten thousand files of a toolchain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandIn {
    /// For reports: `rust`, `trivy`, `crane`.
    pub name: &'static str,
    /// The path of the archive.
    pub archive: PathBuf,
    /// The digest of the image.
    pub digest: String,
}

impl StandIn {
    /// Creates a container from the image.
    #[must_use]
    pub fn container(&self, client: &DaggerConn) -> Container {
        let archive = client.host().file(self.archive.display().to_string());
        client.container().import(archive)
    }
}

/// Builds a root file system and writes it to an archive, unless the archive exists already. `env` are the environment variables
/// that the real image sets.
pub(super) async fn keep<B, F>(
    name: &'static str,
    folder: &str,
    what: &str,
    env: &[(&str, &str)],
    progress: &dyn Progress,
    build: B,
) -> Result<StandIn, Failure>
where
    B: FnOnce(PathBuf) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    let config = ImageConfig {
        env: env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        platform: Platform::here(),
        ..ImageConfig::default()
    };
    let kept = keep_folder(
        &format!("{name}-"),
        folder,
        what,
        progress,
        |target| async move {
            std::fs::create_dir_all(&target).or_environment("cannot create a directory")?;
            // Next to the result, on the same disk.
            let root = target.with_file_name("root");
            std::fs::create_dir(&root).or_environment("cannot create a directory")?;
            build(root.clone()).await?;
            blocking(move || {
                let fill =
                    |layer: &mut tar::Builder<&mut dyn io::Write>| file_tree::append(layer, &root);
                let archive = target.join(IMAGE);
                archive::write_archive(&archive, None, &config, Compression::Zstd, fill)?;
                std::fs::remove_dir_all(&root)
            })
            .await
        },
    )
    .await?;
    // The engine identifies a file by its path, so links are resolved.
    let archive = kept.join(IMAGE);
    let found = archive
        .canonicalize()
        .and_then(|path| Ok((archive::read_digest(&path)?, path)));
    let (digest, archive) = found
        .or_environment(format!("{} is damaged", archive.display()))
        .map_err(|failure| {
            failure.hint(format!(
                "Remove {}; the next run rebuilds it.",
                kept.display()
            ))
        })?;
    Ok(StandIn {
        name,
        archive,
        digest,
    })
}

/// Builds a directory among the stand-ins, unless it exists already, and removes old ones whose names start with `family`.
pub(super) async fn keep_folder<B, F>(
    family: &str,
    name: &str,
    what: &str,
    progress: &dyn Progress,
    build: B,
) -> Result<PathBuf, Failure>
where
    B: FnOnce(PathBuf) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    let folder = stand_ins_dir()?;
    let dest = folder.join(name);
    let built = provision::build_once(&dest, progress, what, async |target| {
        progress.begin(what);
        let begun = Instant::now();
        build(target).await?;
        progress.done(what, begun.elapsed());
        Ok(())
    })
    .await?;
    remove_old(&folder, family, name);
    Ok(built)
}

fn stand_ins_dir() -> Result<PathBuf, Failure> {
    Ok(provision::cache_root()?.join("stand-ins"))
}

pub(super) fn is_kept(name: &str) -> Result<bool, Failure> {
    Ok(stand_ins_dir()?.join(name).exists())
}

fn remove_old(folder: &Path, family: &str, current: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let age = entry
            .metadata()
            .and_then(|data| data.modified())
            .map(|made| SystemTime::now().duration_since(made).unwrap_or_default());
        if name.starts_with(family) && name != current && age.is_ok_and(|age| age > KEPT) {
            // A failed removal only costs disk space.
            let _ = provision::remove_unused(&entry.path());
        }
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .or_environment("a background task was cancelled")?
        .or_environment("cannot prepare a stand-in")
}

/// Twelve hexadecimal digits of a digest of all `inputs`.
pub(super) fn key_of(inputs: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for input in inputs {
        // Length prefixes keep different lists from having the same digest.
        hasher.update((input.len() as u64).to_le_bytes());
        hasher.update(input);
    }
    hex::encode(hasher.finalize())[..12].to_owned()
}

/// Reads the CA certificates that this host trusts, because its network may have its own CA.
pub(super) fn ca_bundle() -> Result<Vec<u8>, Failure> {
    let hint = "Install ca-certificates, or set SSL_CERT_FILE to a bundle.";
    let file = openssl_probe::probe().cert_file.ok_or_else(|| {
        Failure::environment("no CA certificate bundle found on this machine").hint(hint)
    })?;
    std::fs::read(&file)
        .or_environment(format!(
            "cannot read the CA certificates in {}",
            file.display()
        ))
        .map_err(|failure| failure.hint(hint))
}

pub(super) fn write_bundle(root: &Path, certificates: &[u8]) -> io::Result<()> {
    let folder = root.join("etc/ssl/certs");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("ca-certificates.crt"), certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_lists_have_different_keys() {
        assert_eq!(key_of(&[b"a", b"b"]), key_of(&[b"a", b"b"]));
        assert_ne!(key_of(&[b"ab", b""]), key_of(&[b"a", b"b"]));
        assert_eq!(key_of(&[]).len(), 12);
    }

    #[test]
    fn removes_only_old_entries_of_the_family() {
        let folder = tempfile::tempdir().expect("a folder");
        let long_ago = SystemTime::now() - KEPT - Duration::from_secs(60);
        for (name, old) in [
            ("rust-1", true),
            ("rust-2", false),
            ("rust-3", true),
            ("trivy-1", true),
        ] {
            let made = folder.path().join(name);
            std::fs::create_dir(&made).expect("a folder");
            if old {
                let opened = std::fs::File::open(&made).expect("the folder");
                opened.set_modified(long_ago).expect("a time");
            }
        }
        remove_old(folder.path(), "rust-", "rust-3");
        let exists = |name: &str| folder.path().join(name).exists();
        assert!(!exists("rust-1"), "old");
        assert!(exists("rust-2"), "new");
        assert!(exists("rust-3"), "in use");
        assert!(exists("trivy-1"), "another family");
    }
}
