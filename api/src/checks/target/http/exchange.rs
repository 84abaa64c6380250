//! One request and its response, on a connection of their own.

use std::{
    error::Error as _,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use http_body_util::Empty;
use hyper::{
    HeaderMap, Method, Request, Response, Uri,
    body::{Bytes, Incoming},
    client::conn::{http1, http2},
    header::{ACCEPT, CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING, USER_AGENT},
    rt::Executor,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use url::{Host, Position, Url};

use super::{super::tls, status_line::Lenient};
use crate::checks::{driver::Driver, probe_error::ProbeError};

/// The maximum number of header lines. The limit of hyper, 100, is too low for some servers.
const MAX_HEADERS: usize = 1000;

/// The maximum size of the headers over HTTP/2, about the limit of hyper for HTTP/1.
const MAX_HEADER_BYTES: u32 = 400 * 1024;

/// How many bytes of a body a server may send over HTTP/2 before the probe reads them.
const WINDOW: u32 = 64 * 1024;

const AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// A version of HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1 or HTTP/2, whichever the server speaks.
    #[default]
    Any,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; with the scheme `http`, with prior knowledge.
    Http2,
}

/// Opens connections, and offers different versions of HTTP over TLS.
#[derive(Clone)]
pub(in crate::checks) struct Tls {
    both: tls::Client,
    http1: tls::Client,
    http2: tls::Client,
}

impl Tls {
    /// Opens connections like `client`.
    pub(in crate::checks) fn new(client: &tls::Client) -> Self {
        let offering = |protocols: &[&[u8]]| {
            let mut config = (*client.config).clone();
            config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
            tls::Client {
                config: Arc::new(config),
                ..client.clone()
            }
        };
        Self {
            both: offering(&[H2, b"http/1.1"]),
            http1: offering(&[b"http/1.1"]),
            http2: offering(&[H2]),
        }
    }

    /// The name of the server, if it is not the host of the URL.
    pub(super) fn server_name(&self) -> Option<String> {
        let name = self.both.name.as_ref()?;
        Some(name.to_str().into_owned())
    }
}

/// A name that stands for another host.
pub(super) struct Alias {
    pub(super) name: String,
    pub(super) host: String,
}

/// The name of HTTP/2 in a TLS handshake.
const H2: &[u8] = b"h2";

/// A request without a body.
pub(super) struct Outgoing<'a> {
    pub(super) method: &'a Method,
    pub(super) url: &'a Url,
    /// The configured headers for the origin of `url`.
    pub(super) headers: HeaderMap,
}

/// A response whose body was not received yet.
pub(super) struct Incomplete {
    pub(super) response: Response<Incoming>,
    /// Whether the server turned out not to speak HTTP/1.
    pub(super) required_http2: bool,
    pub(super) connection: Tasks,
}

/// Why there is no response.
pub(super) enum Failure {
    /// No connection could be opened.
    Connection(ProbeError),
    Http(hyper::Error),
}

impl Failure {
    /// Whether the server may speak HTTP/2 only: it closed the connection, or sent something else than HTTP/1.
    fn may_require_http2(&self) -> bool {
        let Self::Http(error) = self else {
            return false;
        };
        let closed = |error: &io::Error| {
            use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
            matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
        };
        error.is_parse()
            || error.is_incomplete_message()
            || (error.source().and_then(|source| source.downcast_ref())).is_some_and(closed)
    }

    /// Whether the server tells to use HTTP/1 instead of HTTP/2.
    fn requires_http1(&self) -> bool {
        let Self::Http(error) = self else {
            return false;
        };
        let source = error.source().and_then(|it| it.downcast_ref());
        source.and_then(h2::Error::reason) == Some(h2::Reason::HTTP_1_1_REQUIRED)
    }
}

impl From<Failure> for ProbeError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Connection(error) => error,
            Failure::Http(error) => Self::of(&error, None),
        }
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error)
    }
}

/// Sends a request, and receives the head of the response.
pub(super) struct Exchange<'a> {
    pub(super) tls: &'a Tls,
    pub(super) alias: Option<&'a Alias>,
}

