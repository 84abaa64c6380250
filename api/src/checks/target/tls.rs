//! TLS: that a server's certificate is valid, and for long enough.

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
use crate::checks::trouble::Trouble;

/// What is asked, and what is expected.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// For how long the certificate has to be valid still.
    pub valid_for: Duration,
}

impl Target {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// Where it can never be asked.
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

/// Asks one target.
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

    /// Asks once.
    ///
    /// # Errors
    /// Where the target does not answer, or not as expected.
    pub async fn ask(&mut self) -> Result<(), Trouble> {
        let stream = connect(&self.tls, &self.target.host, self.target.port)
            .await
            .map_err(|error| trouble(&error))?;
        let end = end(&stream).ok_or_else(|| Trouble("the certificate has no end".into()))?;
        let now = SystemTime::now();
        if end < now + self.target.valid_for {
            return Err(Trouble(format!(
                "the certificate expires on {}, in {}",
                day(end),
                remaining(end.duration_since(now).unwrap_or_default())
            )));
        }
        Ok(())
    }
}

/// A connection whose server has proven its name.
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

/// When the server's own certificate ends.
fn end(stream: &TlsStream<TcpStream>) -> Option<SystemTime> {
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

/// Why there is no connection, in plain words where it is the certificate's age.
pub(super) fn trouble(error: &io::Error) -> Trouble {
    let tls = error.get_ref().and_then(|error| error.downcast_ref());
    if let Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
        not_after,
        ..
    })) = tls
    {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs());
        return Trouble(format!("the certificate expired on {}", day(end)));
    }
    Trouble::of(error, None)
}

fn day(time: SystemTime) -> String {
    let mut text = humantime::format_rfc3339_seconds(time).to_string();
    text.truncate("2026-12-01".len());
    text
}

/// The largest unit of a time, as people say it.
fn remaining(time: Duration) -> String {
    let (count, unit) = match time.as_secs() {
        seconds @ 86_400.. => (seconds / 86_400, "day"),
        seconds @ 3_600.. => (seconds / 3_600, "hour"),
        seconds => (seconds / 60, "minute"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// Trusts the public authorities, and those of the PEM file `authorities`.
///
/// # Errors
/// Where the file cannot be read or has no certificate.
pub(in crate::checks) fn verifying(authorities: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(path) = authorities {
        let wrong = |reason: String| format!("{}: {reason}", path.display());
        let before = roots.len();
        for certificate in
            CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?
        {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            // A system's bundle may have old ones that nothing can use.
            let _ = roots.add(certificate);
        }
        if roots.len() == before {
            return Err(wrong(
                "expected certificates of authorities in PEM form".into(),
            ));
        }
    }
    let mut config = builder()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A resumed session shows no certificate.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Encrypts, whoever is at the other end.
pub(in crate::checks) fn opportunistic() -> Result<ClientConfig, String> {
    let mut config = builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(ring::default_provider())))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())
}

/// Takes every certificate; that the server has its key is verified still.
#[derive(Debug)]
struct Anybody(rustls::crypto::CryptoProvider);

impl ServerCertVerifier for Anybody {
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
    fn the_time_that_remains_is_said_in_its_largest_unit() {
        for (seconds, said) in [
            (8 * 86_400 + 5, "8 days"),
            (86_400, "1 day"),
            (86_399, "23 hours"),
            (59, "0 minutes"),
        ] {
            assert_eq!(remaining(Duration::from_secs(seconds)), said);
        }
    }
}
