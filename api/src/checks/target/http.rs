//! HTTP and HTTPS: the status code, and optionally the content of the body.

mod body;
mod exchange;
mod status_line;

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytesize::ByteSize;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    body::Incoming,
    header::{
        AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
        LOCATION, TRANSFER_ENCODING,
    },
};
use percent_encoding::percent_decode_str;
use url::{Origin, Url};

use self::{
    body::{Searched, search},
    exchange::{Alias, Exchange, Incomplete, Outgoing, host},
};
use crate::{
    checks::probe_error::ProbeError,
    secret::{SecretText, SecretUrl},
};

pub(in crate::checks) use self::exchange::Tls;
pub use self::exchange::Version;

/// The default of [`Target::body_limit`].
pub const BODY_LIMIT: u64 = 1024 * 1024;

/// The number of redirects that a probe follows.
const MAX_REDIRECTS: usize = 5;

/// A target, with the expected response.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// How many bytes of the decoded body are searched.
    pub body_limit: u64,
    /// The version of HTTP.
    pub version: Version,
    /// Whether redirects are followed.
    pub follow_redirects: bool,
}

impl Target {
    /// A target that must respond to GET with a status from 200 to 299.
    #[must_use]
    pub fn get(url: SecretUrl) -> Self {
        Self {
            url,
            method: "GET".into(),
            headers: Vec::new(),
            status: Vec::new(),
            body: None,
            body_limit: BODY_LIMIT,
            version: Version::Any,
            follow_redirects: false,
        }
    }

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

    fn request(&self) -> Result<Prepared, String> {
        self.validate()?;
        let mut url = self.url.expose().clone();
        let mut headers = self.headers()?;
        if let Some(credentials) = credentials(&url)
            && !headers.contains_key(AUTHORIZATION)
        {
            headers.insert(AUTHORIZATION, credentials);
        }
        remove_credentials(&mut url);
        Ok(Prepared {
            method: self.method()?,
            url,
            headers,
            alias: None,
        })
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

/// The credentials of `url`, as the value of `Authorization`.
fn credentials(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut login: Vec<u8> = percent_decode_str(url.username()).collect();
    login.push(b':');
    login.extend(percent_decode_str(url.password().unwrap_or_default()));
    let value = format!("Basic {}", BASE64_STANDARD.encode(login));
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn remove_credentials(url: &mut Url) {
    // These calls fail only for URLs without a host, which have no credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
}

/// The first request of a probe.
struct Prepared {
    method: Method,
    /// Without credentials.
    url: Url,
    /// The configured headers and the credentials, which are sent only to the origin of `url`.
    headers: HeaderMap,
    alias: Option<Alias>,
}

impl Prepared {
    /// Replaces the host of the URL by `name`, and connects to the replaced host.
    fn named(mut self, name: &str) -> Result<Self, String> {
        let host = host(&self.url).ok_or("expected https://host")?;
        (self.url.set_host(Some(name))).map_err(|error| error.to_string())?;
        self.alias = Some(Alias {
            name: name.to_owned(),
            host,
        });
        Ok(self)
    }
}

/// Probes one target.
pub struct Probe {
    target: Target,
    tls: Tls,
    request: Result<Prepared, ProbeError>,
    /// The origin that turned out to speak HTTP/2 only, so that the next probe needs no second attempt.
    http2_only: Option<Origin>,
}

impl Probe {
    /// Creates a probe of `target`.
    pub(super) fn new(target: Target, tls: Tls) -> Self {
        let mut request = target.request();
        if let Some(name) = tls.server_name() {
            request = request.and_then(|request| request.named(&name));
        }
        Self {
            tls,
            request: request.map_err(ProbeError),
            target,
            http2_only: None,
        }
    }

    /// Probes the target once.
    ///
    /// # Errors
    /// When the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        let Incomplete {
            response,
            connection,
            ..
        } = self.send().await?;
        let status = response.status();
        if !self.target.expects(status.as_u16()) {
            return Err(ProbeError(format!(
                "the status is {status}, expected {}",
                self.target.expected()
            )));
        }
        if let Some(expected) = &self.target.body {
            self.judge(expected, response).await?;
        }
        drop(connection);
        Ok(())
    }

    async fn judge(&self, expected: &str, response: Response<Incoming>) -> Result<(), ProbeError> {
        let limit = self.target.body_limit;
        let detail = match search(response, expected, limit).await? {
            Searched::Found => return Ok(()),
            Searched::Missing(None) => String::new(),
            Searched::Missing(Some(encoding)) => {
                format!("; its content encoding {encoding} is not supported")
            }
            Searched::MissingUpToLimit => {
                format!(" in its first {}, the body-limit", shown(limit))
            }
        };
        Err(ProbeError::without(
            &format!("the body does not contain {expected:?}{detail}"),
            None,
        ))
    }

    /// Sends the request, and follows redirects if configured. The configured headers and the credentials of the URL are sent
    /// only to the origin of the URL, also when another origin redirects back to it.
    async fn send(&mut self) -> Result<Incomplete, ProbeError> {
        let request = self.request.as_ref().map_err(Clone::clone)?;
        let exchange = Exchange {
            tls: &self.tls,
            alias: request.alias.as_ref(),
        };
        let origin = request.url.origin();
        let (mut method, mut url) = (request.method.clone(), request.url.clone());
        let mut headers = request.headers.clone();
        for _ in 0..=MAX_REDIRECTS {
            let outgoing = Outgoing {
                method: &method,
                url: &url,
                headers: if url.origin() == origin {
                    headers.clone()
                } else {
                    HeaderMap::new()
                },
            };
            let known = self.http2_only.take_if(|known| *known == url.origin());
            let version = match self.target.version {
                Version::Any if known.is_some() => Version::Http2,
                version => version,
            };
            let answer = exchange.send(&outgoing, version).await?;
            if answer.required_http2 || known.is_some() {
                self.http2_only = Some(url.origin());
            }
            if !self.target.follow_redirects {
                return Ok(answer);
            }
            let Some(next) = location(&answer.response, &url) else {
                return Ok(answer);
            };
            if becomes_get(answer.response.status(), &method) {
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

/// Formats a number of bytes: `64 KiB`.
fn shown(bytes: u64) -> String {
    ByteSize(bytes).to_string().replace(".0 ", " ")
}

/// The URL that `response` to a request for `url` redirects to, without credentials. `None` if it is not a redirect, or if its
/// location is not a URL.
fn location<B>(response: &Response<B>, url: &Url) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301..=303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.as_bytes();
    let mut next = url.join(str::from_utf8(location).ok()?).ok()?;
    remove_credentials(&mut next);
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
