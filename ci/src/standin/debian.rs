//! A small Debian in a folder, made with the distribution's own debootstrap from the archive that this host knows.

use std::io;
use std::path::Path;

use super::made::{blocking, write_bundle};
use common::failure::Failure;
use common::file_tree;
use common::progress::Progress;
use common::provision::{self, Consent, DEBOOTSTRAP, Package, Probe, UTIL_LINUX};

/// The Debian release of [`pins::RUST_IMAGE`].
const RELEASE: &str = "bookworm";
/// Its number, by which people know what was built of it.
pub(super) const VERSION: &str = "12";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEBIAN_KEYRING: Package = Package {
    name: "debian-archive-keyring",
    purpose: "proves that Debian's packages are Debian's",
    probe: Probe::File(&[KEYRING]),
};
/// Of these folders only themselves are kept, not what is in them.
const EMPTIED: [&str; 14] = [
    "boot",
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
    "var/tmp",
];
/// What debootstrap copies from the host, and what would be another one in each build.
const REMOVED: [&str; 3] = ["etc/hostname", "etc/machine-id", "etc/resolv.conf"];

/// Puts a Debian with `packages` into the folder `root`, with nothing in it that only an installation needs.
pub(super) async fn build(
    root: &Path,
    packages: &[&str],
    certificates: &[u8],
    consent: Consent<'_>,
    narrator: &dyn Progress,
) -> Result<(), Failure> {
    provision::packages(
        &[DEBOOTSTRAP, DEBIAN_KEYRING, UTIL_LINUX],
        consent,
        narrator,
    )
    .await?;
    debootstrap(root, packages, narrator).await?;
    let (root, certificates) = (root.to_owned(), certificates.to_owned());
    blocking(move || clean(&root, &certificates)).await
}

fn clean(root: &Path, certificates: &[u8]) -> io::Result<()> {
    for folder in EMPTIED {
        file_tree::empty(&root.join(folder))?;
    }
    for file in REMOVED {
        match std::fs::remove_file(root.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    write_bundle(root, certificates)
}

async fn debootstrap(
    root: &Path,
    packages: &[&str],
    narrator: &dyn Progress,
) -> Result<(), Failure> {
    let need = |name| {
        provision::find_program(name)
            .ok_or_else(|| Failure::environment(format!("there is no {name} on PATH")))
    };
    let mirror = mirror().await?;
    let mut command = provision::command(need("unshare")?);
    command
        .args(provision::ALONE)
        .arg(need("debootstrap")?)
        .args(["--variant=minbase", "--merged-usr"])
        .arg(format!("--keyring={KEYRING}"))
        .arg(format!("--include={}", packages.join(",")))
        .arg(RELEASE)
        .arg(root)
        .arg(&mirror);
    provision::run(command, "debootstrap", narrator).await.map_err(|failure| {
        failure.hint(format!(
            "debootstrap needs root and Debian's archive at {mirror}; a base image from a registry needs neither."
        ))
    })
}

/// Debian's archive as the host's apt knows it.
async fn mirror() -> Result<String, Failure> {
    let none = || {
        Failure::environment("apt on this machine knows no archive of Debian's").hint(format!(
            "Add one that has {RELEASE} to /etc/apt/sources.list."
        ))
    };
    let mut command = provision::command(provision::find_program("apt-get").ok_or_else(none)?);
    command.args([
        "indextargets",
        "--format",
        "$(RELEASE) $(ORIGIN) $(REPO_URI)",
        "Created-By: Packages",
        "Component: main",
    ]);
    let targets = provision::output(command, "asking apt for its sources").await?;
    choose(&targets).ok_or_else(none)
}

/// The archive that has [`RELEASE`] itself; else any of Debian's, as each has all current releases.
fn choose(targets: &str) -> Option<String> {
    let targets: Vec<[&str; 3]> = targets
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let release = words.next()?;
            let address = words.next_back()?;
            // Before the first `apt-get update` the origin is not known.
            Some([release, words.next().unwrap_or_default(), address])
        })
        .filter(|[_, _, address]| address.starts_with("http://") || address.starts_with("https://"))
        .collect();
    targets
        .iter()
        .find(|[release, ..]| *release == RELEASE)
        .or_else(|| {
            targets.iter().find(|[release, origin, address]| {
                *origin == "Debian"
                    && !release.contains("security")
                    && !address.contains("security")
            })
        })
        .map(|[_, _, address]| (*address).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_the_hosts() {
        let same = "bookworm-security Debian http://a.example/debian-security/\nbookworm Debian http://a.example/debian/\n";
        assert_eq!(choose(same).as_deref(), Some("http://a.example/debian/"));
        assert_eq!(
            choose("bookworm  http://new.example/debian/").as_deref(),
            Some("http://new.example/debian/")
        );
        let newer = "trixie-security Debian http://a.example/debian-security/\ntrixie Debian https://b.example/debian/";
        assert_eq!(choose(newer).as_deref(), Some("https://b.example/debian/"));
        assert_eq!(choose("noble Ubuntu http://u.example/ubuntu/\n"), None);
        assert_eq!(
            choose("bookworm Debian mirror+file:/etc/apt/mirrors\n"),
            None
        );
        assert_eq!(choose(""), None);
    }
}
