//! Verifies the certificates of servers, and notes when they expire.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    error::Error,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ring::digest::{SHA256, digest};
use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use x509_cert::{
    Certificate,
    der::{Decode, Encode, asn1::ObjectIdentifier},
    ext::pkix::{ExtendedKeyUsage, SubjectAltName},
    name::Name,
};

/// Allow a certificate to be used by servers, or for everything.
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// When the certificates of a server expire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// When the chain of certificates is no longer valid: the server has no other certificates with which it is valid for longer.
    pub time: SystemTime,
    /// The subject of the certificate that expires then, if it is not the certificate of the server itself.
    pub issuer: Option<Box<str>>,
}

tokio::task_local! {
    static SEEN: RefCell<Option<Expiry>>;
}

/// Runs `probe`, and returns the expiry of the certificates that it saw last, if it opened a TLS connection.
pub(crate) async fn observe<T>(probe: impl Future<Output = T>) -> (T, Option<Expiry>) {
    SEEN.scope(RefCell::default(), async {
        let output = probe.await;
        (output, SEEN.with(RefCell::take))
    })
    .await
}

impl Expiry {
    /// The warning if this is less than `valid_for` after `now`. Without a required time, there is none.
    pub(super) fn warning(&self, valid_for: Duration, now: SystemTime) -> Option<String> {
        let left = self.time.duration_since(now).unwrap_or_default();
        if valid_for.is_zero() || left >= valid_for {
            return None;
        }
        let certificate = match &self.issuer {
            None => "the certificate".to_owned(),
            Some(subject) => format!("the certificate of the issuer {subject}"),
        };
        let day = day(self.time);
        Some(if left.is_zero() {
            format!("{certificate} expired on {day}")
        } else {
            format!("{certificate} expires on {day}, in {}", remaining(left))
        })
    }
}

/// The day of `time` in UTC, such as 2026-12-01.
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

/// A message for an error that is, or contains, a rejected certificate, if there is a clearer one than its own.
pub(super) fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let Some(rustls::Error::InvalidCertificate(rejected)) = error.downcast_ref() else {
        return explain(error.downcast_ref::<io::Error>()?.get_ref()?);
    };
    let day = |time: &UnixTime| day(SystemTime::UNIX_EPOCH + since_epoch(*time));
    match rejected {
        CertificateError::ExpiredContext { not_after, .. } => {
            Some(format!("the certificate expired on {}", day(not_after)))
        }
        CertificateError::NotValidYetContext { not_before, .. } => Some(format!(
            "the certificate is not valid before {}",
            day(not_before)
        )),
        // The library has no variant for this error.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            Some("the certificate is self-signed and not trusted".into())
        }
        _ => None,
    }
}

/// Notes the expiry for [`observe`]. The earliest one counts if a probe connects to several servers because of redirects.
fn note(expiry: Option<Expiry>) {
    // Fails outside of `observe`.
    let _ = SEEN.try_with(|seen| {
        let mut seen = seen.borrow_mut();
        let earlier = |new: &Expiry| seen.as_ref().is_none_or(|old| new.time < old.time);
        if expiry.as_ref().is_some_and(earlier) {
            *seen = expiry;
        }
    });
}

/// The certificates that are trusted.
#[derive(Debug)]
pub(super) struct Trust {
    roots: RootCertStore,
    /// The certificates of the PEM file.
    own: Vec<Own>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A certificate of the PEM file.
#[derive(Debug)]
struct Own {
    digest: [u8; 32],
    subject: Box<[u8]>,
    end: Duration,
    /// The index in the list of roots, if it can be used as authority.
    root: Option<usize>,
}

/// The certificates that a server presents, and the name that it must have.
#[derive(Clone, Copy)]
struct Presented<'a> {
    server: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
    /// `None` allows any name.
    name: Option<&'a ServerName<'a>>,
}

impl Trust {
    /// Trusts the public certificate authorities, and the certificates in the PEM file `more`.
    ///
    /// # Errors
    /// When the file cannot be read or contains no certificate.
    pub(super) fn public_and(more: Option<&Path>) -> Result<Self, String> {
        let roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        let trust = Self {
            roots,
            own: Vec::new(),
            algorithms: algorithms(),
        };
        match more {
            Some(path) => trust.with(path),
            None => Ok(trust),
        }
    }

