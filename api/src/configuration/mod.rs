//! The settings, from the environment and one TOML file, checked before anything is started.

mod environment;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use tracing_subscriber::filter::Targets;

use crate::{checks::Check, secret::SecretUrl};

/// What the service needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen; port 0 takes any free one.
    pub address: SocketAddr,
    /// The name of the environment that the service runs in.
    pub environment: String,
    /// What is logged.
    pub log: Targets,
    /// The title of the page.
    pub title: String,
    /// The Redis that holds the counter of `GET /hits`; it is checked, too.
    pub redis: Option<SecretUrl>,
    /// What is checked.
    pub checks: Vec<Check>,
    /// Where the history is kept; in memory where there is none.
    pub data: Option<PathBuf>,
    /// How many connections at once; as many as the memory takes where there is none.
    pub connections: Option<usize>,
    /// How many event streams at once.
    pub streams: usize,
    /// How long the service goes on after SIGTERM, so that whoever balances load hears of it.
    pub drain: Duration,
    /// What the image says of itself.
    pub build: Build,
}

/// Which build this is, as the image's environment says: the compiler does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// The commit: `APP_COMMIT`.
    pub commit: Option<String>,
    /// The commit's time in RFC 3339: `APP_BUILD_TIME`.
    pub time: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::UNSPECIFIED, 8000).into(),
            environment: "local".into(),
            log: Targets::new().with_default(tracing::Level::INFO),
            title: "Infrastructure Lab".into(),
            redis: None,
            checks: Vec::new(),
            data: None,
            connections: None,
            streams: 100,
            drain: Duration::from_secs(2),
            build: Build::default(),
        }
    }
}
