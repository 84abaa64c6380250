//! Builds a small Debian root file system with debootstrap, from the Debian archive that this host's apt uses.

use std::io;
use std::path::Path;

use super::made::{blocking, write_bundle};
use common::failure::Failure;
use common::file_tree;
use common::progress::Progress;
use common::provision::{self, Consent, DEBOOTSTRAP, Package, Probe, UTIL_LINUX};

/// The Debian release of [`pins::RUST_IMAGE`].
const RELEASE: &str = "bookworm";
/// The number of that release, for the names of stand-ins.
pub(super) const VERSION: &str = "12";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEBIAN_KEYRING: Package = Package {
    name: "debian-archive-keyring",
    purpose: "verifies the signatures of Debian's packages",
    probe: Probe::File(&[KEYRING]),
};
/// Directories that are kept but emptied.
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
/// Files that debootstrap copies from the host or that differ in each build.
const REMOVED: [&str; 3] = ["etc/hostname", "etc/machine-id", "etc/resolv.conf"];

/// Installs a Debian with `packages` into `root`, without files that only the installation needs.
pub(super) async fn build(
    root: &Path,
    packages: &[&str],
    certificates: &[u8],
    consent: Consent<'_>,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    provision::install_packages(
        &[DEBOOTSTRAP, DEBIAN_KEYRING, UTIL_LINUX],
        consent,
        progress,
    )
    .await?;
    debootstrap(root, packages, progress).await?;
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
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let find = |name| {
        provision::find_program(name)
            .ok_or_else(|| Failure::environment(format!("{name} is not installed")))
    };
    let mirror = find_mirror().await?;
    let mut command = provision::command(find("unshare")?);
    command
        .args(provision::UNSHARE_ARGUMENTS)
        .arg(find("debootstrap")?)
        .args(["--variant=minbase", "--merged-usr"])
        .arg(format!("--keyring={KEYRING}"))
        .arg(format!("--include={}", packages.join(",")))
        .arg(RELEASE)
        .arg(root)
        .arg(&mirror);
    provision::run(command, "debootstrap", progress).await.map_err(|failure| {
        failure.hint(format!(
            "Run as root and make Debian's archive at {mirror} reachable, or let the engine reach a registry, which needs neither."
        ))
    })
}

/// Returns the URL of the Debian archive that the host's apt uses.
async fn find_mirror() -> Result<String, Failure> {
    let none = || {
        Failure::environment("apt on this machine has no Debian archive").hint(format!(
            "Add a Debian archive with {RELEASE} to /etc/apt/sources.list."
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
    let targets = provision::output(command, "apt-get indextargets").await?;
    choose_mirror(&targets).ok_or_else(none)
}

/// Chooses the archive with [`RELEASE`], or else any of Debian's, because each has all current releases.
fn choose_mirror(targets: &str) -> Option<String> {
    let targets: Vec<[&str; 3]> = targets
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let release = words.next()?;
            let address = words.next_back()?;
            // The origin is empty before the first `apt-get update`.
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
    fn chooses_a_debian_archive_of_the_host() {
        let same = "bookworm-security Debian http://a.example/debian-security/\nbookworm Debian http://a.example/debian/\n";
        assert_eq!(
            choose_mirror(same).as_deref(),
            Some("http://a.example/debian/")
        );
        assert_eq!(
            choose_mirror("bookworm  http://new.example/debian/").as_deref(),
            Some("http://new.example/debian/")
        );
        let newer = "trixie-security Debian http://a.example/debian-security/\ntrixie Debian https://b.example/debian/";
        assert_eq!(
            choose_mirror(newer).as_deref(),
            Some("https://b.example/debian/")
        );
        assert_eq!(
            choose_mirror("noble Ubuntu http://u.example/ubuntu/\n"),
            None
        );
        assert_eq!(
            choose_mirror("bookworm Debian mirror+file:/etc/apt/mirrors\n"),
            None
        );
        assert_eq!(choose_mirror(""), None);
    }
}
