//! What the probes share: the trusted certificate authorities, and how hosts are found.

use std::{fmt, path::Path, sync::Arc};

use super::{
    certificates::{Trust, Verifier},
    connector::Connector,
    resolver::{NameServers, Resolver},
    target::{http, postgres, tls},
    tls_options::TlsOptions,
};

/// What the probes share; clones share it as well.
#[derive(Clone)]
pub struct Clients {
    trust: Arc<Trust>,
    /// Verifies the certificates of servers.
    pub(crate) tls: tls::Client,
    pub(super) http: http::Tls,
    pub(super) postgres: postgres::Tls,
}

impl Clients {
    /// Trusts the public certificate authorities, and those in the PEM file `authorities`. Looks up names as the system does.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or contains no certificate.
    pub fn new(authorities: Option<&Path>) -> Result<Self, String> {
        Self::build(authorities, Resolver::default())
    }

    /// Like [`Clients::new`], but asks only `name_servers`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or contains no certificate.
    pub fn with_name_servers(
        authorities: Option<&Path>,
        name_servers: NameServers,
    ) -> Result<Self, String> {
        Self::build(authorities, Resolver::with(name_servers))
    }

    fn build(authorities: Option<&Path>, resolver: Resolver) -> Result<Self, String> {
        let trust = Arc::new(Trust::public_and(authorities)?);
        Self::of(trust, &TlsOptions::default(), Connector::new(resolver))
    }

    /// The clients of a check with these options.
    pub(super) fn with(&self, options: &TlsOptions) -> Result<Self, String> {
        if options.are_default() {
            return Ok(self.clone());
        }
        let trust = match &options.ca_file {
            Some(path) => Arc::new(Trust::only(path)?),
            None => self.trust.clone(),
        };
        Self::of(trust, options, self.tls.connector.clone())
    }

    fn of(trust: Arc<Trust>, options: &TlsOptions, connector: Connector) -> Result<Self, String> {
        let trusted = (!options.skip_verify).then(|| trust.clone());
        let identity = options.identity()?;
        let config = tls::verifying(Verifier::new(trusted.clone()), identity.as_ref())?;
        let postgres = postgres::Tls {
            trust: trusted,
            always_verify: options.ca_file.is_some(),
            identity: identity.map(Arc::new),
            server_name: options.server_name.as_deref().map(Into::into),
        };
        let tls = tls::Client {
            config: Arc::new(config),
            name: options.server_name()?,
            connector,
        };
        Ok(Self {
            trust,
            http: http::Tls::new(&tls),
            postgres,
            tls,
        })
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Clients")
    }
}