    /// Trusts only the certificates in the PEM file at `path`.
    ///
    /// # Errors
    /// When the file cannot be read or contains no certificate.
    pub(super) fn only(path: &Path) -> Result<Self, String> {
        let trust = Self {
            roots: RootCertStore::empty(),
            own: Vec::new(),
            algorithms: algorithms(),
        };
        trust.with(path)
    }

    fn with(mut self, path: &Path) -> Result<Self, String> {
        let error = |reason: String| format!("{}: {reason}", path.display());
        for certificate in
            CertificateDer::pem_file_iter(path).map_err(|cause| error(cause.to_string()))?
        {
            let der = certificate.map_err(|cause| error(cause.to_string()))?;
            // A bundle of the system may contain outdated certificates that cannot be used.
            let Ok(parsed) = Certificate::from_der(&der) else {
                continue;
            };
            let (Ok(subject), digest) = (parsed.tbs_certificate.subject.to_der(), sha256(&der))
            else {
                continue;
            };
            let root = self.roots.len();
            self.own.push(Own {
                digest,
                subject: subject.into(),
                end: end(&parsed),
                root: self.roots.add(der).is_ok().then_some(root),
            });
        }
        if self.own.is_empty() {
            return Err(error("expected CA certificates in PEM format".into()));
        }
        Ok(self)
    }

    /// Verifies what a server presents, as of `now`.
    fn verify(&self, presented: Presented<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        let Presented {
            server,
            intermediates,
            name,
        } = presented;
        if self.contains(server) {
            return verify_trusted(server, name, now);
        }
        let certificate = ParsedCertificate::try_from(server)?;
        let verify = |roots: &RootCertStore| {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                roots,
                intermediates,
                now,
                self.algorithms.all,
            )
        };
        verify(&self.roots)?;
        if let Some(name) = name {
            verify_server_name(&certificate, name)?;
        }
        // The library does not compare the time with the expiry of an authority.
        let expired = |own: &&Own| own.root.is_some() && own.end < since_epoch(now);
        let issuers = issuers(presented);
        let Some(authority) = self
            .own
            .iter()
            .filter(expired)
            .find(|own| issuers.contains(&own.subject))
        else {
            return Ok(());
        };
        let outdated: BTreeSet<_> = (self.own.iter().filter(expired))
            .filter_map(|own| own.root)
            .collect();
        let valid = (self.roots.roots.iter().enumerate())
            .filter(|(index, _)| !outdated.contains(index))
            .map(|(_, root)| root.clone());
        verify(&valid.collect()).map_err(|_| {
            CertificateError::ExpiredContext {
                time: now,
                not_after: UnixTime::since_unix_epoch(authority.end),
            }
            .into()
        })
    }

    /// Whether the PEM file contains this certificate.
    fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        // Without a file, nothing needs to be computed.
        !self.own.is_empty() && {
            let digest = sha256(certificate);
            self.own.iter().any(|own| own.digest == digest)
        }
    }

    /// When a chain that is valid as of `now` expires. A server may present more certificates than needed, so a certificate counts
    /// only if the others are not valid without it.
    fn expiry(&self, presented: Presented<'_>, now: UnixTime) -> Option<Expiry> {
        let leaf = Certificate::from_der(presented.server).ok()?;
        let mut ends = vec![(end(&leaf), None)];
        if !self.contains(presented.server) {
            for certificate in presented.intermediates {
                if let Ok(certificate) = Certificate::from_der(certificate) {
                    let subject = certificate.tbs_certificate.subject.to_string();
                    ends.push((end(&certificate), Some(subject)));
                }
            }
            let issuers = issuers(presented);
            let used = |own: &&Own| own.root.is_some() && issuers.contains(&own.subject);
            ends.extend(self.own.iter().filter(used).map(|own| {
                let subject = Name::from_der(&own.subject).map(|name| name.to_string());
                (own.end, subject.ok())
            }));
        }
        ends.retain(|(end, _)| *end >= since_epoch(now));
        ends.sort();
        let (time, issuer) = ends.into_iter().find(|(end, _)| {
            let after = UnixTime::since_unix_epoch(*end + Duration::from_secs(1));
            self.verify(presented, after).is_err()
        })?;
        Some(Expiry {
            time: SystemTime::UNIX_EPOCH + time,
            issuer: issuer.map(Into::into),
        })
    }
}

