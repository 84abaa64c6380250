//! Probes of each kind against small test servers: successes, and every kind of failure.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{
    checks::{Clients, NameServers, Target, dns, http, postgres, redis, tcp, tls},
    secret::{SecretText, SecretUrl},
};
use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME, MX, TXT},
    },
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// A secret that no error may contain.
pub const SECRET: &str = "s3cr3t-w0rd";

pub fn clients() -> Clients {
    Clients::new(None).unwrap()
}

/// Probes `target` once.
async fn probe_once(target: Target) -> Result<(), String> {
    probe_with(target, &clients()).await
}

pub async fn probe_with(target: Target, clients: &Clients) -> Result<(), String> {
    target.validate().unwrap();
    let answer = timeout(Duration::from_secs(10), target.probe(clients).run()).await;
    let answer = answer.expect("an answer").map_err(|error| error.0);
    if let Err(error) = &answer {
        assert!(!error.contains(SECRET), "{error}");
        assert!(!error.contains('\n') && error.len() < 400, "{error}");
    }
    answer
}

/// A port without a listener.
fn closed_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

pub fn url(text: &str) -> SecretUrl {
    SecretUrl::new(text.parse().unwrap())
}

/// Accepts connections and passes each to `serve`. Returns the port.
pub async fn listen<F>(mut serve: impl FnMut(TcpStream) -> F + 'static) -> u16
where
    F: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    actix_web::rt::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            actix_web::rt::spawn(serve(stream));
        }
    });
    port
}

mod over_tcp {
    use super::*;

    fn target(host: &str, port: u16) -> Target {
        Target::Tcp(tcp::Target {
            host: host.into(),
            port,
        })
    }

    #[actix_web::test]
    async fn accepted_connection_is_a_success() {
        let port = listen(async |_| ()).await;
        for host in ["127.0.0.1", "localhost"] {
            assert_eq!(probe_once(target(host, port)).await, Ok(()));
        }
    }

    #[actix_web::test]
    async fn closed_port_is_a_failure() {
        let error = probe_once(target("127.0.0.1", closed_port()))
            .await
            .unwrap_err();
        assert!(error.starts_with("Connection refused"), "{error}");
    }

    #[actix_web::test]
    async fn reports_an_unknown_host() {
        let servers = over_dns::serve(|message, _| {
            message.metadata.response_code = ResponseCode::NXDomain;
        });
        let clients = over_dns::clients_of(&[servers.await]);
        assert_eq!(
            probe_with(target("nowhere.invalid", 80), &clients).await,
            Err("cannot resolve nowhere.invalid: the name does not exist (NXDOMAIN)".into())
        );
    }

    #[test]
    fn rejects_invalid_hosts_and_ports() {
        for (host, port) in [("", 80), ("http://host", 80), ("host", 0)] {
            target(host, port).validate().unwrap_err();
        }
        assert_eq!(target("::1", 80).to_string(), "[::1]:80");
    }
}

mod over_http {
    use super::*;

