//! A registry client that reads manifests, blobs and referrers, and checks write access. It does not push.
//!
//! `oci-client` would hand the credentials to any authentication realm that a registry names; this client sends them to the registry's
//! own host only.
//!
//! [OCI distribution specification](https://github.com/opencontainers/distribution-spec/blob/main/spec.md).

use std::path::Path;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use oci_spec::image::{Descriptor, ImageIndex};
use reqwest::header::{ACCEPT, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use crate::image::attestations;
use crate::model::image_name::{Registry, Repository};
use crate::trust::authority::Credential;
use common::digest;
use common::failure::{Failure, OrFail};

/// The timeout of one request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The number of retries after a transient error.
const RETRIES: usize = 3;
/// The longest `Retry-After` that is accepted.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// The accepted media types of manifests and indexes.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// The size limit of a manifest or a configuration, in bytes: the size that the specification requires registries to accept.
const MAX_SMALL_BODY: u64 = 4 << 20;
/// The timeout of a blob download.
const BLOB_TIMEOUT: Duration = Duration::from_secs(600);

/// The access that a client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Pull only.
    Read,
    /// Pull and push. Registries deny pull-only tokens for a repository that does not exist yet.
    Write,
}

impl Access {
    /// Returns the actions for the scope of a token request.
    const fn actions(self) -> &'static str {
        match self {
            Self::Read => "pull",
            Self::Write => "pull,push",
        }
    }
}

/// A manifest from a registry.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The digest, computed from the bytes.
    pub digest: String,
    pub(crate) bytes: Vec<u8>,
}

impl Manifest {
    /// Parses the manifest as JSON.
    ///
    /// # Errors
    /// When the JSON is invalid or has another type (exit code 1).
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.bytes).map_err(|error| {
            Failure::gate(format!("cannot parse manifest {}", self.digest)).because(error)
        })
    }
}

/// A client of one repository in one registry.
pub struct Client<'a> {
    http: reqwest::Client,
    /// Follows redirects to blob storage, without the credential.
    blob_storage: reqwest::Client,
    access: Access,
    registry: &'a Registry,
    repository: &'a Repository,
    credential: Option<&'a Credential>,
}

/// How the body of a response is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    /// Completely; the request is retried if the connection breaks.
    Small,
    /// By the caller, or not at all.
    Streamed,
}

enum Authorization {
    None,
    Basic,
    Bearer(SecretString),
}

impl<'a> Client<'a> {
    /// Creates a client without sending a request.
    ///
    /// # Errors
    /// When the HTTP client cannot be created (exit code 3).
    pub fn new(
        registry: &'a Registry,
        repository: &'a Repository,
        credential: Option<&'a Credential>,
        access: Access,
    ) -> Result<Self, Failure> {
        let client = |limit, redirect| {
            let client = reqwest::Client::builder()
                .redirect(redirect)
                .timeout(limit)
                .user_agent(concat!("infrastructure-lab-ci/", env!("CARGO_PKG_VERSION")));
            if registry.is_loopback() {
                client.no_proxy()
            } else {
                client.https_only(true)
            }
            .build()
            .or_environment("cannot create an HTTP client")
        };
        Ok(Self {
            // A redirect could send the credential to another host.
            http: client(TIMEOUT, reqwest::redirect::Policy::none())?,
            blob_storage: client(BLOB_TIMEOUT, reqwest::redirect::Policy::limited(5))?,
            access,
            registry,
            repository,
            credential,
        })
    }

    /// Checks that the registry answers, without the credential.
    ///
    /// # Errors
    /// When the registry cannot be reached (exit code 3).
    pub async fn check_reachable(&self) -> Result<(), Failure> {
        // Without retries, because the caller wants the current state.
        let response = self.http.get(self.url("/v2/")?).send().await;
        response.map(drop).map_err(|error| self.unreachable(error))
    }

    /// Returns the token that the registry issues for the credential, or `None` if it accepts the credential itself.
    ///
    /// # Errors
    /// When the registry refuses (exit code 4) or cannot be reached (exit code 3).
    pub async fn fetch_token(&self) -> Result<Option<SecretString>, Failure> {
        Ok(match self.authorization().await? {
            Authorization::Bearer(token) => Some(token),
            Authorization::Basic | Authorization::None => None,
        })
    }

