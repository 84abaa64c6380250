//! TCP: the server accepts a connection.

use std::fmt;

use crate::checks::{connector::Connector, probe_error::ProbeError};

/// A target, with the expected response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host name or IP address.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl Target {
    /// Checks the target without connecting to anything.
    ///
    /// # Errors
    /// When the target can never be probed.
    pub fn validate(&self) -> Result<(), String> {
        validate(&self.host, self.port)
    }
}

/// Validates a host and a port to connect to.
pub(super) fn validate(host: &str, port: u16) -> Result<(), String> {
    if host.is_empty() || host.contains(['/', '@', ' ']) {
        return Err("expected a host: a name or an address".into());
    }
    if port == 0 {
        return Err("expected a port from 1 to 65535".into());
    }
    Ok(())
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(&self.host, self.port, formatter)
    }
}

/// Writes `host:port`, with brackets around an IPv6 address.
pub(super) fn display(host: &str, port: u16, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    if host.contains(':') {
        write!(formatter, "[{host}]:{port}")
    } else {
        write!(formatter, "{host}:{port}")
    }
}

/// Probes one target.
pub struct Probe {
    target: Target,
    connector: Connector,
}

impl Probe {
    /// Creates a probe of `target`.
    pub(super) const fn new(target: Target, connector: Connector) -> Self {
        Self { target, connector }
    }

    /// Probes the target once.
    ///
    /// # Errors
    /// When the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        self.connector
            .connect(&self.target.host, self.target.port)
            .await
            .map(drop)
            .map_err(|error| ProbeError::of(&error, None))
    }
}