    /// Sends `response` to each request. Returns the port and the requests.
    async fn serve(response: impl Into<String>) -> (u16, Arc<Mutex<Vec<String>>>) {
        let (response, requests) = (response.into(), Arc::new(Mutex::new(Vec::new())));
        let seen = requests.clone();
        let port = listen(move |mut stream| {
            let (response, seen) = (response.clone(), seen.clone());
            async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                seen.lock()
                    .unwrap()
                    .push(String::from_utf8(request).unwrap());
                // Fails if the client has closed the connection.
                let _ = stream.write_all(response.as_bytes()).await;
            }
        })
        .await;
        (port, requests)
    }

    fn response(status: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn target(port: u16) -> http::Target {
        http::Target::get(url(&format!("http://127.0.0.1:{port}/path?token={SECRET}")))
    }

    #[actix_web::test]
    async fn compares_the_status() {
        for (status, expected, error) in [
            ("200 OK", &[][..], None),
            ("204 No Content", &[], None),
            (
                "503 Service Unavailable",
                &[],
                Some("the status is 503 Service Unavailable, expected 200 to 299"),
            ),
            ("401 Unauthorized", &[200, 401], None),
            (
                "404 Not Found",
                &[200, 401],
                Some("the status is 404 Not Found, expected 200 or 401"),
            ),
        ] {
            let (port, _) = serve(response(status, "")).await;
            let target = http::Target {
                status: expected.to_vec(),
                ..target(port)
            };
            let answer = probe_once(Target::Http(target)).await;
            assert_eq!(answer.err().as_deref(), error);
        }
    }

    #[actix_web::test]
    async fn searches_the_body() {
        let long = |end: &str| format!("{}{end}", "x".repeat(64 * 1024 - 4));
        for (body, expected, found) in [
            ("all is well".to_owned(), "is well", true),
            ("all is lost".to_owned(), "is well", false),
            (String::new(), "is well", false),
            (long("well"), "well", true),
            (long("xwell"), "well", false),
        ] {
            let (port, _) = serve(response("200 OK", &body)).await;
            let target = http::Target {
                body: Some(expected.into()),
                body_limit: 64 * 1024,
                ..target(port)
            };
            let answer = probe_once(Target::Http(target)).await;
            assert_eq!(answer.is_ok(), found, "{answer:?}");
        }
    }

    #[actix_web::test]
    async fn reads_an_endless_body_up_to_the_limit() {
        let port = listen(async |mut stream| {
            let _ = stream.read(&mut [0; 1024]).await;
            let head = b"HTTP/1.1 200 OK\r\n\r\n";
            let _ = stream.write_all(head).await;
            while stream.write_all(&[b'x'; 8192]).await.is_ok() {}
        })
        .await;
        let target = http::Target {
            body: Some("well".into()),
            ..target(port)
        };
        let error = probe_once(Target::Http(target)).await.unwrap_err();
        assert_eq!(
            error,
            "the body does not contain \"well\" in its first 1 MiB, the body-limit"
        );
    }

    #[actix_web::test]
    async fn sends_method_headers_and_password() {
        let (port, requests) = serve(response("200 OK", "")).await;
        let target = http::Target {
            url: url(&format!("http://user:{SECRET}@127.0.0.1:{port}/path")),
            method: "POST".into(),
            headers: vec![("X-Key".into(), SecretText::new(SECRET.into()))],
            ..target(port)
        };
        probe_once(Target::Http(target)).await.unwrap();
        let request = requests.lock().unwrap().concat();
        assert!(request.starts_with("POST /path HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("x-key: {SECRET}")), "{request}");
        assert!(request.contains("authorization: Basic "), "{request}");
        assert!(request.contains("user-agent: api/"), "{request}");
    }

    #[actix_web::test]
    async fn follows_redirects_if_configured() {
        let (end, _) = serve(response("200 OK", "")).await;
        let (start, _) = serve(format!(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{end}/?token={SECRET}\r\nContent-Length: 0\r\n\r\n"
        ))
        .await;
        for (follow_redirects, found) in [(true, true), (false, false)] {
            let target = http::Target {
                follow_redirects,
                ..target(start)
            };
            let answer = probe_once(Target::Http(target)).await;
            assert_eq!(answer.is_ok(), found, "{answer:?}");
        }
    }

    #[actix_web::test]
    async fn stops_after_too_many_redirects() {
        let (port, requests) = serve(format!(
            "HTTP/1.1 302 Found\r\nLocation: /?token={SECRET}\r\nContent-Length: 0\r\n\r\n"
        ))
        .await;
        let target = http::Target {
            follow_redirects: true,
            ..target(port)
        };
        let error = probe_once(Target::Http(target)).await.unwrap_err();
        assert_eq!(error, "too many redirects");
        assert_eq!(requests.lock().unwrap().len(), 6);
    }

    #[actix_web::test]
    async fn opens_a_new_connection_for_each_probe() {
        let (port, requests) = serve(response("200 OK", "")).await;
        let mut probe = Target::Http(target(port)).probe(&clients());
        for _ in 0..3 {
            probe.run().await.unwrap();
        }
        // The server closes each connection after one response.
        assert_eq!(requests.lock().unwrap().len(), 3);
    }

    #[actix_web::test]
    async fn reports_connection_errors_on_one_line_without_the_url() {
        let (port, _) = serve("this is no HTTP\r\n\r\n").await;
        let error = probe_once(Target::Http(target(port))).await.unwrap_err();
        assert!(error.contains("invalid HTTP"), "{error}");
        let error = probe_once(Target::Http(target(closed_port())))
            .await
            .unwrap_err();
        assert!(error.contains("Connection refused"), "{error}");
        assert!(!error.contains("/path"), "{error}");
    }

    #[test]
    fn rejects_invalid_targets() {
        let problem = |change: fn(&mut http::Target)| {
            let mut target = target(80);
            change(&mut target);
            let reason = Target::Http(target).validate().unwrap_err();
            assert!(!reason.contains(SECRET), "{reason}");
            reason
        };
        assert_eq!(
            problem(|target| target.url = url("ftp://host/")),
            "expected http://host or https://host"
        );
        assert_eq!(
            problem(|target| target.method = "get".into()),
            "expected a method: GET, HEAD or POST"
        );
        assert_eq!(
            problem(|target| target.headers = vec![("a b".into(), SecretText::new(SECRET.into()))]),
            "\"a b\" is not a valid header name"
        );
        assert_eq!(
            problem(|target| {
                let value = SecretText::new(format!("{SECRET}\n"));
                target.headers = vec![("X-Key".into(), value)];
            }),
            "the value of the header X-Key contains invalid characters"
        );
        assert_eq!(
            problem(|target| {
                target.method = "HEAD".into();
                target.body = Some("well".into());
            }),
            "a response to HEAD has no body"
        );
    }
}

pub mod over_tls {
    use super::*;
    use rcgen::date_time_ymd;
    use std::{io::Write, time::SystemTime};

    /// A certificate authority whose certificate is in a file.
    pub struct Authority {
        issuer: CertifiedIssuer<'static, KeyPair>,
        pub file: tempfile::NamedTempFile,
    }

    impl Authority {
        pub fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let issuer =
                CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(issuer.pem().as_bytes()).unwrap();
            Self { issuer, file }
        }

        pub fn clients(&self) -> Clients {
            Clients::new(Some(self.file.path())).unwrap()
        }

        /// Issues a server certificate for `name` that is valid until `until`.
        pub fn acceptor(&self, name: &str, until: SystemTime) -> TlsAcceptor {
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = until.into();
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            let provider = rustls::crypto::ring::default_provider();
            let config = ServerConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![certificate.der().clone()],
                    PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
                )
                .unwrap();
            TlsAcceptor::from(Arc::new(config))
        }

        async fn serve(&self, name: &str, until: SystemTime) -> u16 {
            let acceptor = self.acceptor(name, until);
            listen(move |stream| {
                let acceptor = acceptor.clone();
                async move {
                    // Fails if the client does not trust the certificate.
                    let _ = acceptor.accept(stream).await;
                }
            })
            .await
        }
    }

    const DAY: Duration = Duration::from_secs(86_400);

    fn target(host: &str, port: u16) -> Target {
        Target::Tls(tls::Target {
            host: host.into(),
            port,
        })
    }

    #[actix_web::test]
    async fn reports_the_day_on_which_a_certificate_expired() {
        let authority = Authority::new();
        let port = authority
            .serve("localhost", date_time_ymd(2024, 2, 29).into())
            .await;
        assert_eq!(
            probe_with(target("localhost", port), &authority.clients()).await,
            Err("the certificate expired on 2024-02-29".into())
        );
    }

    #[actix_web::test]
    async fn distinguishes_unknown_authorities_wrong_names_and_plain_text() {
        let authority = Authority::new();
        let port = authority
            .serve("localhost", SystemTime::now() + DAY * 8)
            .await;
        let error = probe_once(target("localhost", port)).await.unwrap_err();
        assert!(error.contains("UnknownIssuer"), "{error}");
        let clients = authority.clients();
        let error = probe_with(target("127.0.0.1", port), &clients).await;
        let error = error.unwrap_err();
        assert!(error.contains("not valid for name"), "{error}");
        let plain = listen(async |mut stream| {
            let _ = stream.write_all(b"220 mail.example.org\r\n").await;
        })
        .await;
        let error = probe_with(target("localhost", plain), &clients).await;
        let error = error.unwrap_err();
        assert!(error.contains("corrupt message"), "{error}");
    }

    /// Starts an HTTPS server that responds to each connection with 200, and returns its port.
    pub async fn serve_ok(acceptor: TlsAcceptor) -> u16 {
        listen(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ = stream.read(&mut [0; 1024]).await;
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                }
            }
        })
        .await
    }

    #[actix_web::test]
    async fn https_and_redis_trust_the_same_authorities() {
        let authority = Authority::new();
        let end = SystemTime::now() + DAY;
        let acceptor = authority.acceptor("localhost", end);
        let port = serve_ok(acceptor).await;
        let https = Target::Http(http::Target::get(url(&format!(
            "https://localhost:{port}/"
        ))));
        assert_eq!(
            probe_with(https.clone(), &authority.clients()).await,
            Ok(())
        );
        let error = probe_once(https).await.unwrap_err();
        assert!(error.contains("UnknownIssuer"), "{error}");

        let acceptor = authority.acceptor("localhost", end);
        let port = listen(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    over_redis::serve(stream, &["+PONG\r\n"]).await;
                }
            }
        })
        .await;
        let redis = Target::Redis(redis::Target {
            url: url(&format!("rediss://localhost:{port}")),
        });
        assert_eq!(
            probe_with(redis.clone(), &authority.clients()).await,
            Ok(())
        );
        let error = probe_once(redis).await.unwrap_err();
        assert!(error.contains("UnknownIssuer"), "{error}");
    }

    #[test]
    fn rejects_a_file_without_certificates() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        for path in [empty.path(), "/nonexistent.pem".as_ref()] {
            let reason = Clients::new(Some(path)).err().unwrap();
            assert!(reason.starts_with(path.to_str().unwrap()), "{reason}");
        }
        target("", 443).validate().unwrap_err();
        target("a b", 443).validate().unwrap_err();
    }
}

