//! Certificates of servers: which are trusted, when they expire, and the TLS options of checks.

use std::{
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    DnValue, IsCa, KeyPair, SanType, date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir, tempdir};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::{
    degraded::{QUICK, metric, start_with, wait_for},
    probes::listen,
};

type Authority = CertifiedIssuer<'static, KeyPair>;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The end of a day, a minute later, so that the test does not depend on the current second.
fn in_days(days: i32) -> SystemTime {
    let minute = Duration::from_secs(60);
    match u32::try_from(days) {
        Ok(days) => SystemTime::now() + DAY * days + minute,
        Err(_) => SystemTime::now() - DAY * days.unsigned_abs() + minute,
    }
}

fn day(days: i32) -> String {
    humantime::format_rfc3339(in_days(days)).to_string()[..10].to_owned()
}

/// A certificate of `name` that is valid for some days.
fn params(name: &str, days: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, DnValue::Utf8String(name.into()));
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = in_days(days).into();
    params
}

fn authority_params(name: &str, days: i32) -> CertificateParams {
    let mut params = params(name, days);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.use_authority_key_identifier_extension = true;
    params
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// A self-signed authority.
fn root(name: &str, days: i32) -> Authority {
    CertifiedIssuer::self_signed(authority_params(name, days), key()).unwrap()
}

/// An authority that `issuer` has signed.
fn intermediate(name: &str, days: i32, issuer: &Authority) -> Authority {
    CertifiedIssuer::signed_by(authority_params(name, days), key(), issuer).unwrap()
}

/// The certificates that a server presents, with the key of the first.
struct Chain(Vec<CertificateDer<'static>>, KeyPair);

impl Chain {
    /// A certificate of the server `name` by `issuer`, followed by `others`.
    fn new(name: &str, days: i32, issuer: &Authority, others: &[&CertificateDer<'static>]) -> Self {
        let key = key();
        let mut params = params("server", days);
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        let certificate = params.signed_by(&key, issuer).unwrap();
        let others = others.iter().map(|it| (*it).clone());
        Self(
            std::iter::once(certificate.der().clone())
                .chain(others)
                .collect(),
            key,
        )
    }

    fn single(certificate: &Certificate, key: KeyPair) -> Self {
        Self(vec![certificate.der().clone()], key)
    }

    /// Accepts connections with these certificates; with `clients`, only from clients with a certificate of that authority.
    fn acceptor(&self, clients: Option<&Authority>) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                config.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivatePkcs8KeyDer::from(self.1.serialize_der());
        let config = config.with_single_cert(self.0.clone(), key.into()).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    async fn serve(&self) -> Server {
        Server::start(self.acceptor(None)).await
    }
}

/// The name in the handshake, and the request.
type Seen = (Option<String>, String);

/// Responds to HTTP and Redis over TLS, and records what it received.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn start(acceptor: TlsAcceptor) -> Self {
        Self::start_each(move || acceptor.clone()).await
    }

    async fn start_each(mut acceptor: impl FnMut() -> TlsAcceptor + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let recorded = seen.clone();
        let port = listen(move |stream| {
            let (acceptor, seen) = (acceptor(), recorded.clone());
            async move {
                // Fails if the client does not trust the certificate.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let name = stream.get_ref().1.server_name().map(str::to_owned);
                let mut request = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut request).await {
                    let request = String::from_utf8_lossy(&request[..length]).into_owned();
                    let commands = request.matches('*').count();
                    let response = if request.starts_with("GET ") {
                        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()
                    } else if request.contains("PING") {
                        "+OK\r\n".repeat(commands - 1) + "+PONG\r\n"
                    } else {
                        "+OK\r\n".repeat(commands)
                    };
                    seen.lock().unwrap().push((name.clone(), request));
                    let _ = stream.write_all(response.as_bytes()).await;
                    let _ = stream.flush().await;
                }
            }
        })
        .await;
        Self { port, seen }
    }

    /// The targets of all kinds on this server, and names of their checks.
    fn targets(&self, host: &str) -> [(&'static str, String); 3] {
        let port = self.port;
        [
            ("tls", format!("tls = \"{host}:{port}\"")),
            ("http", format!("http = \"https://{host}:{port}/\"")),
            ("redis", format!("redis = \"rediss://{host}:{port}\"")),
        ]
    }
}

/// A PEM file of these certificates.
fn pem(certificates: &[&CertificateDer<'_>]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    for certificate in certificates {
        let encoded = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, certificate);
        writeln!(file, "-----BEGIN CERTIFICATE-----").unwrap();
        for line in encoded.as_bytes().chunks(64) {
            writeln!(file, "{}", str::from_utf8(line).unwrap()).unwrap();
        }
        writeln!(file, "-----END CERTIFICATE-----").unwrap();
    }
    file
}

