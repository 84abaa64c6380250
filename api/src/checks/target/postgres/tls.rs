//! TLS of PostgreSQL connections, by `sslmode` of the URL and the options of the check.

use std::sync::Arc;

use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    super::tls,
    url::{Parameters, SslMode},
};
use crate::checks::{
    certificates::{Trust, Verifier},
    tls_options::Identity,
};

/// The name of the protocol in the handshake.
const PROTOCOL: &[u8] = b"postgresql";

/// What the options of a check, and those of the service, say about TLS.
#[derive(Clone)]
pub(in crate::checks) struct Tls {
    /// The trusted certificates; `None` accepts any certificate.
    pub(in crate::checks) trust: Option<Arc<Trust>>,
    /// Whether the option `ca-file` is set, so that every certificate is verified.
    pub(in crate::checks) always_verify: bool,
    pub(in crate::checks) identity: Option<Arc<Identity>>,
    /// The name of every server, instead of its host.
    pub(in crate::checks) server_name: Option<Box<str>>,
}

impl Tls {
    /// Creates the TLS configuration of a connection. `sslrootcert` is read each time, because it may change.
    pub(super) fn connector(&self, parameters: &Parameters) -> Result<MakeRustlsConnect, String> {
        let trust = match (&parameters.roots, &self.trust) {
            (_, None) => None,
            (Some(path), Some(_)) => Some(Arc::new(Trust::only(path)?)),
            (None, Some(trust)) => Some(trust.clone()),
        };
        let has_roots = parameters.roots.is_some();
        let verifier = match parameters.ssl_mode {
            SslMode::VerifyFull => Verifier::new(trust),
            _ if self.always_verify && !has_roots => Verifier::new(trust),
            SslMode::VerifyCa => Verifier::without_name(trust),
            // As documented: like verify-ca if there are root certificates.
            SslMode::Require if has_roots => Verifier::without_name(trust),
            SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => {
                Verifier::new(None)
            }
        };
        let mut config = tls::verifying(verifier, self.identity.as_deref())?;
        config.enable_sni = parameters.sni;
        if parameters.direct_tls {
            config.alpn_protocols = vec![PROTOCOL.to_vec()];
        }
        Ok(MakeRustlsConnect::new(config))
    }
}
