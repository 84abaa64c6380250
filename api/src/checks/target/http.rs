//! HTTP and HTTPS: the status, and what the body holds.

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
    checks::trouble::Trouble,
    secret::{SecretText, SecretUrl},
};

/// How much of a body is looked at, in bytes.
const BODY_LIMIT: usize = 64 * 1024;

/// What is asked, and what is expected.
#[derive(Clone, Debug)]
pub struct Target {
    /// The URL, `http` or `https`.
    pub url: SecretUrl,
    /// Of the request: `GET`, `HEAD` or `POST`.
    pub method: String,
    /// Sent with the request.
    pub headers: Vec<(String, SecretText)>,
    /// The status codes that are expected; 200 to 299 where there are none.
    pub status: Vec<u16>,
    /// What the body has to contain.
    pub body: Option<String>,
    /// Whether redirections are followed.
    pub follow_redirects: bool,
}

impl Target {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// Where it can never be asked.
    pub fn validate(&self) -> Result<(), String> {
        let url = self.url.expose();
        if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
            return Err("expected http://host or https://host".into());
        }
        self.headers()?;
        if self.method()? == Method::HEAD && self.body.is_some() {
            return Err("the answer to HEAD has no body".into());
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
                .map_err(|_| format!("{name:?} is not the name of a header"))?;
            let mut value = HeaderValue::try_from(value.expose())
                .map_err(|_| format!("the value of the header {name} has other than text in it"))?;
            // It is not shown, and not sent to another host on a redirection.
            value.set_sensitive(true);
            headers.append(known, value);
        }
        Ok(headers)
    }

    fn request(&self, clients: &Clients) -> Result<Request, Trouble> {
        self.validate().map_err(Trouble)?;
        let url = self.url.expose().clone();
        clients
            .of(self)
            .request(self.method().map_err(Trouble)?, url)
            .headers(self.headers().map_err(Trouble)?)
            .build()
            .map_err(trouble)
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

/// The HTTP clients that all probes share: one follows redirections, the other does not.
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
                // The target itself is asked, and on a new connection each time: one that accepts no more is to be noticed.
                .no_proxy()
                .pool_max_idle_per_host(0)
                .build()
                .map_err(|error| trouble(error).0)
        };
        Ok(Self {
            plain: build(Policy::none())?,
            following: build(Policy::limited(5))?,
        })
    }

    const fn of(&self, target: &Target) -> &Client {
        if target.follow_redirects {
            &self.following
        } else {
            &self.plain
        }
    }
}

/// Looks names up as the other probes do.
struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses: Vec<_> = tcp::look_up(name.as_str())
                .await?
                .iter()
                // The port is the URL's.
                .map(|address| SocketAddr::from((*address, 0)))
                .collect();
            Ok(Box::new(addresses.into_iter()) as Box<_>)
        })
    }
}

/// Asks one target.
pub struct Probe {
    target: Target,
    client: Client,
    request: Result<Request, Trouble>,
}

impl Probe {
    /// Creates a probe of `target`.
    pub(super) fn new(target: Target, clients: &Clients) -> Self {
        Self {
            client: clients.of(&target).clone(),
            request: target.request(clients),
            target,
        }
    }

    /// Asks once.
    ///
    /// # Errors
    /// Where the target does not answer, or not as expected.
    pub async fn ask(&mut self) -> Result<(), Trouble> {
        let request = self.request.as_ref().map_err(Clone::clone)?;
        // Nothing in it can be sent only once.
        let request = request
            .try_clone()
            .ok_or_else(|| Trouble("the request cannot be sent again".into()))?;
        let response = self.client.execute(request).await.map_err(trouble)?;
        let status = response.status();
        if !self.target.expects(status.as_u16()) {
            return Err(Trouble(format!(
                "the status is {status}, expected {}",
                self.target.expected()
            )));
        }
        match &self.target.body {
            Some(expected) if !contains(response, expected.as_bytes()).await? => Err(Trouble(
                format!("the body does not contain {expected:?} in its first 64 KiB"),
            )),
            _ => Ok(()),
        }
    }
}

/// Whether `expected` comes before the body ends, or what is looked at of it.
async fn contains(mut response: Response, expected: &[u8]) -> Result<bool, Trouble> {
    let mut body = Vec::new();
    loop {
        // What was looked at before may hold the beginning.
        let from = body.len().saturating_sub(expected.len());
        let Some(chunk) = response.chunk().await.map_err(trouble)? else {
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

/// What went wrong, without the URL, which may hold a secret.
fn trouble(error: reqwest::Error) -> Trouble {
    use std::error::Error as _;

    let error = error.without_url();
    // Its own words are of the kind of "error sending request".
    match error.source() {
        Some(source) => Trouble::of(source, None),
        None => Trouble::of(&error, None),
    }
}