fn check(name: &str, target: &str, more: &str) -> String {
    format!("[[checks]]\nname = \"{name}\"\n{target}\n{more}\n")
}

fn trusting(file: &Path) -> String {
    format!("ca-file = \"{}\"", file.display())
}

/// Probes `targets` with these keys, and returns the status of each check, whose state must be `state`.
async fn probe<const N: usize>(
    targets: [(&'static str, String); N],
    more: &str,
    state: &str,
) -> [Value; N] {
    // The first result is enough.
    let mut text = QUICK.replace("\"1s\"", "\"20s\"");
    for (name, target) in &targets {
        text += &check(name, target, more);
    }
    let url = start_with(&text);
    let mut statuses = targets.map(|(name, _)| Value::from(name));
    for status in &mut statuses {
        let name = status.as_str().unwrap().to_owned();
        *status = wait_for(&url, &name, state).await;
        if state != "down" {
            let expiry = metric(&url, "probe_ssl_earliest_cert_expiry", &name).await;
            assert!(expiry.is_some(), "{name}");
            assert_eq!(metric(&url, "check_up", &name).await, Some(1.0));
        }
    }
    statuses
}

fn text<'a>(status: &'a Value, key: &str) -> &'a str {
    status["last"][key].as_str().unwrap_or_default()
}

#[actix_web::test]
async fn certificate_that_expires_soon_makes_checks_of_every_kind_degraded() {
    let root = root("Root", 1000);
    let server = Chain::new("localhost", 10, &root, &[]).serve().await;
    let file = pem(&[root.der()]);
    let trust = trusting(file.path());
    let warning = format!("the certificate expires on {}, in 10 days", day(10));
    for status in probe(server.targets("localhost"), &trust, "degraded").await {
        assert_eq!(text(&status, "warning"), warning);
        let expiry = status["certificate_expiry"].as_str().unwrap();
        assert!(expiry.starts_with(&day(10)), "{expiry}");
    }
    for valid_for in ["9days", "0s"] {
        let more = format!("{trust}\nvalid-for = \"{valid_for}\"");
        for status in probe(server.targets("localhost"), &more, "up").await {
            assert_eq!(text(&status, "warning"), "");
        }
    }
}

#[actix_web::test]
async fn every_certificate_of_the_chain_counts() {
    let root = root("Root", 1000);
    let short = intermediate("Short", 3, &root);
    let server = Chain::new("localhost", 200, &short, &[short.der()])
        .serve()
        .await;
    let file = pem(&[root.der()]);
    let warning = format!(
        "the certificate of the issuer CN=Short expires on {}, in 3 days",
        day(3)
    );
    let more = trusting(file.path());
    for status in probe(server.targets("localhost"), &more, "degraded").await {
        assert_eq!(text(&status, "warning"), warning);
    }
}

#[actix_web::test]
async fn certificates_that_are_not_needed_do_not_count() {
    let (old, new) = (root("Old", 1000), root("New", 1000));
    let issuing = intermediate("Issuing", 1000, &new);
    // The server also presents the new root with the signature of the old one, for old clients.
    let cross = authority_params("New", 3)
        .signed_by(new.key(), &old)
        .unwrap();
    let chain = Chain::new("localhost", 200, &issuing, &[issuing.der(), cross.der()]);
    let server = chain.serve().await;
    for (file, state) in [(pem(&[new.der()]), "up"), (pem(&[old.der()]), "degraded")] {
        probe(server.targets("localhost"), &trusting(file.path()), state).await;
    }
    // The chain with the new root is the one that remains valid.
    let both = pem(&[old.der(), new.der()]);
    probe(server.targets("localhost"), &trusting(both.path()), "up").await;
}

#[actix_web::test]
async fn private_authority_counts_like_its_certificates() {
    let (soon, late) = (root("Soon", 3), root("Late", -3));
    for (root, state, key, expected) in [
        (
            soon,
            "degraded",
            "warning",
            format!(
                "the certificate of the issuer CN=Soon expires on {}, in 3 days",
                day(3)
            ),
        ),
        (
            late,
            "down",
            "error",
            format!("the certificate expired on {}", day(-3)),
        ),
    ] {
        let server = Chain::new("localhost", 200, &root, &[]).serve().await;
        let file = pem(&[root.der()]);
        let more = trusting(file.path());
        for status in probe(server.targets("localhost"), &more, state).await {
            assert_eq!(text(&status, key), expected);
        }
    }
}

