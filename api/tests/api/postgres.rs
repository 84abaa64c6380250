//! The parameters of PostgreSQL connection URLs, against small servers that speak the protocol.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use api::{
    Settings,
    checks::{Target, postgres},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::probes::{clients, listen, over_tls::Authority, probe_with, url};

/// What a server is, and accepts.
#[derive(Clone, Default)]
struct Server {
    is_standby: bool,
    acceptor: Option<TlsAcceptor>,
    /// Rejects connections without TLS.
    requires_tls: bool,
    rejects_login: bool,
    /// The startup messages that were received.
    logins: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn standby() -> Self {
        Self {
            is_standby: true,
            ..Self::default()
        }
    }

    async fn start(&self) -> u16 {
        let server = self.clone();
        listen(move |mut stream| {
            let server = server.clone();
            async move {
                let mut request = [0; 8];
                stream.peek(&mut request).await.unwrap();
                // A request for TLS.
                if request[4..] != [4, 210, 22, 47] {
                    return server.serve(stream, false).await;
                }
                stream.read_exact(&mut request).await.unwrap();
                let Some(acceptor) = &server.acceptor else {
                    stream.write_all(b"N").await.unwrap();
                    return server.serve(stream, false).await;
                };
                stream.write_all(b"S").await.unwrap();
                if let Ok(stream) = acceptor.accept(stream).await {
                    server.serve(stream, true).await;
                }
            }
        })
        .await
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, is_encrypted: bool) {
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let answer = match buffer[0] {
                0 => {
                    self.logins.lock().unwrap().push(text);
                    if self.rejects_login {
                        error("28P01", "wrong password")
                    } else if self.requires_tls && !is_encrypted {
                        error("28000", "no pg_hba.conf entry, no encryption")
                    } else {
                        [message(b'R', &[0; 4]), ready()].concat()
                    }
                }
                b'Q' if text.contains("transaction_read_only") => {
                    row(if self.is_standby { "on" } else { "off" })
                }
                b'Q' if text.contains("pg_is_in_recovery") => {
                    row(if self.is_standby { "t" } else { "f" })
                }
                b'Q' => row("1"),
                _ => return,
            };
            stream.write_all(&answer).await.unwrap();
            stream.flush().await.unwrap();
        }
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

fn error(code: &str, text: &str) -> Vec<u8> {
    let fields = format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0");
    message(b'E', fields.as_bytes())
}

/// The result of a query: one row with one value.
fn row(value: &str) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap().to_be_bytes();
    let column = b"\0\x01v\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
    [
        message(b'T', column),
        message(b'D', &[&[0, 1], &length[..], value.as_bytes()].concat()),
        message(b'C', b"SELECT 1\0"),
        ready(),
    ]
    .concat()
}

/// Probes the server of the URL as the configuration reads it.
async fn probe(text: &str) -> Result<(), String> {
    let text = format!("[[checks]]\nname = \"db\"\npostgres = \"{text}\"\n");
    let mut settings = Settings::parse("api.toml", &text, &|_| None).unwrap();
    probe_with(settings.checks.remove(0).target, &clients()).await
}

/// The problem of a URL.
fn problem(text: &str) -> String {
    let text = format!("[[checks]]\nname = \"db\"\npostgres = \"{text}\"\n");
    let problems = Settings::parse("api.toml", &text, &|_| None).unwrap_err();
    problems.to_string()
}

#[test]
fn refuses_parameters_by_their_name() {
    let refused = |parameters: &str| {
        let problem = problem(&format!("postgresql://app:s3cret@db/app?{parameters}"));
        assert!(!problem.contains("s3cret"), "{problem}");
        let (_, reason) = problem.split_once("postgres cannot be probed: ").unwrap();
        reason.to_owned()
    };
    for name in [
        "passfile",
        "require_auth",
        "requirepeer",
        "requiressl",
        "replication",
        "service",
        "servicefile",
        "sslcert",
        "sslkey",
        "sslpassword",
        "sslcrl",
        "sslcrldir",
        "sslkeylogfile",
        "krbsrvname",
        "gsslib",
        "gssdelegation",
        "ssl_max_protocol_version",
        "min_protocol_version",
        "max_protocol_version",
        "scram_client_key",
        "scram_server_key",
        "oauth_issuer",
    ] {
        let reason = refused(&format!("{name}=s3cret"));
        assert!(
            reason.starts_with(&format!("the parameter {name} is not supported")),
            "{reason}"
        );
    }
    for name in [
        "sslmode",
        "sslsni",
        "sslnegotiation",
        "sslcertmode",
        "sslcompression",
        "channel_binding",
        "target_session_attrs",
        "load_balance_hosts",
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "client_encoding",
        "gssencmode",
        "ssl_min_protocol_version",
        "port",
        "hostaddr",
    ] {
        let reason = refused(&format!("{name}=s3cret"));
        assert!(reason.starts_with(&format!("{name} has ")), "{reason}");
    }
    assert_eq!(refused("colour=s3cret"), "there is no parameter colour");
    assert_eq!(
        refused("sslmode=require&sslnegotiation=direct&sslmode=prefer"),
        "sslnegotiation=direct needs sslmode=require or stronger"
    );
    assert_eq!(
        refused("sslrootcert=system&sslmode=require"),
        "sslrootcert=system needs sslmode=verify-full"
    );
    assert_eq!(
        refused("host=a,b&port=1,2,3"),
        "host, hostaddr and port have different numbers of items"
    );
    // A question mark in a password begins the query.
    let problem = problem("postgresql://app:1?s3cret@db/app");
    assert!(
        problem.contains("percent-encoded") && !problem.contains("s3cret"),
        "{problem}"
    );
    let reason = refused("host=/run/postgresql");
    assert!(reason.starts_with("host is a Unix socket"), "{reason}");
}

