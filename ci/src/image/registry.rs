//! The questions that `ci` itself asks a registry: may I write, what is there, and what refers to it. It pushes nothing.
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

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How often a question is asked again that failed for a reason that passes.
const AGAIN: usize = 3;
/// A registry that wants to be left alone for longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The manifests that an image or an index may have.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// The most that a manifest or a configuration may have, in bytes: as much as registries have to take.
const MOST: u64 = 4 << 20;
/// How long a blob may take.
const BLOB_LIMIT: Duration = Duration::from_secs(600);

/// What a client means to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only look.
    Read,
    /// Publish. A token to read alone is denied for a repository that does not exist yet.
    Write,
}

impl Access {
    /// The actions of a token's scope.
    const fn actions(self) -> &'static str {
        match self {
            Self::Read => "pull",
            Self::Write => "pull,push",
        }
    }
}

/// A manifest, as its registry hands it out.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The digest of its bytes.
    pub digest: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Manifest {
    /// It, read.
    ///
    /// # Errors
    /// When it is not the JSON that it should be.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.bytes).map_err(|error| {
            Failure::gate(format!("the manifest {} cannot be read", self.digest)).because(error)
        })
    }
}

/// A client of one repository in one registry.
pub struct Client<'a> {
    http: reqwest::Client,
    /// Follows a registry to where its blobs lie, and knows no credential.
    elsewhere: reqwest::Client,
    access: Access,
    registry: &'a Registry,
    repository: &'a Repository,
    credential: Option<&'a Credential>,
}

/// What becomes of an answer's body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    /// It is read at once, and asked for again where it breaks off.
    Small,
    /// The caller reads it, or nobody does.
    Streamed,
}

enum Authorization {
    None,
    Basic,
    Bearer(SecretString),
}