#[actix_web::test]
async fn self_signed_certificate_in_the_trust_file_is_accepted() {
    // As `openssl req -x509` makes it: a certificate of an authority, with or without an alternative name.
    for names in [vec!["localhost"], vec![]] {
        for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::NoCa] {
            let mut params = params("localhost", 200);
            params.is_ca = is_ca;
            params.subject_alt_names = names
                .iter()
                .map(|name| SanType::DnsName((*name).try_into().unwrap()))
                .collect();
            let key = key();
            let certificate = params.self_signed(&key).unwrap();
            let server = Chain::single(&certificate, key).serve().await;
            let file = pem(&[certificate.der()]);
            let more = trusting(file.path());
            probe(server.targets("localhost"), &more, "up").await;
            for status in probe(server.targets("127.0.0.1"), &more, "down").await {
                let error = text(&status, "error");
                assert!(error.contains("not valid for"), "{error}");
            }
        }
    }
}

#[actix_web::test]
async fn certificate_in_the_trust_file_must_still_be_valid() {
    for (days, error) in [
        (-3, format!("the certificate expired on {}", day(-3))),
        (3, String::new()),
    ] {
        let mut params = authority_params("localhost", days);
        params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
        let key = key();
        let certificate = params.self_signed(&key).unwrap();
        let server = Chain::single(&certificate, key).serve().await;
        let state = if days < 0 { "down" } else { "degraded" };
        let file = pem(&[certificate.der()]);
        let more = trusting(file.path());
        for status in probe(server.targets("localhost"), &more, state).await {
            assert_eq!(text(&status, "error"), error);
        }
        // Only this certificate is trusted, not every self-signed one.
        let other = pem(&[root("localhost", 200).der()]);
        let more = trusting(other.path());
        for status in probe(server.targets("localhost"), &more, "down").await {
            let error = text(&status, "error");
            let expected = ["is self-signed and not trusted", "expired on"][usize::from(days < 0)];
            assert!(error.contains(expected), "{error}");
        }
    }
}

#[actix_web::test]
async fn server_name_is_sent_and_verified_instead_of_the_host() {
    let root = root("Root", 1000);
    let server = Chain::new("b.test", 200, &root, &[]).serve().await;
    let file = pem(&[root.der()]);
    let trust = trusting(file.path());
    for status in probe(server.targets("127.0.0.1"), &trust, "down").await {
        let error = text(&status, "error");
        assert!(error.contains("not valid for"), "{error}");
    }
    let named = format!("{trust}\nserver-name = \"b.test\"");
    for host in ["127.0.0.1", "localhost"] {
        probe(server.targets(host), &named, "up").await;
    }
    let [_, http, _] = server.targets("127.0.0.1");
    let more = format!("{named}\nheaders = {{ Host = \"a.test\" }}");
    probe([http], &more, "up").await;
    let seen = server.seen.lock().unwrap();
    assert!(
        seen.iter()
            .all(|(name, _)| name.as_deref() == Some("b.test"))
    );
    let host = |name: &str| {
        let header = format!("host: {name}");
        let sent = |(_, request): &(_, String)| request.to_lowercase().contains(&header);
        seen.iter().any(sent)
    };
    assert!(host(&format!("b.test:{}", server.port)) && host("a.test"));
}

#[actix_web::test]
async fn skip_verify_accepts_any_certificate_but_still_warns() {
    for (days, state) in [(200, "up"), (3, "degraded"), (-3, "degraded")] {
        let server = Chain::new("b.test", days, &root("Root", 1000), &[])
            .serve()
            .await;
        let targets = server.targets("localhost");
        let statuses = probe(targets, "skip-verify = true", state).await;
        let expected = match days {
            200 => String::new(),
            3 => format!("the certificate expires on {}, in 3 days", day(3)),
            _ => format!("the certificate expired on {}", day(-3)),
        };
        for status in statuses {
            assert_eq!(text(&status, "warning"), expected);
        }
        let targets = server.targets("localhost");
        let error = if days < 0 { "expired" } else { "UnknownIssuer" };
        for status in probe(targets, "", "down").await {
            assert!(text(&status, "error").contains(error), "{status:#}");
        }
    }
}

