//! TLS: the certificate of a server is valid.

use std::{fmt, io, sync::Arc, time::Duration};

use rustls::{
    ClientConfig,
    client::{Resumption, danger::ServerCertVerifier},
    crypto::ring,
    pki_types::ServerName,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::tcp;
use crate::checks::{connector::Connector, probe_error::ProbeError, tls_options::Identity};

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
        tcp::validate(&self.host, self.port)?;
        match ServerName::try_from(self.host.as_str()) {
            Ok(_) => Ok(()),
            Err(_) => Err("expected a host: a name or an address".into()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        tcp::display(&self.host, self.port, formatter)
    }
}

/// Probes one target.
pub struct Probe {
    target: Target,
    tls: Client,
}

impl Probe {
    /// Creates a probe of `target` that trusts what `tls` trusts.
    #[must_use]
    pub(crate) const fn new(target: Target, tls: Client) -> Self {
        Self { target, tls }
    }

    /// Probes the target once.
    ///
    /// # Errors
    /// When the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        connect(&self.tls, &self.target.host, self.target.port)
            .await
            .map(drop)
            .map_err(|error| ProbeError::of(&error, None))
    }
}

/// Opens TLS connections.
#[derive(Clone)]
pub(crate) struct Client {
    pub(in crate::checks) config: Arc<ClientConfig>,
    /// The name of every server, instead of its host.
    pub(in crate::checks) name: Option<ServerName<'static>>,
    pub(in crate::checks) connector: Connector,
}

impl Client {
    /// Waits only for `delay` before it tries the next address of a host.
    pub(crate) fn with_delay(&self, delay: Duration) -> Self {
        Self {
            connector: self.connector.with_delay(delay),
            ..self.clone()
        }
    }
}

/// Connects to a server and verifies its certificate.
pub(super) async fn connect(
    client: &Client,
    host: &str,
    port: u16,
) -> io::Result<TlsStream<TcpStream>> {
    let name = match &client.name {
        Some(name) => name.clone(),
        None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
    };
    let stream = client.connector.connect(host, port).await?;
    TlsConnector::from(client.config.clone())
        .connect(name, stream)
        .await
}

/// Verifies certificates with `verifier`, and presents `identity` to servers that ask for a certificate.
pub(in crate::checks) fn verifying(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<&Identity>,
) -> Result<ClientConfig, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| format!("cannot use the client certificate: {error}"))?,
    };
    // A resumed session does not present a certificate.
    config.resumption = Resumption::disabled();
    Ok(config)
}