pub mod over_redis {
    use super::*;
    use tokio::io::{AsyncRead, AsyncWrite};

    /// Responds to the commands in order with `answers`, then closes the connection.
    pub async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answers: &[&str]) {
        let mut answers = answers.iter();
        let mut buffer = [0; 1024];
        while answers.len() > 0 {
            let length = stream.read(&mut buffer).await.unwrap_or_default();
            if length == 0 {
                return;
            }
            let commands = buffer[..length].iter().filter(|byte| **byte == b'*');
            for answer in answers.by_ref().take(commands.count()) {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            stream.flush().await.unwrap();
        }
    }

    fn target(port: u16) -> Target {
        Target::Redis(redis::Target {
            url: url(&format!("redis://:{SECRET}@127.0.0.1:{port}")),
        })
    }

    #[actix_web::test]
    async fn reports_a_wrong_password() {
        let refused = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
        let port =
            listen(async move |stream| serve(stream, &[refused, refused, refused]).await).await;
        let error = probe_once(target(port)).await.unwrap_err();
        assert_eq!(error, "the user or the password is wrong");
    }

    #[actix_web::test]
    async fn masks_a_password_that_the_server_repeats() {
        for (message, error) in [
            (
                "-ERR unknown command `AUTH`, with args beginning with: `s3cr3t-w0rd`, \r\n",
                "ERR unknown command `AUTH`",
            ),
            (
                "-LOADING s3cr3t-w0rd, please wait\r\n",
                "LOADING ***, please wait",
            ),
        ] {
            let port = listen(async move |stream| {
                serve(stream, &["+OK\r\n", message]).await;
            })
            .await;
            assert_eq!(probe_once(target(port)).await, Err(error.into()));
        }
    }

    #[actix_web::test]
    async fn reuses_a_connection_until_it_is_lost() {
        let connections = Arc::new(Mutex::new(0));
        let seen = connections.clone();
        let port = listen(move |stream| {
            *seen.lock().unwrap() += 1;
            serve(stream, &["+OK\r\n", "+PONG\r\n", "+PONG\r\n"])
        })
        .await;
        let mut probe = target(port).probe(&clients());
        for expected in [1, 1, 2] {
            probe.run().await.unwrap();
            assert_eq!(*connections.lock().unwrap(), expected);
        }
    }

    #[actix_web::test]
    async fn does_not_mistake_a_late_response_for_the_next_one() {
        let mut connections = 0;
        let port = listen(move |stream| {
            connections += 1;
            let late = connections == 1;
            async move {
                if late {
                    serve(stream, &["+OK\r\n", ""]).await;
                } else {
                    serve(stream, &["+OK\r\n", "+PONG\r\n"]).await;
                }
            }
        })
        .await;
        let mut probe = target(port).probe(&clients());
        probe.run().await.unwrap_err();
        probe.run().await.unwrap();
    }

    #[actix_web::test]
    async fn sends_nothing_optional() {
        // Like a proxy that closes the connection after a command that it does not know.
        let commands = Arc::new(Mutex::new(String::new()));
        let seen = commands.clone();
        let port = listen(move |mut stream| {
            let seen = seen.clone();
            async move {
                let mut buffer = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    let text = str::from_utf8(&buffer[..length]).unwrap();
                    *seen.lock().unwrap() += text;
                    let answer = text.contains("PING").then_some("+PONG\r\n");
                    let answer = answer.unwrap_or("+OK\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        for (login, database, expected) in [
            ("", "", "*1\r\n$4\r\nPING\r\n"),
            (
                ":pass@",
                "/0",
                "*2\r\n$4\r\nAUTH\r\n$4\r\npass\r\n*1\r\n$4\r\nPING\r\n",
            ),
            (
                "",
                "/3",
                "*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n*1\r\n$4\r\nPING\r\n",
            ),
        ] {
            let url = url(&format!("redis://{login}127.0.0.1:{port}{database}"));
            let target = Target::Redis(redis::Target { url });
            assert_eq!(probe_once(target).await, Ok(()));
            assert_eq!(std::mem::take(&mut *commands.lock().unwrap()), expected);
        }
    }

    #[test]
    fn rejects_invalid_redis_urls() {
        for wrong in [
            "http://host/",
            "redis+unix:///run/redis.sock",
            "redis://host/zero",
            "redis://0.0.0.0",
        ] {
            let target = Target::Redis(redis::Target { url: url(wrong) });
            target.validate().unwrap_err();
        }
        for right in ["redis://host", "rediss://user:password@host:1/2"] {
            let target = Target::Redis(redis::Target { url: url(right) });
            target.validate().unwrap();
        }
    }
}

mod over_postgres {
    use super::*;

    fn target(text: &str) -> Target {
        Target::Postgres(postgres::Target { url: url(text) })
    }

    #[actix_web::test]
    async fn reports_protocol_errors_without_the_password() {
        let answers = |answer: &'static [u8]| {
            listen(async move |mut stream| {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer).await;
            })
        };
        let echo: &[u8] = b"NE\0\0\0\x31SFATAL\0VFATAL\0C28P01\0Mno s3cr3t-w0rd here, go\0\0";
        for port in [
            answers(b"").await,
            answers(b"HTTP").await,
            answers(echo).await,
            closed_port(),
        ] {
            let target = target(&format!("postgresql://user:{SECRET}@127.0.0.1:{port}/db"));
            let error = probe_once(target).await.unwrap_err();
            assert!(!error.is_empty());
        }
    }

    #[test]
    fn rejects_invalid_postgresql_urls() {
        for wrong in [
            "http://host/",
            "postgresql://host/db",
            "postgresql://user@%2Frun%2Fpostgresql/db",
            "postgresql://user@host/db?sslmode=maybe",
            "postgresql://user@host/db?colour=s3cr3t-w0rd",
        ] {
            let reason = target(wrong).validate().unwrap_err();
            assert!(!reason.contains(SECRET), "{reason}");
        }
        for right in [
            "postgresql://user@host/db",
            "postgres://user:p%40ss@[::1]:1/db?sslmode=verify-full&application_name=a%20b",
        ] {
            target(right).validate().unwrap();
        }
    }
}

pub mod over_dns {
    use super::*;

    pub fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    /// Clients that ask only these name servers.
    pub fn clients_of(servers: &[SocketAddr]) -> Clients {
        let name_servers = NameServers {
            servers: servers.to_vec(),
            search: Vec::new(),
            ndots: 1,
        };
        Clients::with_name_servers(None, name_servers).unwrap()
    }

    /// Serves DNS over UDP and TCP on the same port; `respond` fills the response.
    pub async fn serve(respond: impl Fn(&mut Message, bool) + Clone + 'static) -> SocketAddr {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The port may be in use for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let answer = move |question: &[u8], over_udp| {
            let mut message = Message::from_vec(question).unwrap();
            message.metadata.message_type = MessageType::Response;
            respond(&mut message, over_udp);
            message.to_vec().unwrap()
        };
        let over_tcp = answer.clone();
        actix_web::rt::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let mut question = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut question).await.unwrap();
                let answer = over_tcp(&question, false);
                let length = u16::try_from(answer.len()).unwrap();
                stream.write_u16(length).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        actix_web::rt::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let answer = answer(&buffer[..length], true);
                let _ = udp.send_to(&answer, from).await;
            }
        });
        address
    }

    pub fn add(message: &mut Message, data: RData) {
        let name = message.queries[0].name.clone();
        message.add_answer(Record::from_rdata(name, 60, data));
    }

    fn target(server: SocketAddr, record: RecordType, expected: &[&str]) -> Target {
        Target::Dns(dns::Target {
            name: "www.example.org".into(),
            record,
            server: Some(server),
            expected: expected.iter().map(ToString::to_string).collect(),
        })
    }

    #[actix_web::test]
    async fn expected_records_must_be_in_the_response() {
        let server = serve(|message, _| {
            add(message, RData::CNAME(CNAME(name("host.example.org."))));
            for last in [1, 2] {
                add(message, RData::A(A::new(192, 0, 2, last)));
            }
        })
        .await;
        let probe =
            async |expected: &[&str]| probe_once(target(server, RecordType::A, expected)).await;
        assert_eq!(probe(&[]).await, Ok(()));
        assert_eq!(probe(&["192.0.2.2"]).await, Ok(()));
        assert_eq!(probe(&["192.0.2.2", "192.0.2.1"]).await, Ok(()));
        assert_eq!(
            probe(&["192.0.2.2", "192.0.2.9"]).await,
            Err("192.0.2.9 is not among the records: 192.0.2.1, 192.0.2.2".into())
        );
    }

    #[actix_web::test]
    async fn compares_records_in_normalized_form() {
        let server = serve(|message, _| match message.queries[0].query_type {
            RecordType::MX => add(message, RData::MX(MX::new(10, name("mail.Example.org.")))),
            RecordType::TXT => add(message, RData::TXT(TXT::new(vec!["v=spf1 -all".into()]))),
            RecordType::CNAME => add(message, RData::CNAME(CNAME(name("host.example.org.")))),
            _ => add(message, RData::AAAA("2001:db8::1".parse().unwrap())),
        })
        .await;
        for (record, expected) in [
            (RecordType::MX, "10 mail.example.org"),
            (RecordType::TXT, "v=spf1 -all"),
            (RecordType::TXT, "\"v=spf1 -all\""),
            (RecordType::CNAME, "host.example.org."),
            (RecordType::CNAME, "HOST.example.org"),
            (RecordType::AAAA, "2001:DB8:0::1"),
        ] {
            let answer = probe_once(target(server, record, &[expected])).await;
            assert_eq!(answer, Ok(()), "{expected}");
        }
    }

    #[actix_web::test]
    async fn reports_missing_names_and_records_and_server_errors() {
        for (code, error) in [
            (ResponseCode::NXDomain, "the name does not exist (NXDOMAIN)"),
            (ResponseCode::NoError, "the name has no record of type A"),
            (
                ResponseCode::FormErr,
                "responded with FORMERR (the query is malformed)",
            ),
            (
                ResponseCode::ServFail,
                "responded with SERVFAIL (server failure)",
            ),
            (
                ResponseCode::NotImp,
                "responded with NOTIMP (not implemented)",
            ),
            (
                ResponseCode::Refused,
                "responded with REFUSED (query refused)",
            ),
            (ResponseCode::NotAuth, "responded with the error code 9"),
        ] {
            let server = serve(move |message, _| message.metadata.response_code = code).await;
            let message = probe_once(target(server, RecordType::A, &[]))
                .await
                .unwrap_err();
            assert!(message.contains(error), "{message}");
        }
    }

    #[actix_web::test]
    async fn retries_a_truncated_response_over_tcp() {
        let server = serve(|message, over_udp| {
            if over_udp {
                message.metadata.truncation = true;
            } else {
                for last in 0..=255 {
                    add(message, RData::A(A::new(192, 0, 2, last)));
                }
            }
        })
        .await;
        let answer = probe_once(target(server, RecordType::A, &["192.0.2.255"])).await;
        assert_eq!(answer, Ok(()));
    }

    #[actix_web::test]
    async fn ignores_responses_to_other_queries() {
        let changes: [fn(&mut Message); 2] = [
            |message| message.metadata.id = message.metadata.id.wrapping_add(1),
            |message| {
                message.queries[0].set_name(name("other.example.org."));
            },
        ];
        for change in changes {
            let server = serve(move |message, over_udp| {
                add(message, RData::A(A::new(192, 0, 2, 1)));
                message.metadata.truncation = false;
                if over_udp {
                    change(message);
                }
            })
            .await;
            let mut probe = target(server, RecordType::A, &[]).probe(&clients());
            timeout(Duration::from_millis(200), probe.run())
                .await
                .expect_err("the probe keeps waiting for a matching response");
        }
    }

    #[actix_web::test]
    async fn reports_the_address_of_an_unreachable_server() {
        let server = SocketAddr::from(([127, 0, 0, 1], closed_port()));
        let error = probe_once(target(server, RecordType::A, &[]))
            .await
            .unwrap_err();
        assert!(
            error.starts_with(&format!("{server}: Connection refused")),
            "{error}"
        );
    }

    #[test]
    fn rejects_invalid_domain_names() {
        for wrong in ["", "a..b", &"a".repeat(64), r"a\"] {
            let target = Target::Dns(dns::Target {
                name: wrong.into(),
                record: RecordType::A,
                server: None,
                expected: Vec::new(),
            });
            target.validate().unwrap_err();
        }
    }
}