impl<'a> Client<'a> {
    /// A client; nothing is asked yet.
    ///
    /// # Errors
    /// When no HTTP client can be made.
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
            .or_environment("cannot make an HTTP client")
        };
        Ok(Self {
            // A redirect could carry the credential to another host.
            http: client(LIMIT, reqwest::redirect::Policy::none())?,
            elsewhere: client(BLOB_LIMIT, reqwest::redirect::Policy::limited(5))?,
            access,
            registry,
            repository,
            credential,
        })
    }

    /// Asks whether there is a registry at all, without any credential.
    ///
    /// # Errors
    /// When it cannot be reached (exit 3).
    pub async fn reach(&self) -> Result<(), Failure> {
        // Once: whoever asks wants to know how it is now.
        let asked = self.http.get(self.url("/v2/")?).send().await;
        asked.map(drop).map_err(|error| self.unreachable(error))
    }

    /// The token that the registry gives for the credential; none where it takes the credential itself.
    ///
    /// # Errors
    /// When the registry refuses (exit 4) or cannot be reached (exit 3).
    pub async fn token(&self) -> Result<Option<SecretString>, Failure> {
        Ok(match self.authorization().await? {
            Authorization::Bearer(token) => Some(token),
            Authorization::Basic | Authorization::None => None,
        })
    }

    /// Proves that this run may write, without writing: an upload is begun and cancelled.
    ///
    /// # Errors
    /// When the registry refuses (exit 4) or cannot be reached (exit 3).
    pub async fn prove_write(&self) -> Result<(), Failure> {
        let url = self.url(&format!("/v2/{}/blobs/uploads/", self.repository))?;
        let authorization = self.authorization().await?;
        let answer = self
            .send(self.http.post(url.clone()), &authorization)
            .await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(self.refusal("does not let this run write", answer).await);
        }
        let location = answer
            .headers()
            .get(LOCATION)
            .and_then(|location| url.join(location.to_str().ok()?).ok());
        if let Some(location) = location.filter(|location| location.origin() == url.origin()) {
            // Best effort: an upload that is not cancelled is forgotten by the registry in time.
            let cancelled = self.send(self.http.delete(location), &authorization).await;
            tracing::debug!(cancelled = cancelled.is_ok(), "the trial upload");
        }
        Ok(())
    }

    /// The manifest that `name`, a tag or a digest, names, or none.
    ///
    /// # Errors
    /// When the registry refuses (exit 4), cannot be reached (exit 3), or does not hand out what it says (exit 1).
    pub async fn manifest(&self, name: &str) -> Result<Option<Manifest>, Failure> {
        let url = self.url(&format!("/v2/{}/manifests/{name}", self.repository))?;
        let authorization = self.authorization().await?;
        let request = self
            .http
            .request(Method::GET, url)
            .header(ACCEPT, MANIFESTS);
        let (answer, bytes) = self.ask(request, &authorization, Body::Small).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => {
                let said = answer
                    .headers()
                    .get("docker-content-digest")
                    .and_then(|digest| digest.to_str().ok())
                    .filter(|digest| digest.starts_with("sha256:"))
                    .map(str::to_owned);
                let digest = digest::sha256(&bytes);
                let asked = Some(name.to_owned()).filter(|name| name.contains(':'));
                for expected in said.into_iter().chain(asked) {
                    if expected != digest {
                        return Err(self.lies(&format!("the manifest {name}"), &expected, &digest));
                    }
                }
                Ok(Some(Manifest { digest, bytes }))
            }
            _ => Err(self
                .refusal(&format!("does not say what {name} is"), answer)
                .await),
        }
    }

    /// The digest of the manifest that `name` names, computed from what the registry hands out, or none.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub async fn manifest_digest(&self, name: &str) -> Result<Option<String>, Failure> {
        let manifest = self.manifest(name).await?;
        Ok(manifest.map(|manifest| manifest.digest))
    }

    /// A small blob: a configuration, or a paper.
    ///
    /// # Errors
    /// As [`Self::manifest`], and when there is none, or it is larger than 4 MiB.
    pub async fn small_blob(&self, digest: &str) -> Result<Vec<u8>, Failure> {
        let (_, bytes) = self.open_blob(digest, Body::Small).await?;
        let found = digest::sha256(&bytes);
        if found == digest {
            Ok(bytes)
        } else {
            Err(self.lies("a blob", digest, &found))
        }
    }

    /// Writes the blob of `size` bytes to `dest`.
    ///
    /// # Errors
    /// As [`Self::manifest`], and when there is none, it has another size or `dest` cannot be written.
    pub async fn blob(&self, digest: &str, size: u64, dest: &Path) -> Result<(), Failure> {
        let cannot = || format!("cannot write {}", dest.display());
        let (mut answer, _) = self.open_blob(digest, Body::Streamed).await?;
        let mut file = tokio::fs::File::create(dest)
            .await
            .or_environment(cannot())?;
        let (mut hasher, mut got) = (Sha256::new(), 0);
        while let Some(piece) = answer
            .chunk()
            .await
            .map_err(|error| self.unreachable(error))?
        {
            got += piece.len() as u64;
            if got > size {
                break;
            }
            hasher.update(&piece);
            file.write_all(&piece).await.or_environment(cannot())?;
        }
        file.flush().await.or_environment(cannot())?;
        let found = format!("sha256:{}", hex::encode(hasher.finalize()));
        if found == digest && got == size {
            Ok(())
        } else {
            Err(self.lies(&format!("a blob of {size} bytes"), digest, &found))
        }
    }

    /// What refers to the manifest with this digest: by the referrers API, or the tag that stands in for it.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub async fn referrers(&self, digest: &str) -> Result<Vec<Descriptor>, Failure> {
        let url = self.url(&format!("/v2/{}/referrers/{digest}", self.repository))?;
        let authorization = self.authorization().await?;
        let request = self.http.get(url);
        let (answer, bytes) = self.ask(request, &authorization, Body::Small).await?;
        let index: ImageIndex = match answer.status() {
            StatusCode::OK => serde_json::from_slice(&bytes).or_environment(format!(
                "{} answered with what is not a list of referrers",
                self.registry
            ))?,
            // Whatever a registry says that has no such API: they differ.
            status if status.is_client_error() || status.is_redirection() => {
                match self.manifest(&attestations::fallback_tag(digest)).await? {
                    None => return Ok(Vec::new()),
                    Some(index) => index.read()?,
                }
            }
            _ => {
                let what = "does not say what refers to an image";
                return Err(self.refusal(what, answer).await);
            }
        };
        Ok(index.manifests().clone())
    }

    /// The answer that a blob comes in; the credential stays with the registry itself.
    async fn open_blob(&self, digest: &str, body: Body) -> Result<(Response, Vec<u8>), Failure> {
        let url = self.url(&format!("/v2/{}/blobs/{digest}", self.repository))?;
        let authorization = self.authorization().await?;
        let request = self.http.get(url.clone());
        let (mut answer, mut bytes) = self.ask(request, &authorization, body).await?;
        if answer.status().is_redirection() {
            let location = answer
                .headers()
                .get(LOCATION)
                .and_then(|location| url.join(location.to_str().ok()?).ok());
            if let Some(location) = location {
                let request = self.elsewhere.get(location);
                (answer, bytes) = self.ask(request, &Authorization::None, body).await?;
            }
        }
        match answer.status() {
            StatusCode::OK => Ok((answer, bytes)),
            _ => Err(self
                .refusal(&format!("does not hand out the blob {digest}"), answer)
                .await),
        }
    }

    fn lies(&self, what: &str, expected: &str, found: &str) -> Failure {
        Failure::gate(format!(
            "the registry {} hands out other bytes for {what} of {} than their digest says",
            self.registry, self.repository
        ))
        .output(format!("digest:        {expected}\nof the bytes:  {found}"))
        .hint("Nobody's client will take this; ask whoever runs the registry.")
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        let text = format!("{}://{}{path}", self.registry.scheme(), self.registry);
        text.parse().or_environment(format!("{text} is not a URL"))
    }

    async fn send(
        &self,
        request: RequestBuilder,
        authorization: &Authorization,
    ) -> Result<Response, Failure> {
        let answer = self.ask(request, authorization, Body::Streamed).await;
        answer.map(|(answer, _)| answer)
    }

    /// Asks, again where that may help; with the answer comes what was read of its body.
    async fn ask(
        &self,
        mut request: RequestBuilder,
        authorization: &Authorization,
        body: Body,
    ) -> Result<(Response, Vec<u8>), Failure> {
        match (authorization, self.credential) {
            (Authorization::Bearer(token), _) => {
                request = request.bearer_auth(token.expose_secret())
            }
            (Authorization::Basic, Some(Credential { user, token })) => {
                request = request.basic_auth(user, Some(token.expose_secret()));
            }
            _ => {}
        }
        let (http, request) = request.build_split();
        let request = request.map_err(|error| self.unreachable(error))?;
        let ask = || async {
            // A question has no body.
            let (method, url) = (request.method().clone(), request.url().clone());
            let again = http.request(method, url).headers(request.headers().clone());
            let mut answer = Passing::sort(again.send().await)?;
            let mut bytes = Vec::new();
            if body == Body::Small && answer.status().is_success() {
                while let Some(piece) = answer.chunk().await.map_err(Passing::of)? {
                    bytes.extend_from_slice(&piece);
                    if bytes.len() as u64 > MOST {
                        break;
                    }
                }
            }
            Ok((answer, bytes))
        };
        let answer = ask
            .retry(
                ExponentialBuilder::default()
                    .with_min_delay(Duration::from_millis(500))
                    .with_max_times(AGAIN)
                    .with_jitter(),
            )
            .when(|failed| !matches!(failed, Passing::Not(_)))
            .adjust(|failed, wait| failed.wait(wait?))
            .notify(|failed, wait| {
                tracing::warn!("{} {failed}: again in {wait:?}", self.registry);
            })
            .await;
        match answer {
            Ok((_, bytes)) if bytes.len() as u64 > MOST => Err(Failure::gate(format!(
                "the registry {} hands out more than {MOST} bytes for a manifest or configuration",
                self.registry
            ))),
            Ok(answer) => Ok(answer),
            Err(Passing::Answer(answer)) => Ok((*answer, Vec::new())),
            Err(Passing::Broken(error) | Passing::Not(error)) => Err(self.unreachable(error)),
        }
    }

    /// What the registry wants to see with a request, as its answer to `GET /v2/` says.
    async fn authorization(&self) -> Result<Authorization, Failure> {
        let answer = self
            .send(self.http.get(self.url("/v2/")?), &Authorization::None)
            .await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(Authorization::None);
        }
        let challenge = answer
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

    /// [Token authentication](https://distribution.github.io/distribution/spec/auth/token/).
    async fn bearer(
        &self,
        realm: String,
        service: Option<String>,
    ) -> Result<Authorization, Failure> {
        let mut url: Url = realm.parse().or_environment(format!(
            "{} names an authentication realm that is not a URL: {realm}",
            self.registry
        ))?;
        let own = self.url("/")?;
        let elsewhere = url.host() != own.host() || url.scheme() != own.scheme();
        // Whoever has no credential has nothing to lose.
        if elsewhere && self.credential.is_some() {
            return Err(Failure::refused(format!(
                "{} sends the credential to {realm}, which is another host: it does not get it",
                self.registry
            ))
            .hint("Only a registry that answers for itself is trusted with the token."));
        }
        url.query_pairs_mut()
            .append_pair(
                "scope",
                &format!("repository:{}:{}", self.repository, self.access.actions()),
            )
            .extend_pairs(service.map(|service| ("service", service)));
        let request = self.http.get(url);
        let (answer, bytes) = self
            .ask(request, &Authorization::Basic, Body::Small)
            .await?;
        if !answer.status().is_success() {
            return Err(self.refusal("does not accept the credential", answer).await);
        }
        let token: Token = serde_json::from_slice(&bytes).or_environment(format!(
            "{} answered with what is not a token",
            self.registry
        ))?;
        let token = token.token.or(token.access_token).unwrap_or_default();
        Ok(Authorization::Bearer(token.into()))
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        Failure::environment(format!("the registry {} cannot be reached", self.registry))
            .because(error.without_url())
            .hint("Check the network and --registry; `ci doctor` tells what can be reached.")
    }

    /// The registry's own words.
    async fn refusal(&self, what: &str, answer: Response) -> Failure {
        let status = answer.status();
        let words = answer.text().await.unwrap_or_default();
        let message = format!(
            "the registry {} {what} to {}: {status}",
            self.registry, self.repository
        );
        let failure = if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            Failure::environment(message).hint("Run again later.")
        } else {
            Failure::refused(message).hint(match self.access {
                Access::Write => {
                    "The token needs `packages: write`, and the package has to be connected to this repository."
                }
                Access::Read => "A private image needs a GITHUB_TOKEN and GITHUB_ACTOR that may read it.",
            })
        };
        if words.trim().is_empty() {
            failure
        } else {
            failure.output(words.trim().to_owned())
        }
    }
}

