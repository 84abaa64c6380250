//! The distribution's packages that the embedded engine and the stand-ins need, and how they get here.

use std::path::Path;
use std::time::Instant;

use super::process::{command, find_program, run, run_through};
use super::requirement::{Consent, Requirement};
use super::store::lock;
use crate::failure::Failure;
use crate::progress::Progress;

/// A package of Debian and Ubuntu, and how to see that what it brings is there, wherever it came from.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Its name in the distribution.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// What shows that it is there.
    pub probe: Probe,
}

/// What shows that a package is there.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    /// A program of this name.
    Program(&'static str),
    /// A file at one of these places.
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
    IPTABLES: "iptables", Probe::Program("iptables"), "lets the containers out of their network";
    IPROUTE: "iproute2", Probe::Program("ip"), "takes the network away again";
    DNSMASQ: "dnsmasq-base", Probe::Program("dnsmasq"), "answers the containers' name look-ups";
    PIGZ: "pigz", Probe::Program("pigz"), "unpacks image layers on all cores";
    GIT: "git", Probe::Program("git"), "reads the sources";
    TINI: "tini", Probe::Program("tini"), "is the first process of the engine's namespace";
    UTIL_LINUX: "util-linux", Probe::Program("unshare"), "makes the engine's namespaces";
    PYTHON_VENV: "python3-venv", Probe::File(&["/usr/share/doc/python3-venv"]), "gets Go from PyPI";
    DEBOOTSTRAP: "debootstrap", Probe::Program("debootstrap"), "builds stand-in base images";
}

/// Held by whoever installs, whatever cache directory is used.
const TURN: &str = "/run/infrastructure-lab-ci.packages.lock";

impl Package {
    /// Whether what the package brings is on this machine.
    #[must_use]
    pub fn is_there(&self) -> bool {
        match self.probe {
            Probe::Program(name) => find_program(name).is_some(),
            Probe::File(places) => places.iter().any(|place| Path::new(place).exists()),
        }
    }
}

/// Which of `needed` are not on this machine, for people.
#[must_use]
pub fn missing_packages(needed: &[Package]) -> Vec<Requirement> {
    absent(needed)
        .iter()
        .map(|package| Requirement {
            what: format!("{} ({})", package.name, package.purpose),
            remedy: format!(
                "apt-get install {}, which ci does by itself as root",
                package.name
            ),
        })
        .collect()
}

/// Installs those of `needed` that are missing, with the distribution's package manager; says so first, and asks
/// `consent`.
///
/// # Errors
/// When there is no apt-get, this user is not root, the consent is refused, or the installation fails.
pub async fn packages(
    needed: &[Package],
    consent: Consent<'_>,
    narrator: &dyn Progress,
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
    let lacks = || Failure::environment(format!("this machine lacks: {}", described.join(", ")));
    let Some(apt) = find_program("apt-get") else {
        return Err(lacks().hint(format!(
            "Install them with this system's package manager (the names are Debian's). {CHOICES}"
        )));
    };
    if !is_root() {
        return Err(lacks().hint(format!("Run: sudo apt-get install {list}. {CHOICES}")));
    }
    // apt takes one at a time, and so does the person at the terminal.
    let _turn = lock(Path::new(TURN), narrator, "installing packages").await?;
    if absent.iter().all(Package::is_there) {
        return Ok(());
    }
    if !consent(&format!("Install {list} with apt-get?")) {
        return Err(lacks().hint(format!("Run: apt-get install {list}. {CHOICES}")));
    }
    narrator.notice(&format!("installing with apt-get: {list}"));
    let begun = Instant::now();
    let what = format!(
        "installing {} packages (usually under a minute)",
        names.len()
    );
    narrator.begin(&what);
    install(&apt, &names, narrator)
        .await
        .map_err(|failure| match failure.hint {
            Some(_) => failure,
            None => failure.hint(format!("Try: apt-get install {list}. {CHOICES}")),
        })?;
    narrator.done(&what, begun.elapsed());
    Ok(())
}

/// What else there is to do for somebody whose machine cannot have the embedded engine.
pub const CHOICES: &str = "Or use a container runtime (Docker, Podman, nerdctl), or an engine elsewhere with --engine URL.";

async fn install(apt: &Path, names: &[&str], narrator: &dyn Progress) -> Result<(), Failure> {
    let install = |download_only: bool| {
        let mut install = apt_get(apt);
        install
            .args(["install", "--yes", "--no-install-recommends"])
            .args(download_only.then_some("--download-only"))
            .args(names);
        install
    };
    let download = || run(install(true), "apt-get install --download-only", narrator);
    if let Err(failure) = download().await {
        let said = failure.output.as_deref().unwrap_or_default();
        if said.contains("dpkg was interrupted")
            && let Some(dpkg) = find_program("dpkg")
        {
            let mut configure = command(dpkg);
            configure
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["--configure", "-a"]);
            narrator.notice("dpkg was interrupted once: dpkg --configure -a");
            run_through(configure, "dpkg --configure -a").await?;
        } else {
            // The package lists of a fresh machine are empty or old.
            let mut update = apt_get(apt);
            update.arg("update");
            run(update, "apt-get update", narrator).await?;
        }
        download().await?;
    }
    run_through(install(false), "apt-get install").await
}

fn absent(needed: &[Package]) -> Vec<Package> {
    needed
        .iter()
        .copied()
        .filter(|package| !package.is_there())
        .collect()
}

fn apt_get(program: &Path) -> tokio::process::Command {
    let mut apt = command(program);
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        // Another apt may be at work, as on a machine that has just been started.
        .args(["-o", "DPkg::Lock::Timeout=120", "-q"]);
    apt
}

/// Whether this process is root's.
#[must_use]
#[cfg(unix)]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether this process is root's.
#[must_use]
#[cfg(not(unix))]
pub fn is_root() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    const NOT_THERE: Package = Package {
        name: "no-such-package",
        purpose: "is not there",
        probe: Probe::Program("no-such-program-anywhere"),
    };

    #[tokio::test]
    async fn nothing_is_installed_without_consent() {
        let failure = packages(&[NOT_THERE], &|_| false, &Silent).await;
        let failure = failure.expect_err("it is missing and was refused");
        assert!(failure.message.contains("no-such-package"), "{failure}");
        assert!(
            failure
                .hint
                .is_some_and(|hint| hint.contains("--engine URL"))
        );
    }

    #[test]
    fn the_missing_are_named_with_their_purpose() {
        let missing = missing_packages(&[NOT_THERE]);
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].what, "no-such-package (is not there)");
    }
}
