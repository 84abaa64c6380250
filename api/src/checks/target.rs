//! The kinds of targets, one file each.
//!
//! A new kind needs a file below this module, its entries in this file, and the keys that configure it in
//! `configuration/checks.rs`. The compiler points at each `match` that misses it.

pub mod dns;
pub mod http;
pub mod postgres;
pub mod redis;
pub mod tcp;
pub mod tls;

use std::fmt;

use super::{clients::Clients, probe_error::ProbeError};

/// Defines [`Kind`] together with the list of its variants, so that the list is always complete.
macro_rules! kinds {
    ($($(#[$doc:meta])+ $kind:ident = $name:literal,)+) => {
        /// A kind of target.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])+ $kind,)+
        }

        impl Kind {
            /// All kinds, in the order in which they are documented.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// The name of the kind in the configuration, in JSON and in the labels of metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }
        }
    };
}

kinds! {
    /// Sends a request and checks the response.
    Http = "http",
    /// Opens a connection.
    Tcp = "tcp",
    /// Looks up the records of a name.
    Dns = "dns",
    /// Sends `PING` and expects `PONG`.
    Redis = "redis",
    /// Runs a query.
    Postgres = "postgres",
    /// Checks for how long the certificate of a server is still valid.
    Tls = "tls",
}

/// A target, with the expected response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// See [`Kind::Http`].
    Http(http::Target),
    /// See [`Kind::Tcp`].
    Tcp(tcp::Target),
    /// See [`Kind::Dns`].
    Dns(dns::Target),
    /// See [`Kind::Redis`].
    Redis(redis::Target),
    /// See [`Kind::Postgres`].
    Postgres(postgres::Target),
    /// See [`Kind::Tls`].
    Tls(tls::Target),
}

impl Target {
    /// The kind of this target.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Http(_) => Kind::Http,
            Self::Tcp(_) => Kind::Tcp,
            Self::Dns(_) => Kind::Dns,
            Self::Redis(_) => Kind::Redis,
            Self::Postgres(_) => Kind::Postgres,
            Self::Tls(_) => Kind::Tls,
        }
    }

    /// The `componentType` of this target in a health document of draft-inadarei-api-health-check.
    #[must_use]
    pub const fn component_type(&self) -> &'static str {
        match self {
            Self::Redis(_) | Self::Postgres(_) => "datastore",
            Self::Http(_) | Self::Tcp(_) | Self::Dns(_) | Self::Tls(_) => "component",
        }
    }

    /// What is expected instead of this target, if it is one without TLS of a kind that can use it.
    pub(crate) fn missing_tls(&self) -> Option<&'static str> {
        match self {
            Self::Http(target) => target.missing_tls(),
            Self::Redis(target) => target.missing_tls(),
            Self::Postgres(_) | Self::Tls(_) | Self::Tcp(_) | Self::Dns(_) => None,
        }
    }

    /// Checks the target without connecting to anything. The error contains no secrets.
    ///
    /// # Errors
    /// Returns a description of the problem if the target can never be probed.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::Http(target) => target.validate(),
            Self::Tcp(target) => target.validate(),
            Self::Dns(target) => target.validate(),
            Self::Redis(target) => target.validate(),
            Self::Postgres(target) => target.validate(),
            Self::Tls(target) => target.validate(),
        }
    }

    /// Creates the probe of this target. It is created once, because some kinds keep a connection between two probes.
    #[must_use]
    pub fn probe(&self, clients: &Clients) -> Probe {
        match self {
            Self::Http(target) => Probe::Http(Box::new(http::Probe::new(
                target.clone(),
                clients.http.clone(),
            ))),
            Self::Tcp(target) => Probe::Tcp(tcp::Probe::new(
                target.clone(),
                clients.tls.connector.clone(),
            )),
            Self::Dns(target) => Probe::Dns(dns::Probe::new(
                target.clone(),
                clients.tls.connector.resolver(),
            )),
            Self::Redis(target) => Probe::Redis(redis::Probe::new(target, &clients.tls)),
            Self::Postgres(target) => Probe::Postgres(Box::new(postgres::Probe::new(
                target,
                &clients.postgres,
                clients.tls.connector.clone(),
            ))),
            Self::Tls(target) => Probe::Tls(tls::Probe::new(target.clone(), clients.tls.clone())),
        }
    }
}

/// The target for people, without secrets.
impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(target) => target.fmt(formatter),
            Self::Tcp(target) => target.fmt(formatter),
            Self::Dns(target) => target.fmt(formatter),
            Self::Redis(target) => target.fmt(formatter),
            Self::Postgres(target) => target.fmt(formatter),
            Self::Tls(target) => target.fmt(formatter),
        }
    }
}

/// Probes one target.
pub enum Probe {
    /// Probes a [`Target::Http`].
    Http(Box<http::Probe>),
    /// Probes a [`Target::Tcp`].
    Tcp(tcp::Probe),
    /// Probes a [`Target::Dns`].
    Dns(dns::Probe),
    /// Probes a [`Target::Redis`].
    Redis(redis::Probe),
    /// Probes a [`Target::Postgres`].
    Postgres(Box<postgres::Probe>),
    /// Probes a [`Target::Tls`].
    Tls(tls::Probe),
}

impl Probe {
    /// Probes the target once. The future may be dropped at any time, for example by a timeout.
    ///
    /// # Errors
    /// Returns an error if the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        match self {
            Self::Http(probe) => probe.run().await,
            Self::Tcp(probe) => probe.run().await,
            Self::Dns(probe) => probe.run().await,
            Self::Redis(probe) => probe.run().await,
            Self::Postgres(probe) => probe.run().await,
            Self::Tls(probe) => probe.run().await,
        }
    }
}
