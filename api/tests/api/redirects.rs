//! Redirects of HTTP checks: configured headers and credentials stay with their origin.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use api::{
    checks::{Clients, Target, http},
    secret::SecretText,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::probes::{SECRET, clients, listen, over_tls::Authority, probe_with, url};

/// The configured headers. Every value contains the secret.
const HEADERS: [&str; 10] = [
    "Authorization",
    "Cookie",
    "Cookie2",
    "Proxy-Authorization",
    "X-Api-Key",
    "PRIVATE-TOKEN",
    "X-Any-Other",
    "Host",
    "Referer",
    "User-Agent",
];

/// A server that records its requests. It redirects the paths in `redirects`, and responds to all others with 200.
#[derive(Clone, Default)]
struct Server {
    port: u16,
    redirects: Arc<Mutex<HashMap<String, (u16, String)>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts a server that accepts HTTP and, with an acceptor, HTTPS on the same port.
    async fn start_with(acceptor: Option<TlsAcceptor>) -> Self {
        let mut server = Self::default();
        let shared = server.clone();
        server.port = listen(move |stream| {
            let (server, acceptor) = (shared.clone(), acceptor.clone());
            async move {
                let mut first = [0];
                stream.peek(&mut first).await.unwrap();
                match acceptor {
                    // The type of a TLS handshake record.
                    Some(acceptor) if first == [22] => {
                        server.respond(acceptor.accept(stream).await.unwrap()).await;
                    }
                    _ => server.respond(stream).await,
                }
            }
        })
        .await;
        server
    }