/// A question that failed.
enum Passing {
    /// The registry has too much to do, or something behind it is down.
    Answer(Box<Response>),
    /// The connection broke, or there was none.
    Broken(reqwest::Error),
    /// It would fail again, or has taken all its time.
    Not(reqwest::Error),
}

impl Passing {
    fn sort(answer: reqwest::Result<Response>) -> Result<Response, Self> {
        match answer {
            Ok(answer) => match answer.status().as_u16() {
                429 | 500 | 502..=504 => Err(Self::Answer(Box::new(answer))),
                _ => Ok(answer),
            },
            Err(error) => Err(Self::of(error)),
        }
    }

    fn of(error: reqwest::Error) -> Self {
        if error.is_timeout() || error.is_builder() {
            Self::Not(error)
        } else {
            Self::Broken(error)
        }
    }

    /// How long to wait where nothing is said, or as long as the registry says; none where that is too long.
    fn wait(&self, usual: Duration) -> Option<Duration> {
        let Self::Answer(answer) = self else {
            return Some(usual);
        };
        let said = answer.headers().get(RETRY_AFTER);
        let seconds = said.and_then(|said| said.to_str().ok()?.parse().ok());
        let wait = seconds.map_or(usual, |seconds| usual.max(Duration::from_secs(seconds)));
        (wait <= PATIENCE).then_some(wait)
    }
}

impl std::fmt::Display for Passing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answer(answer) => write!(f, "answered {}", answer.status()),
            Self::Broken(error) | Self::Not(error) => write!(f, "did not answer ({error})"),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}