    /// Checks that the credential allows a push, by starting and cancelling an upload.
    ///
    /// # Errors
    /// When the registry refuses (exit code 4) or cannot be reached (exit code 3).
    pub async fn check_write_access(&self) -> Result<(), Failure> {
        let url = self.url(&format!("/v2/{}/blobs/uploads/", self.repository))?;
        let authorization = self.authorization().await?;
        let response = self
            .send(self.http.post(url.clone()), &authorization)
            .await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.refusal("cannot write to", response).await);
        }
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|location| url.join(location.to_str().ok()?).ok());
        if let Some(location) = location.filter(|location| location.origin() == url.origin()) {
            // Best effort: the registry expires an upload that is not cancelled.
            let cancelled = self.send(self.http.delete(location), &authorization).await;
            tracing::debug!(cancelled = cancelled.is_ok(), "cancelled the trial upload");
        }
        Ok(())
    }

    /// Returns the manifest with the tag or digest `name`, or `None` if it does not exist.
    ///
    /// # Errors
    /// When the registry refuses (exit code 4), cannot be reached (exit code 3), or the digest does not match (exit code 1).
    pub async fn manifest(&self, name: &str) -> Result<Option<Manifest>, Failure> {
        let url = self.url(&format!("/v2/{}/manifests/{name}", self.repository))?;
        let authorization = self.authorization().await?;
        let request = self
            .http
            .request(Method::GET, url)
            .header(ACCEPT, MANIFESTS);
        let (response, bytes) = self.request(request, &authorization, Body::Small).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => {
                let declared = response
                    .headers()
                    .get("docker-content-digest")
                    .and_then(|digest| digest.to_str().ok())
                    .filter(|digest| digest.starts_with("sha256:"))
                    .map(str::to_owned);
                let digest = digest::sha256(&bytes);
                let requested = Some(name.to_owned()).filter(|name| name.contains(':'));
                for expected in declared.into_iter().chain(requested) {
                    if expected != digest {
                        return Err(self.digest_mismatch(
                            &format!("manifest {name}"),
                            &expected,
                            &digest,
                        ));
                    }
                }
                Ok(Some(Manifest { digest, bytes }))
            }
            _ => Err(self
                .refusal(&format!("cannot read manifest {name} from"), response)
                .await),
        }
    }

    /// Returns the computed digest of the manifest with the tag or digest `name`, or `None` if it does not exist.
    ///
    /// # Errors
    /// See [`Self::manifest`].
    pub async fn manifest_digest(&self, name: &str) -> Result<Option<String>, Failure> {
        let manifest = self.manifest(name).await?;
        Ok(manifest.map(|manifest| manifest.digest))
    }

    /// Downloads a small blob: a configuration or an attestation.
    ///
    /// # Errors
    /// See [`Self::manifest`]; also when the blob does not exist or is larger than 4 MiB.
    pub async fn small_blob(&self, digest: &str) -> Result<Vec<u8>, Failure> {
        let (_, bytes) = self.open_blob(digest, Body::Small).await?;
        let found = digest::sha256(&bytes);
        if found == digest {
            Ok(bytes)
        } else {
            Err(self.digest_mismatch("a blob", digest, &found))
        }
    }

    /// Downloads a blob of `size` bytes to the file `dest`.
    ///
    /// # Errors
    /// See [`Self::manifest`]; also when the blob does not exist, has another size, or `dest` cannot be written.
    pub async fn blob(&self, digest: &str, size: u64, dest: &Path) -> Result<(), Failure> {
        let cannot = || format!("cannot write {}", dest.display());
        let (mut response, _) = self.open_blob(digest, Body::Streamed).await?;
        let mut file = tokio::fs::File::create(dest)
            .await
            .or_environment(cannot())?;
        let (mut hasher, mut received) = (Sha256::new(), 0);
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(error))?
        {
            received += chunk.len() as u64;
            if received > size {
                break;
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await.or_environment(cannot())?;
        }
        file.flush().await.or_environment(cannot())?;
        let found = format!("sha256:{}", hex::encode(hasher.finalize()));
        if found == digest && received == size {
            Ok(())
        } else {
            Err(self.digest_mismatch(&format!("a blob of {size} bytes"), digest, &found))
        }
    }

    /// Lists the referrers of the manifest with this digest, with the referrers API or its fallback tag.
    ///
    /// # Errors
    /// See [`Self::manifest`].
    pub async fn referrers(&self, digest: &str) -> Result<Vec<Descriptor>, Failure> {
        let url = self.url(&format!("/v2/{}/referrers/{digest}", self.repository))?;
        let authorization = self.authorization().await?;
        let request = self.http.get(url);
        let (response, bytes) = self.request(request, &authorization, Body::Small).await?;
        let index: ImageIndex = match response.status() {
            StatusCode::OK => serde_json::from_slice(&bytes)
                .or_environment(format!("invalid list of referrers from {}", self.registry))?,
            // Registries without the referrers API answer with different status codes.
            status if status.is_client_error() || status.is_redirection() => {
                match self.manifest(&attestations::fallback_tag(digest)).await? {
                    None => return Ok(Vec::new()),
                    Some(index) => index.read()?,
                }
            }
            _ => {
                let what = "cannot list the referrers of an image in";
                return Err(self.refusal(what, response).await);
            }
        };
        Ok(index.manifests().clone())
    }

    /// Requests a blob and follows a redirect without the credential.
    async fn open_blob(&self, digest: &str, body: Body) -> Result<(Response, Vec<u8>), Failure> {
        let url = self.url(&format!("/v2/{}/blobs/{digest}", self.repository))?;
        let authorization = self.authorization().await?;
        let request = self.http.get(url.clone());
        let (mut response, mut bytes) = self.request(request, &authorization, body).await?;
        if response.status().is_redirection() {
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|location| url.join(location.to_str().ok()?).ok());
            if let Some(location) = location {
                let request = self.blob_storage.get(location);
                (response, bytes) = self.request(request, &Authorization::None, body).await?;
            }
        }
        match response.status() {
            StatusCode::OK => Ok((response, bytes)),
            _ => Err(self
                .refusal(&format!("cannot read blob {digest} from"), response)
                .await),
        }
    }

    fn digest_mismatch(&self, what: &str, expected: &str, found: &str) -> Failure {
        Failure::gate(format!(
            "digest mismatch of {what} in {}/{}",
            self.registry, self.repository
        ))
        .output(format!("expected: {expected}\nactual:   {found}"))
        .hint("Contact the operator of the registry. No client accepts this content.")
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        let text = format!("{}://{}{path}", self.registry.scheme(), self.registry);
        text.parse().or_environment(format!("invalid URL {text}"))
    }

    async fn send(
        &self,
        request: RequestBuilder,
        authorization: &Authorization,
    ) -> Result<Response, Failure> {
        let response = self.request(request, authorization, Body::Streamed).await;
        response.map(|(response, _)| response)
    }

    /// Sends a request and retries transient errors. Returns the response and, for [`Body::Small`], its body.
    async fn request(
        &self,
        mut request: RequestBuilder,
        authorization: &Authorization,
        body: Body,
    ) -> Result<(Response, Vec<u8>), Failure> {
        match (authorization, self.credential) {
            (Authorization::Bearer(token), _) => {
                request = request.bearer_auth(token.expose_secret());
            }
            (Authorization::Basic, Some(Credential { user, token })) => {
                request = request.basic_auth(user, Some(token.expose_secret()));
            }
            _ => {}
        }
        let (http, request) = request.build_split();
        let request = request.map_err(|error| self.unreachable(error))?;
        let attempt = || async {
            // The requests have no body to copy.
            let (method, url) = (request.method().clone(), request.url().clone());
            let request = http.request(method, url).headers(request.headers().clone());
            let mut response = RequestError::check(request.send().await)?;
            let mut bytes = Vec::new();
            if body == Body::Small && response.status().is_success() {
                while let Some(chunk) = response.chunk().await.map_err(RequestError::classify)? {
                    bytes.extend_from_slice(&chunk);
                    if bytes.len() as u64 > MAX_SMALL_BODY {
                        break;
                    }
                }
            }
            Ok((response, bytes))
        };
        let response = attempt
            .retry(
                ExponentialBuilder::default()
                    .with_min_delay(Duration::from_millis(500))
                    .with_max_times(RETRIES)
                    .with_jitter(),
            )
            .when(|failed| !matches!(failed, RequestError::Permanent(_)))
            .adjust(|failed, wait| failed.wait(wait?))
            .notify(|failed, wait| {
                tracing::warn!(
                    "the registry {} {failed}; retrying in {wait:?}",
                    self.registry
                );
            })
            .await;
        match response {
            Ok((_, bytes)) if bytes.len() as u64 > MAX_SMALL_BODY => Err(Failure::gate(format!(
                "invalid response of the registry {}: a manifest or configuration exceeds {MAX_SMALL_BODY} bytes",
                self.registry
            ))),
            Ok(response) => Ok(response),
            Err(RequestError::Response(response)) => Ok((*response, Vec::new())),
            Err(RequestError::Connection(error) | RequestError::Permanent(error)) => {
                Err(self.unreachable(error))
            }
        }
    }

    /// Finds the authorization scheme of the registry with `GET /v2/`.
    async fn authorization(&self) -> Result<Authorization, Failure> {
        let response = self
            .send(self.http.get(self.url("/v2/")?), &Authorization::None)
            .await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(Authorization::None);
        }
        let challenge = response
            .headers()
            .get(WWW_AUTHENTICATE)
            .and_then(|header| header.to_str().ok())
            .unwrap_or_default();
        let challenges = http_auth::parse_challenges(challenge).unwrap_or_default();
        if let Some(bearer) = challenges
            .iter()
            .find(|challenge| challenge.scheme.eq_ignore_ascii_case("Bearer"))
        {
            let parameter = |name: &str| {
                let found = bearer
                    .params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            return self
                .bearer(parameter("realm").unwrap_or_default(), parameter("service"))
                .await;
        }
        Ok(Authorization::Basic)
    }

    /// Requests a token: see [token authentication](https://distribution.github.io/distribution/spec/auth/token/).
    async fn bearer(
        &self,
        realm: String,
        service: Option<String>,
    ) -> Result<Authorization, Failure> {
        let mut url: Url = realm.parse().or_environment(format!(
            "{} has an authentication realm that is not a URL: {realm}",
            self.registry
        ))?;
        let own = self.url("/")?;
        let elsewhere = url.host() != own.host() || url.scheme() != own.scheme();
        // Without a credential, another host is harmless.
        if elsewhere && self.credential.is_some() {
            return Err(Failure::refused(format!(
                "refusing to send the credential for {} to {realm}, which is another host",
                self.registry
            ))
            .hint("Use a registry whose authentication realm is on the same host."));
        }
        url.query_pairs_mut()
            .append_pair(
                "scope",
                &format!("repository:{}:{}", self.repository, self.access.actions()),
            )
            .extend_pairs(service.map(|service| ("service", service)));
        let request = self.http.get(url);
        let (response, bytes) = self
            .request(request, &Authorization::Basic, Body::Small)
            .await?;
        if !response.status().is_success() {
            return Err(self.refusal("cannot get a token for", response).await);
        }
        let token: Token = serde_json::from_slice(&bytes)
            .or_environment(format!("invalid token response from {}", self.registry))?;
        let token = token.token.or(token.access_token).unwrap_or_default();
        Ok(Authorization::Bearer(token.into()))
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        Failure::environment(format!("cannot reach the registry {}", self.registry))
            .because(error.without_url())
            .hint("Check the network and --registry, or run `ci doctor`.")
    }

    /// Creates the failure for an error response. `what` is the start of the message; the output is the response body.
    async fn refusal(&self, what: &str, response: Response) -> Failure {
        let status = response.status();
        let body = response.text().await.unwrap_or_default();
        let message = format!("{what} {}/{}: {status}", self.registry, self.repository);
        let failure = if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            Failure::environment(message).hint("Run again later.")
        } else {
            Failure::refused(message).hint(match self.access {
                Access::Write if self.registry.to_string() == Registry::GHCR => {
                    "Give the token the permission `packages: write` and connect the package to this repository."
                }
                Access::Write => {
                    "Set GITHUB_ACTOR and GITHUB_TOKEN to the user and the password of an account that can push to this registry."
                }
                Access::Read => "Set GITHUB_TOKEN and GITHUB_ACTOR to a credential that can read the image if it is private.",
            })
        };
        if body.trim().is_empty() {
            failure
        } else {
            failure.output(body.trim().to_owned())
        }
    }
}