impl Exchange<'_> {
    /// Sends `request` in `version`. If any version is allowed, TLS negotiates it; without TLS, or if the server negotiates nothing,
    /// it is HTTP/1, and HTTP/2 if the server turns out not to speak HTTP/1.
    pub(super) async fn send(
        &self,
        request: &Outgoing<'_>,
        version: Version,
    ) -> Result<Incomplete, Failure> {
        let (failure, other) = match self.attempt(request, version).await {
            Err(failure) if version == Version::Any && failure.may_require_http2() => {
                (failure, Version::Http2)
            }
            Err(failure) if version == Version::Any && failure.requires_http1() => {
                (failure, Version::Http1)
            }
            ended => return ended,
        };
        // The server did not process the first request, so that another one is not a repetition. If it speaks neither version, the
        // first error tells more.
        let answer = self.attempt(request, other).await;
        let mut answer = answer.map_err(|_| failure)?;
        answer.required_http2 = other == Version::Http2;
        Ok(answer)
    }

    async fn attempt(
        &self,
        request: &Outgoing<'_>,
        version: Version,
    ) -> Result<Incomplete, Failure> {
        let (stream, version) = self.connect(request.url, version).await?;
        match version {
            Version::Http2 => over_http2(request, stream).await,
            Version::Any | Version::Http1 => over_http1(request, stream).await,
        }
    }

    /// Connects to the server of `url`, and returns the negotiated version.
    async fn connect(
        &self,
        url: &Url,
        version: Version,
    ) -> Result<(Box<dyn Stream>, Version), Failure> {
        let failed = |text: &str| Failure::Connection(ProbeError(text.into()));
        let encrypted = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(failed("URL scheme is not allowed")),
        };
        let name = host(url).ok_or_else(|| failed("the URL has no host"))?;
        let alias = self
            .alias
            .filter(|alias| alias.name.eq_ignore_ascii_case(&name));
        let host = alias.map_or(&name, |alias| &alias.host);
        let port = url.port_or_known_default().unwrap_or_default();
        let client = match version {
            Version::Any => &self.tls.both,
            Version::Http1 => &self.tls.http1,
            Version::Http2 => &self.tls.http2,
        };
        let unconnected = |error| Failure::Connection(ProbeError::of(&error, None));
        if !encrypted {
            let stream = client.connector.connect(host, port).await;
            return Ok((Box::new(stream.map_err(unconnected)?), version));
        }
        let client = tls::Client {
            // A redirect may lead to another server.
            name: client.name.clone().filter(|_| alias.is_some()),
            ..client.clone()
        };
        let stream = tls::connect(&client, host, port)
            .await
            .map_err(unconnected)?;
        let negotiated = match stream.get_ref().1.alpn_protocol() {
            Some(protocol) if protocol == H2 => Version::Http2,
            _ => version,
        };
        Ok((Box::new(stream), negotiated))
    }
}

/// The host of `url`, without brackets.
pub(super) fn host(url: &Url) -> Option<String> {
    Some(match url.host()? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    })
}

/// A connection with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn over_http1(
    request: &Outgoing<'_>,
    stream: Box<dyn Stream>,
) -> Result<Incomplete, Failure> {
    let (mut sender, connection) = http1::Builder::new()
        // What curl accepts as well.
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .max_headers(MAX_HEADERS)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(Lenient::new(stream)))
        .await?;
    let tasks = Tasks::default();
    tasks.execute(async {
        // The request reports the error.
        let _ = connection.await;
    });
    let mut headers = headers(request);
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&authority(request.url))
    {
        headers.insert(HOST, host);
    }
    let path = &request.url[Position::BeforePath..Position::AfterQuery];
    let message = message(request.method, path, headers)?;
    Ok(Incomplete {
        response: sender.send_request(message).await?,
        required_http2: false,
        connection: tasks,
    })
}

async fn over_http2(
    request: &Outgoing<'_>,
    stream: Box<dyn Stream>,
) -> Result<Incomplete, Failure> {
    let tasks = Tasks::default();
    let (mut sender, connection) = http2::Builder::new(tasks.clone())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(MAX_HEADER_BYTES)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await?;
    tasks.execute(async {
        // The request reports the error.
        let _ = connection.await;
    });
    let mut headers = headers(request);
    // HTTP/2 has no header `Host`, but the same as a part of the URL.
    let host = headers.remove(HOST);
    let host = host.as_ref().and_then(|host| host.to_str().ok());
    let host = host.map_or_else(|| authority(request.url), str::to_owned);
    let path = &request.url[Position::BeforePath..Position::AfterQuery];
    let url = format!("{}://{host}{path}", request.url.scheme());
    let message = message(request.method, &url, headers)?;
    Ok(Incomplete {
        response: sender.send_request(message).await?,
        required_http2: false,
        connection: tasks,
    })
}

/// The host of `url`, with its port unless it is the default.
fn authority(url: &Url) -> String {
    url[Position::BeforeHost..Position::AfterPort].to_owned()
}

/// The configured headers, and those that every request has.
fn headers(request: &Outgoing<'_>) -> HeaderMap {
    let mut headers = request.headers.clone();
    headers
        .entry(ACCEPT)
        .or_insert(HeaderValue::from_static("*/*"));
    headers
        .entry(USER_AGENT)
        .or_insert(HeaderValue::from_static(AGENT));
    if *request.method == Method::POST {
        // Some servers reject a POST that does not tell that it has no body.
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        headers.remove(TRANSFER_ENCODING);
    }
    headers
}

fn message(
    method: &Method,
    url: &str,
    headers: HeaderMap,
) -> Result<Request<Empty<Bytes>>, Failure> {
    let mut message = Request::new(Empty::new());
    *message.method_mut() = method.clone();
    *message.uri_mut() = url.parse::<Uri>().map_err(|error| {
        Failure::Connection(ProbeError(format!("the URL cannot be requested: {error}")))
    })?;
    *message.headers_mut() = headers;
    Ok(message)
}

/// The tasks of a connection, which is closed when their last owner is dropped.
#[derive(Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<Vec<Driver>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(Driver::start(task));
    }
}
