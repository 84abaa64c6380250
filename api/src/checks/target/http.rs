//! HTTP and HTTPS: the status code, and optionally the content of the body.

use std::{fmt, net::SocketAddr, sync::Arc};

use reqwest::{
    Client, Method, Request, Response, StatusCode,
    dns::{Name, Resolve, Resolving},
    header::{
        CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
        LOCATION, TRANSFER_ENCODING,
    },
    redirect::Policy,
};
use rustls::ClientConfig;
use url::{Host, Url};

use super::tls;
use crate::{
    checks::{probe_error::ProbeError, resolver::Resolver},
    secret::{SecretText, SecretUrl},
};

/// The number of bytes of a body that are searched.
const BODY_LIMIT: usize = 64 * 1024;

/// The number of redirects that a probe follows.
const MAX_REDIRECTS: usize = 5;

/// A target, with the expected response.
#[derive(Clone, Debug)]
pub struct Target {
    /// The URL, with the scheme `http` or `https`.
    pub url: SecretUrl,
    /// The request method: `GET`, `HEAD` or `POST`.
    pub method: String,
    /// The request headers, which are sent only to the origin of `url`: its scheme, host and port.
    pub headers: Vec<(String, SecretText)>,
    /// The accepted status codes; if empty, 200 to 299.
    pub status: Vec<u16>,
    /// Text that the body must contain; if `None`, the body is not read.
    pub body: Option<String>,
    /// Whether redirects are followed.
    pub follow_redirects: bool,
}

impl Target {
    /// Checks the target without connecting to anything.
    ///
    /// # Errors
    /// When the target can never be probed.
    pub fn validate(&self) -> Result<(), String> {
        let url = self.url.expose();
        if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
            return Err("expected http://host or https://host".into());
        }
        self.headers()?;
        if self.method()? == Method::HEAD && self.body.is_some() {
            return Err("a response to HEAD has no body".into());
        }
        Ok(())
    }

    /// What is expected for TLS, which a redirect may lead to, too.
    pub(super) fn missing_tls(&self) -> Option<&'static str> {
        let uses_tls = self.url.expose().scheme() == "https" || self.follow_redirects;
        (!uses_tls).then_some("expected an https URL")
    }

    fn method(&self) -> Result<Method, String> {
        match self.method.as_str() {
            "GET" => Ok(Method::GET),
            "HEAD" => Ok(Method::HEAD),
            "POST" => Ok(Method::POST),
            _ => Err("expected a method: GET, HEAD or POST".into()),
        }
    }

    fn headers(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let known = HeaderName::try_from(name)
                .map_err(|_| format!("{name:?} is not a valid header name"))?;
            let mut value = HeaderValue::try_from(value.expose()).map_err(|_| {
                format!("the value of the header {name} contains invalid characters")
            })?;
            // Sensitive values are not logged.
            value.set_sensitive(true);
            headers.append(known, value);
        }
        Ok(headers)
    }

    fn request(&self, client: &Client) -> Result<Request, ProbeError> {
        self.validate().map_err(ProbeError)?;
        let url = self.url.expose().clone();
        client
            .request(self.method().map_err(ProbeError)?, url)
            .headers(self.headers().map_err(ProbeError)?)
            .build()
            .map_err(probe_error)
    }

    fn expects(&self, status: u16) -> bool {
        if self.status.is_empty() {
            (200..300).contains(&status)
        } else {
            self.status.contains(&status)
        }
    }

    fn expected(&self) -> String {
        if self.status.is_empty() {
            return "200 to 299".into();
        }
        let codes: Vec<String> = self.status.iter().map(u16::to_string).collect();
        codes.join(" or ")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(formatter)
    }
}

/// Creates an HTTP client, whose requests for the name of `alias` go to its host.
pub(in crate::checks) fn client(
    tls: &ClientConfig,
    resolver: &Resolver,
    alias: Option<Alias>,
) -> Result<Client, String> {
    Client::builder()
        .tls_backend_preconfigured(tls.clone())
        // A probe follows redirects itself: reqwest sends most headers to every origin, and after the first request to another
        // origin even `Authorization` and `Cookie`.
        .redirect(Policy::none())
        .dns_resolver(SharedResolver(resolver.clone(), alias.map(Arc::new)))
        .user_agent(concat!(
            env!("CARGO_PKG_NAME"),
            "/",
            env!("CARGO_PKG_VERSION")
        ))
        .referer(false)
        // Each probe opens a new connection to the target itself, to notice when the target no longer accepts any.
        .no_proxy()
        .pool_max_idle_per_host(0)
        .build()
        .map_err(|error| probe_error(error).0)
}

/// Resolves names in the same way as the other probes.
struct SharedResolver(Resolver, Option<Arc<Alias>>);

/// A name that stands for another host.
pub(in crate::checks) struct Alias {
    name: String,
    host: String,
}