#[test]
fn accepts_the_documented_parameters() {
    for parameters in [
        "",
        "sslmode=disable",
        "sslmode=allow",
        "sslmode=prefer",
        "sslmode=require",
        "sslmode=verify-ca",
        "sslmode=verify-full&sslrootcert=/etc/ssl/root.pem",
        "sslrootcert=system",
        "sslsni=0",
        "sslmode=require&sslnegotiation=direct",
        "sslnegotiation=postgres",
        "sslcertmode=allow",
        "sslcompression=0",
        "channel_binding=require",
        "target_session_attrs=prefer-standby",
        "load_balance_hosts=random",
        "connect_timeout=3",
        "connect_timeout=-1",
        "keepalives=0",
        "keepalives_idle=10&keepalives_interval=0&keepalives_count=3",
        "tcp_user_timeout=1000",
        "client_encoding=UTF8",
        "gssencmode=disable",
        "ssl_min_protocol_version=TLSv1.2",
        "application_name=a%20b",
        "fallback_application_name=b",
        "options=-c%20geqo%3Doff",
        "user=other&password=a%26b&dbname=c",
        "hostaddr=::1",
        "host=a,b&port=5432",
        "port=1",
    ] {
        let target = format!("postgresql://app@db/app?{parameters}");
        let target = Target::Postgres(postgres::Target { url: url(&target) });
        assert_eq!(target.validate(), Ok(()), "{parameters}");
    }
}

#[actix_web::test]
async fn tries_several_hosts_in_order() {
    let server = Server::default();
    let (port, closed) = (server.start().await, 1);
    for text in [
        format!("postgresql://app@127.0.0.1:{closed},127.0.0.1:{port}/app"),
        format!("postgresql://app@[::1]:{closed},127.0.0.1:{port}/app"),
        format!("postgresql://app@127.0.0.1,127.0.0.1:{port}/app?connect_timeout=5"),
        format!("postgresql://app@/app?host=127.0.0.1,127.0.0.1&port={closed},{port}"),
        format!("postgresql:///app?host=127.0.0.1&port={port}&user=app"),
        format!("postgresql://app@host.test:{port}/app?hostaddr=127.0.0.1"),
        format!("postgresql://app@127.0.0.1:{closed},127.0.0.1:{port}/?load_balance_hosts=random"),
    ] {
        assert_eq!(probe(&text).await, Ok(()), "{text}");
    }
    let text = format!("postgresql://app@127.0.0.1:{closed},127.0.0.2:{closed}/app");
    let error = probe(&text).await.unwrap_err();
    assert!(
        error.starts_with("127.0.0.1:1: Connection refused"),
        "{error}"
    );
    assert!(
        error.contains("; 127.0.0.2:1: Connection refused"),
        "{error}"
    );
    // Another server would reject the login as well.
    let rejecting = Server {
        rejects_login: true,
        ..Server::default()
    };
    let rejecting = rejecting.start().await;
    let text = format!("postgresql://app:x@127.0.0.1:{rejecting},127.0.0.1:{port}/app");
    assert_eq!(probe(&text).await, Err("wrong password".into()));
}

