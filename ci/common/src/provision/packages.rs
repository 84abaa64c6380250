//! The system packages that the embedded engine and the stand-ins need, and their installation.

use std::path::Path;
use std::time::Instant;

use super::process::{command, find_program, run, run_uninterrupted};
use super::requirement::{Consent, Requirement};
use super::store::lock;
use crate::failure::Failure;
use crate::progress::Progress;

/// A package of Debian and Ubuntu, with a probe that also finds installations from another source.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// The package name.
    pub name: &'static str,
    /// The purpose of the package, for the user: a verb phrase.
    pub purpose: &'static str,
    /// How to detect an installation.
    pub probe: Probe,
}

/// How to detect that a package is installed.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    /// A program with this name exists.
    Program(&'static str),
    /// A file exists at one of these paths.
    File(&'static [&'static str]),
}

macro_rules! package_table {
    ($($id:ident: $name:literal, $probe:expr, $purpose:literal;)*) => {
        $(#[doc = concat!("`", $name, "`: ", $purpose, ".")]
        pub const $id: Package = Package { name: $name, purpose: $purpose, probe: $probe };)*
    };
}

package_table! {
    RUNC: "runc", Probe::Program("runc"), "runs the containers";
    CNI_PLUGINS: "containernetworking-plugins",
        Probe::File(&["/usr/lib/cni/bridge", "/opt/cni/bin/bridge", "/usr/libexec/cni/bridge"]),
        "connects the containers to a network";
    IPTABLES: "iptables", Probe::Program("iptables"), "lets the containers reach the outside network";
    IPROUTE: "iproute2", Probe::Program("ip"), "creates and removes the network of the containers";
    DNSMASQ: "dnsmasq-base", Probe::Program("dnsmasq"), "resolves names for the containers";
    PIGZ: "pigz", Probe::Program("pigz"), "unpacks image layers on all cores";
    GIT: "git", Probe::Program("git"), "reads the sources";
    TINI: "tini", Probe::Program("tini"), "is the init process of the engine's namespace";
    UTIL_LINUX: "util-linux", Probe::Program("unshare"), "creates the engine's namespaces";
    PYTHON_VENV: "python3-venv", Probe::File(&["/usr/share/doc/python3-venv"]), "installs Go from PyPI";
    DEBOOTSTRAP: "debootstrap", Probe::Program("debootstrap"), "builds stand-in base images";
}

/// Held during an installation. Not in the cache directory, because processes may use different ones.
const INSTALL_LOCK: &str = "/run/infrastructure-lab-ci.packages.lock";

impl Package {
    /// Returns whether the package, or another source of its files, is installed.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        match self.probe {
            Probe::Program(name) => find_program(name).is_some(),
            Probe::File(places) => places.iter().any(|place| Path::new(place).exists()),
        }
    }
}

/// Returns the packages of `needed` that are missing on this machine.
#[must_use]
pub fn missing_packages(needed: &[Package]) -> Vec<Requirement> {
    absent(needed)
        .iter()
        .map(|package| Requirement {
            what: format!("{} ({})", package.name, package.purpose),
            fix: format!(
                "Run `apt-get install {}`, or run ci as root to let it install the package.",
                package.name
            ),
        })
        .collect()
}

