//! The checks: the kinds of targets, and how a target of each kind is probed.

mod certificates;
mod check;
mod check_probe;
mod clients;
mod connector;
pub(crate) mod domain_name;
mod driver;
mod name_servers;
mod probe_error;
mod race;
mod resolver;
mod target;
mod tls_options;

pub use certificates::Expiry;
pub(crate) use certificates::observe;
pub use check::Check;
pub use check_probe::CheckProbe;
pub use clients::Clients;
pub use probe_error::ProbeError;
pub use resolver::NameServers;
pub use target::*;
pub use tls_options::TlsOptions;