/// Verifies a certificate that is itself in the PEM file, as OpenSSL does: it needs no authority, and may be one. `openssl req
/// -x509` creates such certificates.
fn verify_trusted(
    der: &CertificateDer<'_>,
    name: Option<&ServerName<'_>>,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let certificate = Certificate::from_der(der).map_err(|_| CertificateError::BadEncoding)?;
    let content = &certificate.tbs_certificate;
    let begin = content.validity.not_before.to_unix_duration();
    if since_epoch(now) < begin {
        return Err(CertificateError::NotValidYetContext {
            time: now,
            not_before: UnixTime::since_unix_epoch(begin),
        }
        .into());
    }
    if since_epoch(now) > end(&certificate) {
        return Err(CertificateError::ExpiredContext {
            time: now,
            not_after: UnixTime::since_unix_epoch(end(&certificate)),
        }
        .into());
    }
    if let Ok(Some((_, usage))) = content.get::<ExtendedKeyUsage>()
        && !usage
            .0
            .iter()
            .any(|it| [SERVER_AUTH, ANY_USAGE].contains(it))
    {
        return Err(CertificateError::InvalidPurpose.into());
    }
    let Some(name) = name else {
        return Ok(());
    };
    let matches = verify_server_name(&ParsedCertificate::try_from(der)?, name);
    // The common name counts only if there is no other name.
    let has_names = !matches!(content.get::<SubjectAltName>(), Ok(None));
    if matches.is_err() && !has_names && has_common_name(&content.subject, &name.to_str()) {
        return Ok(());
    }
    matches
}

fn has_common_name(subject: &Name, name: &str) -> bool {
    let mut attributes = subject.0.iter().flat_map(|names| names.0.iter());
    attributes.any(|attribute| {
        attribute.oid == COMMON_NAME
            && attribute
                .value
                .value()
                .eq_ignore_ascii_case(name.as_bytes())
    })
}

/// The issuers of the certificates that a server presents.
fn issuers(presented: Presented<'_>) -> Vec<Box<[u8]>> {
    std::iter::once(presented.server)
        .chain(presented.intermediates)
        .filter_map(|certificate| {
            let certificate = Certificate::from_der(certificate).ok()?;
            let issuer = certificate.tbs_certificate.issuer.to_der().ok()?;
            Some(issuer.into())
        })
        .collect()
}

/// When a certificate expires, since the epoch.
fn end(certificate: &Certificate) -> Duration {
    let validity = &certificate.tbs_certificate.validity;
    validity.not_after.to_unix_duration()
}

const fn since_epoch(time: UnixTime) -> Duration {
    Duration::from_secs(time.as_secs())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

/// Verifies the certificate of a server, and notes its expiry for [`observe`].
#[derive(Debug)]
pub(super) struct Verifier {
    /// `None` accepts any certificate.
    trust: Option<Arc<Trust>>,
    verifies_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(trust: Option<Arc<Trust>>) -> Arc<Self> {
        Arc::new(Self {
            trust,
            verifies_name: true,
            algorithms: algorithms(),
        })
    }

    /// Accepts certificates for any name.
    pub(super) fn without_name(trust: Option<Arc<Trust>>) -> Arc<Self> {
        Arc::new(Self {
            trust,
            verifies_name: false,
            algorithms: algorithms(),
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = Presented {
            server,
            intermediates,
            name: Some(name).filter(|_| self.verifies_name),
        };
        let expiry = match &self.trust {
            Some(trust) => {
                trust.verify(presented, now)?;
                trust.expiry(presented, now)
            }
            None => Certificate::from_der(server)
                .ok()
                .map(|certificate| Expiry {
                    time: SystemTime::UNIX_EPOCH + end(&certificate),
                    issuer: None,
                }),
        };
        note(expiry);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
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
