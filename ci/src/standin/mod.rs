//! What the pipeline uses where no container registry can be reached: root file systems of this host's own making, and
//! a small, dated advisory database. The engine takes them by their content, so that none is ever found under a real
//! image's name, and it need not be on this machine.

mod advisories;
mod base;
mod debian;
mod servers;
mod toolchain;
mod tools;
pub(crate) mod tree;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use dagger_sdk::{Container, DaggerConn};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

pub use advisories::{ADVISORIES_DATED, AdvisoryDb};
pub use base::BaseLayout;
pub use servers::Server;
pub use tools::{CRANE_PATH, TRIVY_PATH};

use crate::failure::{Failure, OrFail};
use crate::narrator::Narrator;
use crate::provision::{self, Consent};

/// Stand-ins of other inputs are kept this long, for whoever switches between branches.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const ROOT: &str = "root";
const DIGEST: &str = "digest";

/// A stand-in image: a root file system on this host. Not an archive, as the engine reads the whole of one in each
/// session (a gigabyte: three seconds), and of a folder only what has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandIn {
    /// What it is, for reports: `rust`, `trivy`, `crane`.
    pub name: &'static str,
    /// The root file system.
    pub root: PathBuf,
    /// The environment that the real image's configuration sets.
    pub env: Vec<(&'static str, &'static str)>,
    /// The digest of all that is in it.
    pub digest: String,
}

impl StandIn {
    /// A container of it.
    #[must_use]
    pub fn container(&self, client: &DaggerConn) -> Container {
        let root = client.host().directory(self.root.display().to_string());
        self.env.iter().fold(
            client.container().with_rootfs(root),
            |container, (name, value)| container.with_env_variable(*name, *value),
        )
    }
}

/// The stand-ins of one run: each is made once, when it is first asked for.
pub struct StandIns {
    consent: Consent<'static>,
    narrator: Arc<dyn Narrator>,
    rust: OnceCell<StandIn>,
    trivy: OnceCell<StandIn>,
    crane: OnceCell<StandIn>,
    servers: OnceCell<StandIn>,
    advisories: OnceCell<AdvisoryDb>,
    base: OnceCell<BaseLayout>,
}

impl StandIns {
    /// None yet; what makes one asks `consent` and talks to `narrator`.
    #[must_use]
    pub fn new(consent: Consent<'static>, narrator: Arc<dyn Narrator>) -> Self {
        Self {
            consent,
            narrator,
            rust: OnceCell::new(),
            trivy: OnceCell::new(),
            crane: OnceCell::new(),
            servers: OnceCell::new(),
            advisories: OnceCell::new(),
            base: OnceCell::new(),
        }
    }

    /// The Rust toolchain.
    ///
    /// # Errors
    /// When it cannot be made here.
    pub async fn rust(&self) -> Result<&StandIn, Failure> {
        self.rust
            .get_or_try_init(|| toolchain::toolchain(self.consent, &*self.narrator))
            .await
    }

    /// Trivy.
    ///
    /// # Errors
    /// When it cannot be built here.
    pub async fn trivy(&self) -> Result<&StandIn, Failure> {
        self.trivy
            .get_or_try_init(|| tools::trivy(&*self.narrator))
            .await
    }

    /// crane.
    ///
    /// # Errors
    /// When it cannot be built here.
    pub async fn crane(&self) -> Result<&StandIn, Failure> {
        self.crane
            .get_or_try_init(|| tools::crane(&*self.narrator))
            .await
    }

    /// The vulnerability database.
    ///
    /// # Errors
    /// When it cannot be made here.
    pub async fn advisories(&self) -> Result<&AdvisoryDb, Failure> {
        self.advisories
            .get_or_try_init(|| advisories::advisories(&*self.narrator))
            .await
    }

    /// The base image, whichever it was to be.
    ///
    /// # Errors
    /// When it cannot be made here.
    pub async fn base(&self) -> Result<&BaseLayout, Failure> {
        self.base
            .get_or_try_init(|| base::layout(self.consent, &*self.narrator))
            .await
    }

