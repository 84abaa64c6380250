//! What every long preparation shares: the cache directory, single builds, child processes, packages, Go builds.

mod go;
mod packages;
mod process;
mod requirement;
mod store;

pub use go::{GoModule, Version, go_tools, missing_go, packages_for_go};
pub use packages::{
    CHOICES, CNI_PLUGINS, DEBOOTSTRAP, DNSMASQ, GIT, IPROUTE, IPTABLES, PIGZ, PYTHON_VENV, Package,
    Probe, RUNC, TINI, UTIL_LINUX, is_root, missing_packages, packages,
};
pub use process::{ALONE, SECRETS, Tail, command, find_program, output, run};
pub use requirement::{Consent, Requirement};
pub use store::{cache_root, lock, once, remove_unfinished, remove_unused, size_of};
#[cfg(target_os = "linux")]
pub use store::{create_private, discard};