/// The files of a client certificate by `issuer`, with the key in the same file or in another one.
fn identity(issuer: &Authority, directory: &TempDir) -> [String; 2] {
    let key = key();
    let certificate = params("client", 200).signed_by(&key, issuer).unwrap();
    let path = |name: &str| directory.path().join(name);
    let (one, other, both) = (path("client.pem"), path("client.key"), path("both.pem"));
    std::fs::write(&one, certificate.pem()).unwrap();
    std::fs::write(&other, key.serialize_pem()).unwrap();
    std::fs::write(&both, key.serialize_pem() + &certificate.pem()).unwrap();
    [
        format!(
            "client-certificate = \"{}\"\nclient-key = \"{}\"",
            one.display(),
            other.display()
        ),
        format!("client-certificate = \"{}\"", both.display()),
    ]
}

#[actix_web::test]
async fn presents_the_client_certificate() {
    let root = root("Root", 1000);
    let chain = Chain::new("localhost", 200, &root, &[]);
    let server = Server::start(chain.acceptor(Some(&root))).await;
    let (file, directory) = (pem(&[root.der()]), tempdir().unwrap());
    let trust = trusting(file.path());
    for identity in identity(&root, &directory) {
        let more = format!("{trust}\n{identity}");
        probe(server.targets("localhost"), &more, "up").await;
    }
    // With TLS 1.3, the handshake of the client succeeds before the server rejects it.
    let [_, http, redis] = server.targets("localhost");
    probe([http, redis], &trust, "down").await;
}

#[actix_web::test]
async fn defaults_apply_to_checks_that_set_nothing_else() {
    let (root, other) = (root("Root", 1000), root("Other", 1000));
    let chain = Chain::new("b.test", 200, &root, &[]);
    let server = Server::start(chain.acceptor(Some(&root))).await;
    let (file, directory) = (pem(&[root.der()]), tempdir().unwrap());
    let [identity, _] = identity(&root, &directory);
    let trust = trusting(file.path());
    // Only the first result matters, and a busy machine may need long for it.
    let patient = QUICK.replace("\"1s\"", "\"10s\"");
    let defaults = format!("{patient}{trust}\nserver-name = \"b.test\"\n{identity}\n");
    let [_, http, redis] = server.targets("localhost");
    let other = pem(&[other.der()]);
    let own = |name, keys: &str| check(name, &http.1, keys);
    let url = start_with(
        &[
            defaults,
            check("redis", &redis.1, ""),
            own("http", ""),
            own("other-authority", &trusting(other.path())),
            own("public-authorities", "ca-file = \"\""),
            own("host-name", "server-name = \"\""),
            own("no-certificate", "client-certificate = \"\""),
            own("skips", "skip-verify = true\nserver-name = \"c.test\""),
        ]
        .concat(),
    );
    for (name, state, error) in [
        ("redis", "up", ""),
        ("http", "up", ""),
        ("other-authority", "down", "UnknownIssuer"),
        ("public-authorities", "down", "UnknownIssuer"),
        ("host-name", "down", "not valid for"),
        ("no-certificate", "down", "CertificateRequired"),
        ("skips", "up", ""),
    ] {
        let status = wait_for(&url, name, state).await;
        assert!(text(&status, "error").contains(error), "{status:#}");
    }
}

#[actix_web::test]
async fn follows_changes_of_files_and_of_the_certificate() {
    let (old, new) = (root("Old", 1000), root("New", 1000));
    let mut acceptors = [
        Chain::new("localhost", 200, &old, &[]),
        Chain::new("localhost", 3, &new, &[]),
        Chain::new("localhost", 200, &new, &[]),
    ]
    .map(|chain| chain.acceptor(None))
    .to_vec();
    let current = Arc::new(Mutex::new(acceptors.remove(0)));
    let serving = current.clone();
    let server = Server::start_each(move || serving.lock().unwrap().clone()).await;
    let directory = tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    let [tls, ..] = server.targets("localhost");
    let url = start_with(&format!(
        "{QUICK}{}",
        check("tls", &tls.1, &trusting(&path))
    ));

    let status = wait_for(&url, "tls", "down").await;
    let error = text(&status, "error");
    assert!(error.starts_with(path.to_str().unwrap()), "{error}");
    let replace = |certificate: &Authority| {
        std::fs::copy(pem(&[certificate.der()]).path(), &path).unwrap();
    };
    replace(&old);
    wait_for(&url, "tls", "up").await;
    *current.lock().unwrap() = acceptors.remove(0);
    wait_for(&url, "tls", "down").await;
    replace(&new);
    wait_for(&url, "tls", "degraded").await;
    *current.lock().unwrap() = acceptors.remove(0);
    wait_for(&url, "tls", "up").await;
}
