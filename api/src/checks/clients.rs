//! What the probes share: the trusted certificate authorities and the HTTP client.

use std::{fmt, path::Path, sync::Arc};

use rustls::ClientConfig;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::target::{http, postgres, tls};

/// What the probes share; clones share it as well.
#[derive(Clone)]
pub struct Clients {
    /// Verifies the certificates of servers.
    pub(crate) tls: Arc<ClientConfig>,
    pub(super) http: reqwest::Client,
    pub(super) postgres: postgres::Tls,
}

impl Clients {
    /// Trusts the public certificate authorities, and those in the PEM file `authorities`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or contains no certificate.
    pub fn new(authorities: Option<&Path>) -> Result<Self, String> {
        let tls = tls::verifying(authorities)?;
        Ok(Self {
            http: http::client(&tls)?,
            postgres: postgres::Tls {
                verifying: MakeRustlsConnect::new(tls.clone()),
                opportunistic: MakeRustlsConnect::new(tls::opportunistic()?),
            },
            tls: Arc::new(tls),
        })
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Clients")
    }
}
