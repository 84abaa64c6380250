//! TLS: the certificate of a server is valid, and remains valid for long enough.

use std::{
    fmt, io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore,
    SignatureScheme, WantsVerifier,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_cert::{Certificate, der::Decode};

use super::tcp;
use crate::checks::probe_error::ProbeError;

/// A target, with the expected response.
#[derive(Clone, Debug)]
pub struct Target {
    /// The host name or IP address.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// How long the certificate must remain valid.
    pub valid_for: Duration,
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
    tls: Arc<ClientConfig>,
}

impl Probe {
    /// Creates a probe of `target` that trusts what `tls` trusts.
    #[must_use]
    pub const fn new(target: Target, tls: Arc<ClientConfig>) -> Self {
        Self { target, tls }
    }

    /// Probes the target once.
    ///
    /// # Errors
    /// When the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        let stream = connect(&self.tls, &self.target.host, self.target.port)
            .await
            .map_err(|error| probe_error(&error))?;
        let end = expiry(&stream)
            .ok_or_else(|| ProbeError("cannot read the expiry date of the certificate".into()))?;
        let now = SystemTime::now();
        if end < now + self.target.valid_for {
            return Err(ProbeError(format!(
                "the certificate expires on {}, in {}",
                day(end),
                remaining(end.duration_since(now).unwrap_or_default())
            )));
        }
        Ok(())
    }
}

/// Connects to a server and verifies its certificate.
pub(super) async fn connect(
    config: &Arc<ClientConfig>,
    host: &str,
    port: u16,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = tcp::connect(host, port).await?;
    TlsConnector::from(config.clone())
        .connect(name, stream)
        .await
}

/// When the certificate of the server expires.
fn expiry(stream: &TlsStream<TcpStream>) -> Option<SystemTime> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let certificate = Certificate::from_der(certificate).ok()?;
    Some(
        certificate
            .tbs_certificate
            .validity
            .not_after
            .to_system_time(),
    )
}

/// Converts an error, with a clear message for an expired certificate.
pub(super) fn probe_error(error: &io::Error) -> ProbeError {
    let tls = error.get_ref().and_then(|error| error.downcast_ref());
    if let Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
        not_after,
        ..
    })) = tls
    {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs());
        return ProbeError(format!("the certificate expired on {}", day(end)));
    }
    ProbeError::of(error, None)
}

fn day(time: SystemTime) -> String {
    let mut text = humantime::format_rfc3339_seconds(time).to_string();
    text.truncate("2026-12-01".len());
    text
}

/// Formats a duration in its largest unit.
fn remaining(time: Duration) -> String {
    let (count, unit) = match time.as_secs() {
        seconds @ 86_400.. => (seconds / 86_400, "day"),
        seconds @ 3_600.. => (seconds / 3_600, "hour"),
        seconds => (seconds / 60, "minute"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// Trusts the public certificate authorities, and those in the PEM file `authorities`.
///
/// # Errors
/// When the file cannot be read or contains no certificate.
pub(in crate::checks) fn verifying(authorities: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(path) = authorities {
        let error = |reason: String| format!("{}: {reason}", path.display());
        let before = roots.len();
        for certificate in
            CertificateDer::pem_file_iter(path).map_err(|cause| error(cause.to_string()))?
        {
            let certificate = certificate.map_err(|cause| error(cause.to_string()))?;
            // A bundle of the system may contain outdated certificates that cannot be used.
            let _ = roots.add(certificate);
        }
        if roots.len() == before {
            return Err(error("expected CA certificates in PEM format".into()));
        }
    }
    let mut config = builder()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A resumed session does not present a certificate.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Encrypts without verifying the certificate.
pub(in crate::checks) fn opportunistic() -> Result<ClientConfig, String> {
    let mut config = builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny(ring::default_provider())))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())
}

/// Accepts every certificate, but verifies that the server has its private key.
#[derive(Debug)]
struct AcceptAny(rustls::crypto::CryptoProvider);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_the_remaining_time_in_its_largest_unit() {
        for (seconds, expected) in [
            (8 * 86_400 + 5, "8 days"),
            (86_400, "1 day"),
            (86_399, "23 hours"),
            (59, "0 minutes"),
        ] {
            assert_eq!(remaining(Duration::from_secs(seconds)), expected);
        }
    }
}