/// The error of a request.
enum RequestError {
    /// A response that reports overload or an outage. Retried.
    Response(Box<Response>),
    /// The connection failed or broke. Retried.
    Connection(reqwest::Error),
    /// A timeout or an invalid request. Not retried.
    Permanent(reqwest::Error),
}

impl RequestError {
    fn check(response: reqwest::Result<Response>) -> Result<Response, Self> {
        match response {
            Ok(response) => match response.status().as_u16() {
                429 | 500 | 502..=504 => Err(Self::Response(Box::new(response))),
                _ => Ok(response),
            },
            Err(error) => Err(Self::classify(error)),
        }
    }

    fn classify(error: reqwest::Error) -> Self {
        if error.is_timeout() || error.is_builder() {
            Self::Permanent(error)
        } else {
            Self::Connection(error)
        }
    }

    /// Returns the delay before the next attempt: `usual`, or `Retry-After` if it is longer. `None` if it exceeds the limit.
    fn wait(&self, usual: Duration) -> Option<Duration> {
        let Self::Response(response) = self else {
            return Some(usual);
        };
        let header = response.headers().get(RETRY_AFTER);
        let seconds = header.and_then(|header| header.to_str().ok()?.parse().ok());
        let wait = seconds.map_or(usual, |seconds| usual.max(Duration::from_secs(seconds)));
        (wait <= MAX_RETRY_AFTER).then_some(wait)
    }
}

impl std::fmt::Display for RequestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Response(response) => write!(f, "answered {}", response.status()),
            Self::Connection(error) | Self::Permanent(error) => {
                write!(f, "did not respond ({error})")
            }
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}
