//! HTTP and HTTPS: the status code, and optionally the content of the body.

use std::{fmt, net::SocketAddr};

use reqwest::{
    Client, Method, Request, Response,
    dns::{Name, Resolve, Resolving},
    header::{HeaderMap, HeaderName, HeaderValue},
    redirect::Policy,
};
use rustls::ClientConfig;

use super::tcp;
use crate::{
    checks::probe_error::ProbeError,
    secret::{SecretText, SecretUrl},
};

/// The number of bytes of a body that are searched.
const BODY_LIMIT: usize = 64 * 1024;

/// A target, with the expected response.
#[derive(Clone, Debug)]
pub struct Target {
    /// The URL, with the scheme `http` or `https`.
    pub url: SecretUrl,
    /// The request method: `GET`, `HEAD` or `POST`.
    pub method: String,
    /// The request headers.
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
            // Sensitive values are not logged, and not sent to another host after a redirect.
            value.set_sensitive(true);
            headers.append(known, value);
        }
        Ok(headers)
    }

    fn request(&self, clients: &Clients) -> Result<Request, ProbeError> {
        self.validate().map_err(ProbeError)?;
        let url = self.url.expose().clone();
        clients
            .client(self)
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

/// The HTTP clients that all probes share: one follows redirects, the other does not.
#[derive(Clone)]
pub(in crate::checks) struct Clients {
    plain: Client,
    following: Client,
}

impl Clients {
    pub(in crate::checks) fn new(tls: &ClientConfig) -> Result<Self, String> {
        let build = |policy| {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(policy)
                .dns_resolver(SystemResolver)
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
        };
        Ok(Self {
            plain: build(Policy::none())?,
            following: build(Policy::limited(5))?,
        })
    }

    const fn client(&self, target: &Target) -> &Client {
        if target.follow_redirects {
            &self.following
        } else {
            &self.plain
        }
    }
}

/// Resolves names in the same way as the other probes.
struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses: Vec<_> = tcp::look_up(name.as_str())
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
    pub(super) fn new(target: Target, clients: &Clients) -> Self {
        Self {
            client: clients.client(&target).clone(),
            request: target.request(clients),
            target,
        }
    }

    /// Probes the target once.
    ///
    /// # Errors
    /// When the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        let request = self.request.as_ref().map_err(Clone::clone)?;
        // Always succeeds, because the request has no streaming body.
        let request = request
            .try_clone()
            .ok_or_else(|| ProbeError("the request cannot be sent again".into()))?;
        let response = self.client.execute(request).await.map_err(probe_error)?;
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