    /// The server whose released image is called `image`; none where there is no stand-in for it.
    ///
    /// # Errors
    /// When it cannot be made here.
    pub async fn server(&self, image: &str) -> Result<Option<Server>, Failure> {
        let Some(command) = servers::command(image) else {
            return Ok(None);
        };
        let image = self
            .servers
            .get_or_try_init(|| servers::image(self.consent, &*self.narrator))
            .await?;
        Ok(Some(Server {
            image: image.clone(),
            command,
        }))
    }
}

/// Builds a root file system once, and says what it is.
async fn keep<B, F>(
    name: &'static str,
    folder: &str,
    what: &str,
    env: Vec<(&'static str, &'static str)>,
    narrator: &dyn Narrator,
    build: B,
) -> Result<StandIn, Failure>
where
    B: FnOnce(PathBuf) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    let kept = keep_folder(
        &format!("{name}-"),
        folder,
        what,
        narrator,
        |target| async move {
            let root = target.join(ROOT);
            std::fs::create_dir_all(&root).or_environment("cannot make a folder")?;
            build(root.clone()).await?;
            blocking(move || std::fs::write(target.join(DIGEST), tree::digest(&root)?)).await
        },
    )
    .await?;
    let digest = std::fs::read_to_string(kept.join(DIGEST))
        .or_environment(format!("{} is damaged", kept.display()))
        .map_err(|failure| {
            failure.hint(format!("Remove {}, and it is built anew.", kept.display()))
        })?;
    // The engine knows a folder by its path: by whatever link it is reached, it is the same one.
    let root = kept
        .join(ROOT)
        .canonicalize()
        .or_environment(format!("{} is damaged", kept.display()))?;
    Ok(StandIn {
        name,
        root,
        env,
        digest,
    })
}

/// Builds a folder among the stand-ins once, and removes what else begins with `family` and is old.
async fn keep_folder<B, F>(
    family: &str,
    name: &str,
    what: &str,
    narrator: &dyn Narrator,
    build: B,
) -> Result<PathBuf, Failure>
where
    B: FnOnce(PathBuf) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    let folder = folder()?;
    let dest = folder.join(name);
    let built = provision::once(&dest, narrator, what, async |target| {
        narrator.begin(what);
        let begun = Instant::now();
        build(target).await?;
        narrator.done(what, begun.elapsed());
        Ok(())
    })
    .await?;
    remove_old(&folder, family, name);
    Ok(built)
}

fn folder() -> Result<PathBuf, Failure> {
    Ok(provision::cache_root()?.join("stand-ins"))
}

fn is_kept(name: &str) -> Result<bool, Failure> {
    Ok(folder()?.join(name).exists())
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
            // What cannot be removed only takes space.
            let _ = provision::remove_unused(&entry.path());
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .or_environment("a background task was cancelled")?
        .or_environment("cannot prepare a stand-in")
}

/// Twelve digits that change with any of `inputs`.
fn key_of(inputs: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for input in inputs {
        // The length in front keeps two lists from looking like one.
        hasher.update((input.len() as u64).to_le_bytes());
        hasher.update(input);
    }
    hex::encode(hasher.finalize())[..12].to_owned()
}

/// The certificates that this host trusts, as its network may have an authority of its own.
fn ca_bundle() -> Result<Vec<u8>, Failure> {
    let hint = "Install ca-certificates, or name a bundle with SSL_CERT_FILE.";
    let file = openssl_probe::probe().cert_file.ok_or_else(|| {
        Failure::environment("this machine has no bundle of CA certificates").hint(hint)
    })?;
    std::fs::read(&file)
        .or_environment(format!(
            "cannot read the CA certificates in {}",
            file.display()
        ))
        .map_err(|failure| failure.hint(hint))
}

fn write_bundle(root: &Path, certificates: &[u8]) -> io::Result<()> {
    let folder = root.join("etc/ssl/certs");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("ca-certificates.crt"), certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_lists_apart() {
        assert_eq!(key_of(&[b"a", b"b"]), key_of(&[b"a", b"b"]));
        assert_ne!(key_of(&[b"ab", b""]), key_of(&[b"a", b"b"]));
        assert_eq!(key_of(&[]).len(), 12);
    }

    #[test]
    fn only_old_ones_of_the_family_are_removed() {
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
        let there = |name: &str| folder.path().join(name).exists();
        assert!(!there("rust-1"), "old");
        assert!(there("rust-2"), "new");
        assert!(there("rust-3"), "in use");
        assert!(there("trivy-1"), "another family");
    }
}