/// Installs the missing packages of `needed` with apt-get, after asking for consent.
///
/// # Errors
/// When apt-get is missing, this user is not root, consent is refused, or the installation fails (exit code 3).
pub async fn install_packages(
    needed: &[Package],
    consent: Consent<'_>,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let absent = absent(needed);
    if absent.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = absent.iter().map(|package| package.name).collect();
    let list = names.join(" ");
    let described: Vec<String> = absent
        .iter()
        .map(|package| format!("{} ({})", package.name, package.purpose))
        .collect();
    let missing =
        || Failure::environment(format!("missing system packages: {}", described.join(", ")));
    let Some(apt) = find_program("apt-get") else {
        return Err(missing().hint(format!(
            "Install them with the package manager of this system (these are the Debian names). {ALTERNATIVES}"
        )));
    };
    if !is_root() {
        return Err(missing().hint(format!("Run `sudo apt-get install {list}`. {ALTERNATIVES}")));
    }
    // One installation and one question to the user at a time.
    let _lock = lock(Path::new(INSTALL_LOCK), progress, "installing packages").await?;
    if absent.iter().all(Package::is_installed) {
        return Ok(());
    }
    if !consent(&format!("Install {list} with apt-get?")) {
        return Err(missing().hint(format!("Run `apt-get install {list}`. {ALTERNATIVES}")));
    }
    progress.notice(&format!("installing packages with apt-get: {list}"));
    let begun = Instant::now();
    let what = format!(
        "installing {} packages (usually under a minute)",
        names.len()
    );
    progress.begin(&what);
    install(&apt, &names, progress)
        .await
        .map_err(|failure| match failure.hint {
            Some(_) => failure,
            None => failure.hint(format!(
                "Run `apt-get install {list}` to see the error. {ALTERNATIVES}"
            )),
        })?;
    progress.done(&what, begun.elapsed());
    Ok(())
}

/// A hint for a machine that cannot run the embedded engine.
pub const ALTERNATIVES: &str =
    "Or use a container runtime (Docker, Podman, nerdctl), or a remote engine with --engine URL.";

async fn install(apt: &Path, names: &[&str], progress: &dyn Progress) -> Result<(), Failure> {
    let install = |download_only: bool| {
        let mut install = apt_get(apt);
        install
            .args(["install", "--yes", "--no-install-recommends"])
            .args(download_only.then_some("--download-only"))
            .args(names);
        install
    };
    let download = || run(install(true), "apt-get install --download-only", progress);
    if let Err(failure) = download().await {
        let output = failure.output.as_deref().unwrap_or_default();
        if output.contains("dpkg was interrupted")
            && let Some(dpkg) = find_program("dpkg")
        {
            let mut configure = command(dpkg);
            configure
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["--configure", "-a"]);
            progress.notice("dpkg was interrupted earlier; running dpkg --configure -a");
            run_uninterrupted(configure, "dpkg --configure -a").await?;
        } else {
            // The package lists of a new machine are empty or outdated.
            let mut update = apt_get(apt);
            update.arg("update");
            run(update, "apt-get update", progress).await?;
        }
        download().await?;
    }
    run_uninterrupted(install(false), "apt-get install").await
}

fn absent(needed: &[Package]) -> Vec<Package> {
    needed
        .iter()
        .copied()
        .filter(|package| !package.is_installed())
        .collect()
}

fn apt_get(program: &Path) -> tokio::process::Command {
    let mut apt = command(program);
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        // Another apt may be running, for example on a machine that has just booted.
        .args(["-o", "DPkg::Lock::Timeout=120", "-q"]);
    apt
}

/// Returns whether this process runs as root.
#[must_use]
#[cfg(unix)]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Returns whether this process runs as root.
#[must_use]
#[cfg(not(unix))]
pub fn is_root() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    const MISSING: Package = Package {
        name: "no-such-package",
        purpose: "is not there",
        probe: Probe::Program("no-such-program-anywhere"),
    };

    #[tokio::test]
    async fn installs_nothing_without_consent() {
        let failure = install_packages(&[MISSING], &|_| false, &Silent).await;
        let failure = failure.expect_err("it is missing and was refused");
        assert!(failure.message.contains("no-such-package"), "{failure}");
        assert!(
            failure
                .hint
                .is_some_and(|hint| hint.contains("--engine URL"))
        );
    }

    #[test]
    fn missing_packages_are_reported_with_their_purpose() {
        let missing = missing_packages(&[MISSING]);
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].what, "no-such-package (is not there)");
    }
}
