//! How the probes of a check use TLS.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};

/// How the probes of a check use TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// The name that is sent to the server as SNI and that its certificate must have, instead of the host of the target.
    pub server_name: Option<String>,
    /// A PEM file of the only certificates to trust.
    pub ca_file: Option<PathBuf>,
    /// A PEM file of the client certificate and its chain.
    pub client_certificate: Option<PathBuf>,
    /// A PEM file of the private key of the client certificate; by default the same file.
    pub client_key: Option<PathBuf>,
    /// Whether any certificate of the server is accepted.
    pub skip_verify: bool,
    /// The check is degraded if the certificates of the server expire within this time; zero disables the warning.
    pub valid_for: Duration,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            server_name: None,
            ca_file: None,
            client_certificate: None,
            client_key: None,
            skip_verify: false,
            valid_for: Duration::from_secs(14 * 24 * 60 * 60),
        }
    }
}

/// What shows that a file has changed: its modification time and length.
pub(super) type Stamp = Option<(SystemTime, u64)>;

/// A client certificate with its chain, and its private key.
pub(super) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl TlsOptions {
    /// Whether connections can use the same TLS configuration as those of checks without options.
    pub(super) fn are_default(&self) -> bool {
        *self
            == Self {
                valid_for: self.valid_for,
                ..Self::default()
            }
    }

    /// The stamps of the files.
    pub(super) fn stamps(&self) -> Vec<Stamp> {
        let files = [&self.ca_file, &self.client_certificate, &self.client_key];
        let stamp = |path: &PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        files.into_iter().flatten().map(stamp).collect()
    }

    /// Reads the client certificate, if there is one.
    ///
    /// # Errors
    /// When a file cannot be read or contains no certificate or no key.
    pub(super) fn identity(&self) -> Result<Option<Identity>, String> {
        let Some(certificate) = &self.client_certificate else {
            return Ok(None);
        };
        let key = self.client_key.as_ref().unwrap_or(certificate);
        let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .map_err(|error| unreadable(certificate, &error))?;
        if chain.is_empty() {
            let path = certificate.display();
            return Err(format!("{path}: expected a certificate in PEM format"));
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
        Ok(Some((chain, key)))
    }

    /// The configured name of the server.
    ///
    /// # Errors
    /// When it is not a DNS name.
    pub(super) fn server_name(&self) -> Result<Option<ServerName<'static>>, String> {
        let parse = |name: &String| match ServerName::try_from(name.clone()) {
            Ok(name @ ServerName::DnsName(_)) => Ok(name),
            _ => Err(format!("{name:?} is not a DNS name")),
        };
        self.server_name.as_ref().map(parse).transpose()
    }

    /// Whether the name of the server is valid.
    pub(crate) fn is_server_name(name: &str) -> bool {
        matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_)))
    }
}

/// The message for a PEM file that cannot be used; it contains nothing of the file.
fn unreadable(path: &Path, error: &rustls::pki_types::pem::Error) -> String {
    format!("{}: {error}", path.display())
}