impl Resolve for SharedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, alias) = (self.0.clone(), self.1.clone());
        Box::pin(async move {
            let host = match &alias {
                Some(alias) if alias.name.eq_ignore_ascii_case(name.as_str()) => &alias.host,
                _ => name.as_str(),
            };
            let addresses: Vec<_> = resolver
                .look_up(host)
                .await?
                .iter()
                // Port 0 selects the port of the URL.
                .map(|address| SocketAddr::from((*address, 0)))
                .collect();
            Ok(Box::new(addresses.into_iter()) as Box<_>)
        })
    }
}

/// Probes one target.
pub struct Probe {
    target: Target,
    client: Client,
    request: Result<Request, ProbeError>,
}

impl Probe {
    /// Creates a probe of `target`.
    pub(super) fn new(target: Target, client: &Client, tls: &tls::Client) -> Self {
        let mut request = target.request(client);
        let mut client = client.clone();
        if let Some(name) = &tls.name
            && let Ok(valid) = &mut request
        {
            // The HTTP client has no other way to set the name of the server.
            match named(valid, &name.to_str(), tls) {
                Ok(named) => client = named,
                Err(reason) => request = Err(ProbeError(reason)),
            }
        }
        Self {
            client,
            request,
            target,
        }
    }

    /// Probes the target once.
    ///
    /// # Errors
    /// When the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        let response = self.send().await?;
        let status = response.status();
        if !self.target.expects(status.as_u16()) {
            return Err(ProbeError(format!(
                "the status is {status}, expected {}",
                self.target.expected()
            )));
        }
        match &self.target.body {
            Some(expected) if !contains(response, expected.as_bytes()).await? => Err(ProbeError(
                format!("the body does not contain {expected:?} in its first 64 KiB"),
            )),
            _ => Ok(()),
        }
    }

    /// Sends the request, and follows redirects if configured. The configured headers and the credentials of the URL are sent
    /// only to the origin of the URL, also when another origin redirects back to it.
    async fn send(&self) -> Result<Response, ProbeError> {
        let request = self.request.as_ref().map_err(Clone::clone)?;
        let origin = request.url().origin();
        let (mut method, mut url) = (request.method().clone(), request.url().clone());
        // Includes the credentials of the URL, as `Authorization`.
        let mut headers = request.headers().clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::new(method.clone(), url.clone());
            if url.origin() == origin {
                request.headers_mut().clone_from(&headers);
            }
            let response = self.client.execute(request).await.map_err(probe_error)?;
            if !self.target.follow_redirects {
                return Ok(response);
            }
            let Some(next) = location(&response, &url) else {
                return Ok(response);
            };
            if becomes_get(response.status(), &method) {
                method = Method::GET;
                for of_body in [
                    CONTENT_TYPE,
                    CONTENT_LENGTH,
                    CONTENT_ENCODING,
                    TRANSFER_ENCODING,
                ] {
                    headers.remove(of_body);
                }
            }
            url = next;
        }
        Err(ProbeError("too many redirects".into()))
    }
}

/// Replaces the host of `request` by `name`, and returns a client that connects to the replaced host.
fn named(request: &mut Request, name: &str, tls: &tls::Client) -> Result<Client, String> {
    let host = match request.url().host() {
        Some(Host::Domain(host)) => host.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        None => return Err("expected https://host".into()),
    };
    (request.url_mut().set_host(Some(name))).map_err(|error| error.to_string())?;
    let name = name.to_owned();
    client(
        &tls.config,
        tls.connector.resolver(),
        Some(Alias { name, host }),
    )
}

/// The URL that `response` to a request for `url` redirects to, without credentials. `None` if it is not a redirect, or if its
/// location is not a URL.
fn location(response: &Response, url: &Url) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301..=303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.as_bytes();
    let mut next = url.join(str::from_utf8(location).ok()?).ok()?;
    // These calls fail only for URLs without a host, which have no credentials.
    let _ = next.set_username("");
    let _ = next.set_password(None);
    Some(next)
}

/// Whether a request with `method` is redirected as GET, by RFC 9110, section 15.4.
fn becomes_get(status: StatusCode, method: &Method) -> bool {
    match status {
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => method == Method::POST,
        StatusCode::SEE_OTHER => method != Method::HEAD,
        _ => false,
    }
}

/// Whether the first [`BODY_LIMIT`] bytes of the body contain `expected`.
async fn contains(mut response: Response, expected: &[u8]) -> Result<bool, ProbeError> {
    let mut body = Vec::new();
    loop {
        // A match may begin in an earlier chunk.
        let from = body.len().saturating_sub(expected.len());
        let Some(chunk) = response.chunk().await.map_err(probe_error)? else {
            return Ok(expected.is_empty());
        };
        let room = BODY_LIMIT - body.len();
        body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        if expected.is_empty()
            || body[from..]
                .windows(expected.len())
                .any(|part| part == expected)
        {
            return Ok(true);
        }
        if body.len() >= BODY_LIMIT {
            return Ok(false);
        }
    }
}

/// Converts an error without its URL, which may contain a secret.
fn probe_error(error: reqwest::Error) -> ProbeError {
    use std::error::Error as _;

    let error = error.without_url();
    // The outer message is a generic one, such as "error sending request".
    match error.source() {
        Some(source) => ProbeError::of(source, None),
        None => ProbeError::of(&error, None),
    }
}
