//! What is checked, and what asking it once says: one file for each kind of dependency.

pub mod dns;
pub mod http;
pub mod postgres;
pub mod redis;
pub mod schedule;
pub mod tcp;
pub mod tls;

use std::{fmt, num::NonZeroU32, time::Duration};

/// A dependency that is asked again and again.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name, unique in a service: lower-case letters, digits, `-` and `_`, at most 63 of them.
    pub name: String,
    /// What is asked.
    pub target: Target,
    /// Whether the service's users are without it: then a loss is an outage, else a degradation. The service answers either way.
    pub critical: bool,
    /// From the beginning of one question to that of the next.
    pub interval: Duration,
    /// How much the interval may vary, at random, so that many checks do not ask in step; less than the interval.
    pub jitter: Duration,
    /// After which an answer is one that did not come.
    pub timeout: Duration,
    /// How many failures in a row make it `down`.
    pub failures: NonZeroU32,
    /// How many successes in a row make it `up` again.
    pub successes: NonZeroU32,
}

/// What is asked, and what is expected of the answer.
#[derive(Clone, Debug)]
pub enum Target {
    /// An HTTP response.
    Http(http::Target),
    /// A connection.
    Tcp(tcp::Target),
    /// A name's records.
    Dns(dns::Target),
    /// `PONG`.
    Redis(redis::Target),
    /// The answer to a query.
    Postgres(postgres::Target),
    /// A certificate that is valid for long enough.
    Tls(tls::Target),
}

impl Target {
    /// The word for its kind, as in the configuration.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Tcp(_) => "tcp",
            Self::Dns(_) => "dns",
            Self::Redis(_) => "redis",
            Self::Postgres(_) => "postgres",
            Self::Tls(_) => "tls",
        }
    }

    /// What asks it; made once, and keeps what may be kept between two questions.
    #[must_use]
    pub fn probe(&self) -> Probe {
        match self {
            Self::Http(target) => Probe::Http(http::Probe::new(target.clone())),
            Self::Tcp(target) => Probe::Tcp(tcp::Probe::new(target.clone())),
            Self::Dns(target) => Probe::Dns(dns::Probe::new(target.clone())),
            Self::Redis(target) => Probe::Redis(redis::Probe::new(target.clone())),
            Self::Postgres(target) => Probe::Postgres(postgres::Probe::new(target.clone())),
            Self::Tls(target) => Probe::Tls(tls::Probe::new(target.clone())),
        }
    }
}

/// The target for people, with nothing secret in it.
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

/// Why an answer was not as expected, in a line for people; nothing secret is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Trouble(pub String);

/// Asks one target.
pub enum Probe {
    /// For [`Target::Http`].
    Http(http::Probe),
    /// For [`Target::Tcp`].
    Tcp(tcp::Probe),
    /// For [`Target::Dns`].
    Dns(dns::Probe),
    /// For [`Target::Redis`].
    Redis(redis::Probe),
    /// For [`Target::Postgres`].
    Postgres(postgres::Probe),
    /// For [`Target::Tls`].
    Tls(tls::Probe),
}

impl Probe {
    /// Asks once. May be dropped at any moment, which is how a time limit ends it.
    ///
    /// # Errors
    /// Where the target does not answer, or not as expected.
    pub async fn ask(&mut self) -> Result<(), Trouble> {
        match self {
            Self::Http(probe) => probe.ask().await,
            Self::Tcp(probe) => probe.ask().await,
            Self::Dns(probe) => probe.ask().await,
            Self::Redis(probe) => probe.ask().await,
            Self::Postgres(probe) => probe.ask().await,
            Self::Tls(probe) => probe.ask().await,
        }
    }
}
