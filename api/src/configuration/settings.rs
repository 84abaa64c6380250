//! The settings of the service, and their defaults.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use tracing_subscriber::filter::Targets;

use crate::{checks::Check, secret::SecretUrl};

/// The settings of the service.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address to listen on; `[::]` means every IPv6 and IPv4 address, and port 0 any free port.
    pub address: SocketAddr,
    /// The path below which a reverse proxy shows the service, such as `/status`, without a slash at the end; empty without one.
    pub base_path: String,
    /// The name of the environment that the service runs in.
    pub environment: String,
    /// Which log events are written.
    pub log: Targets,
    /// The title of the page.
    pub title: String,
    /// The Redis that stores the counter of `GET /hits`; it is checked as well.
    pub redis: Option<SecretUrl>,
    /// The checks, in the order of the file.
    pub checks: Vec<Check>,
    /// The directory of the history; without one, the history is kept in memory only.
    pub data: Option<PathBuf>,
    /// How many connections may be open at once; without a value, the available memory determines the number.
    pub connections: Option<usize>,
    /// How long a client may take to send a request, and how long an idle connection is kept. Tests shorten it.
    pub request_timeout: Duration,
    /// How many event streams may be open at once.
    pub streams: usize,
    /// How long the service keeps serving after SIGTERM, so that load balancers notice that it is about to stop.
    pub drain: Duration,
    /// Whether the configuration is reloaded when its file changes, as after SIGHUP.
    pub watch: bool,
    /// The build that the image contains.
    pub build: Build,
}

impl Settings {
    /// The keys that take effect only at the start of the service, with their values.
    pub(crate) fn fixed(&self) -> Vec<(&'static str, String)> {
        vec![
            ("listen", self.address.to_string()),
            ("base-path", self.base_path.clone()),
            ("data-dir", format!("{:?}", self.data)),
            ("connections", format!("{:?}", self.connections)),
        ]
    }
}

/// The running build, from environment variables of the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// The commit: `APP_COMMIT`.
    pub commit: Option<String>,
    /// The time of the commit in RFC 3339: `APP_BUILD_TIME`.
    pub time: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: (Ipv6Addr::UNSPECIFIED, 8000).into(),
            base_path: String::new(),
            environment: "local".into(),
            log: Targets::new().with_default(tracing::Level::INFO),
            title: "Infrastructure Lab".into(),
            redis: None,
            checks: Vec::new(),
            data: None,
            connections: None,
            request_timeout: Duration::from_secs(5),
            streams: 100,
            drain: Duration::from_secs(2),
            watch: false,
            build: Build::default(),
        }
    }
}
