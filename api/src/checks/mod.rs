//! What is checked, and what asking it once says: one file for each kind of dependency.

mod clients;
pub mod dns;
pub mod http;
pub mod postgres;
pub mod redis;
pub mod schedule;
pub mod tcp;
pub mod tls;

use std::{error::Error, fmt, num::NonZeroU32, time::Duration};

use tokio::task::JoinHandle;

pub use clients::Clients;

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

    /// Says what is wrong with it, with nothing secret in it.
    ///
    /// # Errors
    /// Where it can never be asked.
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

    /// What asks it; made once, and keeps what may be kept between two questions.
    #[must_use]
    pub fn probe(&self, clients: &Clients) -> Probe {
        match self {
            Self::Http(target) => Probe::Http(Box::new(http::Probe::new(target.clone(), clients))),
            Self::Tcp(target) => Probe::Tcp(tcp::Probe::new(target.clone())),
            Self::Dns(target) => Probe::Dns(dns::Probe::new(target.clone())),
            Self::Redis(target) => Probe::Redis(redis::Probe::new(target, clients)),
            Self::Postgres(target) => {
                Probe::Postgres(Box::new(postgres::Probe::new(target, clients)))
            }
            Self::Tls(target) => Probe::Tls(tls::Probe::new(target.clone(), clients)),
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

/// How long a trouble may be, in characters: servers say what they like.
const LONGEST: usize = 300;

impl Trouble {
    /// What `error` and its sources say, without `secret`.
    fn of(error: &dyn Error, secret: Option<&str>) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let said = error.to_string();
            // Some say what their source says.
            if !text.ends_with(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            source = error.source();
        }
        Self::without(&text, secret)
    }

    /// `text` in a line, without `secret`.
    fn without(text: &str, secret: Option<&str>) -> Self {
        let masked = match secret {
            Some(secret) if !secret.is_empty() => text.replace(secret, "***"),
            _ => text.to_owned(),
        };
        let line = masked.replace(char::is_control, " ");
        Self(line.chars().take(LONGEST).collect())
    }
}

/// Moves what goes over a kept connection; ends with it.
struct Driver(JoinHandle<()>);

impl Driver {
    fn start(driver: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(driver))
    }

    fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks one target.
pub enum Probe {
    /// For [`Target::Http`].
    Http(Box<http::Probe>),
    /// For [`Target::Tcp`].
    Tcp(tcp::Probe),
    /// For [`Target::Dns`].
    Dns(dns::Probe),
    /// For [`Target::Redis`].
    Redis(redis::Probe),
    /// For [`Target::Postgres`].
    Postgres(Box<postgres::Probe>),
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
