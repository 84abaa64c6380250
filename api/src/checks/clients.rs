//! What all probes share, made once: the authorities, and what sends HTTP requests.

use std::{fmt, path::Path, sync::Arc};

use rustls::ClientConfig;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{http, postgres, tls};

/// What all probes share; a clone is the same.
#[derive(Clone)]
pub struct Clients {
    pub(super) tls: Arc<ClientConfig>,
    pub(super) http: http::Clients,
    pub(super) postgres: postgres::Tls,
}

impl Clients {
    /// Trusts the public authorities, and those of the PEM file `authorities`.
    ///
    /// # Errors
    /// Where the file cannot be read or has no certificate.
    pub fn new(authorities: Option<&Path>) -> Result<Self, String> {
        let tls = tls::verifying(authorities)?;
        Ok(Self {
            http: http::Clients::new(&tls)?,
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