    async fn respond(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let request = String::from_utf8(request).unwrap();
        let path = request.split(' ').nth(1).unwrap().to_owned();
        self.requests.lock().unwrap().push(request);
        let redirect = self.redirects.lock().unwrap().get(&path).cloned();
        let response = redirect.map_or_else(
            || "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into(),
            |(status, location)| {
                format!("HTTP/1.1 {status} Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
            },
        );
        stream.write_all(response.as_bytes()).await.unwrap();
        // Fails if the client has closed the connection.
        let _ = stream.shutdown().await;
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn redirect(&self, path: &str, status: u16, location: impl Into<String>) {
        let mut redirects = self.redirects.lock().unwrap();
        redirects.insert(path.into(), (status, location.into()));
    }

    /// The requests to `path`, in lower case.
    fn requests(&self, path: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter(|request| request.split(' ').nth(1) == Some(path))
            .map(|request| request.to_lowercase())
            .collect()
    }

    /// The only request to `path`, in lower case.
    fn request(&self, path: &str) -> String {
        let requests = self.requests(path);
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.concat()
    }
}

/// A check with all headers that follows redirects.
fn target(address: &str) -> http::Target {
    http::Target {
        headers: HEADERS
            .map(|name| (name.into(), SecretText::new(SECRET.into())))
            .into(),
        follow_redirects: true,
        ..http::Target::get(url(address))
    }
}

async fn probe(target: http::Target, clients: &Clients) {
    assert_eq!(probe_with(Target::Http(target), clients).await, Ok(()));
}

fn assert_has_all_headers(request: &str) {
    for name in HEADERS {
        let line = format!("\r\n{}: {SECRET}\r\n", name.to_lowercase());
        assert!(request.contains(&line), "{name}: {request}");
    }
}

/// Asserts that the request has only the headers of a check without any.
fn assert_has_no_configured_header(request: &str, host: &str, port: u16) {
    assert!(!request.contains(SECRET), "{request}");
    let mut headers: Vec<_> = request.trim_end().lines().skip(1).collect();
    headers.sort_unstable();
    assert_eq!(
        headers,
        [
            "accept: */*",
            &format!("host: {host}:{port}"),
            concat!("user-agent: api/", env!("CARGO_PKG_VERSION")),
        ]
    );
}

#[actix_web::test]
async fn sends_all_headers_after_a_redirect_to_the_same_origin() {
    for status in [301, 302, 303, 307, 308] {
        let server = Server::start().await;
        let port = server.port;
        for (path, location) in [
            ("/absolute", server.url("/end")),
            ("/without-scheme", format!("//127.0.0.1:{port}/end")),
            ("/path", "/end".into()),
            ("/relative", "end".into()),
        ] {
            server.redirect(path, status, location);
            probe(target(&server.url(path)), &clients()).await;
        }
        let requests = server.requests("/end");
        assert_eq!(requests.len(), 4);
        for request in requests {
            assert_has_all_headers(&request);
        }
    }
}

#[actix_web::test]
async fn sends_no_configured_header_to_another_port() {
    for status in [301, 302, 303, 307, 308] {
        let (first, other) = (Server::start().await, Server::start().await);
        first.redirect("/", status, other.url("/end"));
        probe(target(&first.url("/")), &clients()).await;
        assert_has_all_headers(&first.request("/"));
        assert_has_no_configured_header(&other.request("/end"), "127.0.0.1", other.port);
    }
}

#[actix_web::test]
async fn sends_no_configured_header_to_another_host() {
    let server = Server::start().await;
    let port = server.port;
    server.redirect("/", 302, format!("http://localhost:{port}/end"));
    probe(target(&server.url("/")), &clients()).await;
    assert_has_all_headers(&server.request("/"));
    assert_has_no_configured_header(&server.request("/end"), "localhost", port);
}

#[actix_web::test]
async fn sends_no_configured_header_to_the_same_host_and_port_with_another_scheme() {
    let authority = Authority::new();
    let end = SystemTime::now() + Duration::from_secs(86_400);
    let server = Server::start_with(Some(authority.acceptor("localhost", end))).await;
    let port = server.port;
    for (from, to) in [("https", "http"), ("http", "https")] {
        let (start, end) = (format!("/{from}"), format!("/end-{to}"));
        server.redirect(&start, 302, format!("{to}://localhost:{port}{end}"));
        probe(
            target(&format!("{from}://localhost:{port}{start}")),
            &authority.clients(),
        )
        .await;
        assert_has_all_headers(&server.request(&start));
        assert_has_no_configured_header(&server.request(&end), "localhost", port);
    }
}

#[actix_web::test]
async fn sends_no_configured_header_on_later_requests_to_another_origin() {
    let (first, other) = (Server::start().await, Server::start().await);
    first.redirect("/", 302, other.url("/middle"));
    other.redirect("/middle", 302, "/end");
    probe(target(&first.url("/")), &clients()).await;
    for path in ["/middle", "/end"] {
        assert_has_no_configured_header(&other.request(path), "127.0.0.1", other.port);
    }
}

#[actix_web::test]
async fn sends_all_headers_again_after_returning_to_the_origin() {
    let (first, other) = (Server::start().await, Server::start().await);
    first.redirect("/", 302, other.url("/middle"));
    other.redirect("/middle", 302, first.url("/end"));
    probe(target(&first.url("/")), &clients()).await;
    assert_has_no_configured_header(&other.request("/middle"), "127.0.0.1", other.port);
    assert_has_all_headers(&first.request("/end"));
}

#[actix_web::test]
async fn credentials_of_the_url_stay_with_their_origin() {
    let (first, other) = (Server::start().await, Server::start().await);
    first.redirect("/", 302, "/next");
    first.redirect("/next", 302, other.url("/middle"));
    other.redirect("/middle", 302, "/end");
    let address = format!("http://user:{SECRET}@127.0.0.1:{}/", first.port);
    let target = http::Target {
        headers: Vec::new(),
        ..target(&address)
    };
    probe(target, &clients()).await;
    for path in ["/", "/next"] {
        let request = first.request(path);
        assert!(request.contains("\r\nauthorization: basic "), "{request}");
    }
    for path in ["/middle", "/end"] {
        assert_has_no_configured_header(&other.request(path), "127.0.0.1", other.port);
    }
}

#[actix_web::test]
async fn ignores_credentials_in_a_location() {
    let (first, other) = (Server::start().await, Server::start().await);
    let with_credentials =
        |port: u16, path: &str| format!("http://other:{SECRET}@127.0.0.1:{port}{path}");
    first.redirect("/", 302, with_credentials(first.port, "/next"));
    first.redirect("/next", 302, with_credentials(other.port, "/end"));
    probe(target(&first.url("/")), &clients()).await;
    assert_has_all_headers(&first.request("/next"));
    assert_has_no_configured_header(&other.request("/end"), "127.0.0.1", other.port);
}

#[actix_web::test]
async fn sends_no_referer_with_the_query_of_the_url() {
    let (first, other) = (Server::start().await, Server::start().await);
    let path = format!("/?token={SECRET}");
    first.redirect(&path, 302, "/next");
    first.redirect("/next", 302, other.url("/end"));
    let target = http::Target {
        headers: Vec::new(),
        ..target(&first.url(&path))
    };
    probe(target, &clients()).await;
    assert_has_no_configured_header(&first.request("/next"), "127.0.0.1", first.port);
    assert_has_no_configured_header(&other.request("/end"), "127.0.0.1", other.port);
}

#[actix_web::test]
async fn stops_after_five_redirects_between_two_origins() {
    let (first, other) = (Server::start().await, Server::start().await);
    first.redirect("/", 302, other.url("/"));
    other.redirect("/", 302, first.url("/"));
    let answer = probe_with(Target::Http(target(&first.url("/"))), &clients()).await;
    assert_eq!(answer, Err("too many redirects".into()));
    assert_eq!(
        (first.requests("/").len(), other.requests("/").len()),
        (3, 3)
    );
}

#[actix_web::test]
async fn redirects_keep_or_change_the_method_by_their_status() {
    for (status, method, expected) in [
        (301, "POST", "get"),
        (302, "POST", "get"),
        (303, "POST", "get"),
        (307, "POST", "post"),
        (308, "POST", "post"),
        (302, "HEAD", "head"),
        (303, "HEAD", "head"),
    ] {
        let server = Server::start().await;
        server.redirect("/", status, "/end");
        let target = http::Target {
            method: method.into(),
            headers: vec![("Content-Type".into(), SecretText::new("text/plain".into()))],
            ..target(&server.url("/"))
        };
        probe(target, &clients()).await;
        let request = server.request("/end");
        assert!(
            request.starts_with(expected),
            "{status} {method}: {request}"
        );
        let removed = method == "POST" && expected == "get";
        assert_eq!(request.contains("content-type"), !removed, "{request}");
    }
}

#[actix_web::test]
async fn reports_redirects_that_cannot_be_followed() {
    for (location, error) in [
        ("ftp://127.0.0.1/", "URL scheme is not allowed"),
        ("file:///etc/passwd", "URL scheme is not allowed"),
        ("http://", "the status is 302 Found, expected 200 to 299"),
    ] {
        let server = Server::start().await;
        server.redirect("/", 302, location);
        let answer = probe_with(Target::Http(target(&server.url("/"))), &clients()).await;
        assert_eq!(answer, Err(error.into()), "{location}");
    }
}
