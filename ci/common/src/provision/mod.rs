//! Provisioning of a machine: the cache directory, builds that run only once, child processes, system packages and Go tools.

mod go;
mod packages;
mod process;
mod requirement;
mod store;

pub use go::{GoModule, Version, build_go_tools, missing_go, packages_for_go};
pub use packages::{
    ALTERNATIVES, CNI_PLUGINS, DEBOOTSTRAP, DNSMASQ, GIT, IPROUTE, IPTABLES, PIGZ, PYTHON_VENV,
    Package, Probe, RUNC, TINI, UTIL_LINUX, install_packages, is_root, missing_packages,
};
pub use process::{SECRETS, Tail, UNSHARE_ARGUMENTS, command, find_program, output, run};
pub use requirement::{Consent, Requirement};
pub use store::{
    SOURCES, build_once, cache_root, create_private, discard, forget, lock, remove_unfinished,
    remove_unused, size_of, try_hold,
};