#[actix_web::test]
async fn a_silent_host_does_not_use_up_the_time() {
    let port = Server::default().start().await;
    let silent = listen(async |stream| {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let text =
        format!("postgresql://app@127.0.0.1:{silent},127.0.0.1:{port}/app?connect_timeout=1");
    assert_eq!(probe(&text).await, Ok(()));
}

#[actix_web::test]
async fn selects_servers_by_their_properties() {
    let (primary, standby) = (
        Server::default().start().await,
        Server::standby().start().await,
    );
    let hosts = format!(
        "postgresql://app@127.0.0.1:{standby},127.0.0.1:{primary}/app?target_session_attrs="
    );
    let one = |port: u16| format!("postgresql://app@127.0.0.1:{port}/app?target_session_attrs=");
    for (session, on_primary, on_standby) in [
        ("any", Ok(()), Ok(())),
        (
            "read-write",
            Ok(()),
            Err("the session is read-only".to_owned()),
        ),
        (
            "read-only",
            Err("the session is not read-only".into()),
            Ok(()),
        ),
        (
            "primary",
            Ok(()),
            Err("the server is in hot standby mode".into()),
        ),
        (
            "standby",
            Err("the server is not in hot standby mode".into()),
            Ok(()),
        ),
        ("prefer-standby", Ok(()), Ok(())),
    ] {
        assert_eq!(
            probe(&format!("{}{session}", one(primary))).await,
            on_primary,
            "{session}"
        );
        assert_eq!(
            probe(&format!("{}{session}", one(standby))).await,
            on_standby,
            "{session}"
        );
        assert_eq!(
            probe(&format!("{hosts}{session}")).await,
            Ok(()),
            "{session}"
        );
    }
}

#[actix_web::test]
async fn sslmode_decides_what_is_verified() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (file, wrong) = (authority.file.path().display(), other.file.path().display());
    let end = SystemTime::now() + Duration::from_secs(86_400);
    let encrypted = Server {
        acceptor: Some(authority.acceptor("localhost", end)),
        requires_tls: true,
        ..Server::default()
    };
    let (encrypted, plain) = (encrypted.start().await, Server::default().start().await);
    for (host, port, parameters, succeeds) in [
        ("localhost", encrypted, "sslmode=disable".to_owned(), false),
        ("localhost", encrypted, "sslmode=allow".into(), true),
        ("localhost", encrypted, "sslmode=prefer".into(), true),
        ("localhost", encrypted, "sslmode=require".into(), true),
        (
            "localhost",
            encrypted,
            "sslmode=require&sslsni=0".into(),
            true,
        ),
        ("localhost", encrypted, "sslmode=verify-ca".into(), false),
        ("localhost", encrypted, "sslmode=verify-full".into(), false),
        ("localhost", encrypted, "sslrootcert=system".into(), false),
        (
            "localhost",
            encrypted,
            format!("sslmode=verify-full&sslrootcert={file}"),
            true,
        ),
        (
            "127.0.0.1",
            encrypted,
            format!("sslmode=verify-full&sslrootcert={file}"),
            false,
        ),
        (
            "127.0.0.1",
            encrypted,
            format!("sslmode=verify-ca&sslrootcert={file}"),
            true,
        ),
        (
            "127.0.0.1",
            encrypted,
            format!("sslmode=require&sslrootcert={file}"),
            true,
        ),
        (
            "127.0.0.1",
            encrypted,
            format!("sslmode=require&sslrootcert={wrong}"),
            false,
        ),
        (
            "127.0.0.1",
            encrypted,
            format!("sslmode=verify-ca&sslrootcert={wrong}"),
            false,
        ),
        (
            "127.0.0.1",
            encrypted,
            format!("sslmode=prefer&sslrootcert={wrong}"),
            true,
        ),
        (
            "localhost",
            encrypted,
            "sslmode=verify-ca&sslrootcert=/nonexistent".into(),
            false,
        ),
        ("127.0.0.1", plain, "sslmode=disable".into(), true),
        ("127.0.0.1", plain, "sslmode=allow".into(), true),
        ("127.0.0.1", plain, "sslmode=prefer".into(), true),
        ("127.0.0.1", plain, "sslmode=require".into(), false),
    ] {
        let answer = probe(&format!("postgresql://app@{host}:{port}/app?{parameters}")).await;
        assert_eq!(answer.is_ok(), succeeds, "{host} {parameters}: {answer:?}");
    }
}

#[actix_web::test]
async fn sends_login_and_session_parameters() {
    let server = Server::default();
    let port = server.start().await;
    let text = format!(
        "postgresql://app@127.0.0.1:{port}/data?application_name=status%20page&fallback_application_name=x&options=-c%20geqo=off"
    );
    assert_eq!(probe(&text).await, Ok(()));
    let login = server.logins.lock().unwrap().pop().unwrap();
    for pair in [
        "user\0app\0",
        "database\0data\0",
        "application_name\0status page\0",
        "options\0-c geqo=off\0",
    ] {
        assert!(login.contains(pair), "{login:?}");
    }
}
