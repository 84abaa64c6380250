//! What every long preparation shares: the cache directory, single builds, child processes, packages, Go builds.

mod cache;
mod go;
mod packages;
mod process;

pub(crate) use cache::lock;
pub use cache::{cache_root, once, remove_unfinished, remove_unused, size_of};
#[cfg(target_os = "linux")]
pub(crate) use cache::{create_private, discard};
pub use go::{GoModule, Version, go_tools, missing_go, packages_for_go};
pub(crate) use packages::{CHOICES, is_root};
pub use packages::{
    CNI_PLUGINS, DEBOOTSTRAP, DNSMASQ, GIT, IPROUTE, IPTABLES, PIGZ, PYTHON_VENV, Package, Probe,
    RUNC, TINI, UTIL_LINUX, missing_packages, packages,
};
pub use process::{ALONE, command, find_program, output, run};
pub(crate) use process::{SECRETS, Tail};

/// Asks the person at the terminal; answers yes where there is none to ask.
pub type Consent<'a> = &'a (dyn Fn(&str) -> bool + Send + Sync);

/// Something this machine lacks, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Requirement {
    /// What is missing, as a person calls it.
    pub what: String,
    /// What gets it.
    pub remedy: String,
}
