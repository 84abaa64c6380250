//! The questions that `ci` itself asks a registry: may I write, and what is there. It pushes nothing.
//!
//! [OCI distribution specification](https://github.com/opencontainers/distribution-spec/blob/main/spec.md).

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use reqwest::header::{ACCEPT, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::authority::Credential;
use crate::failure::{Failure, OrFail};
use crate::oci;
use crate::reference::{Registry, Repository, Tag};

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How often a question is asked again that failed for a reason that passes.
const AGAIN: usize = 3;
/// A registry that wants to be left alone for longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The manifests that an image or an index may have.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// A client of one repository in one registry.
pub struct Client<'a> {
    http: reqwest::Client,
    registry: &'a Registry,
    repository: &'a Repository,
    credential: Option<&'a Credential>,
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
    ) -> Result<Self, Failure> {
        let mut http = reqwest::Client::builder()
            // A redirect could carry the credential to another host.
            .redirect(reqwest::redirect::Policy::none())
            .timeout(LIMIT)
            .user_agent(concat!("infrastructure-lab-ci/", env!("CARGO_PKG_VERSION")));
        if registry.is_loopback() {
            http = http.no_proxy();
        } else {
            http = http.https_only(true);
        }
        Ok(Self {
            http: http.build().or_environment("cannot make an HTTP client")?,
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

    /// The digest of the manifest that `tag` names, computed from what the registry hands out, or none.
    ///
    /// # Errors
    /// When the registry refuses (exit 4) or cannot be reached (exit 3).
    pub async fn manifest_digest(&self, tag: &Tag) -> Result<Option<String>, Failure> {
        let url = self.url(&format!("/v2/{}/manifests/{tag}", self.repository))?;
        let authorization = self.authorization().await?;
        let request = self
            .http
            .request(Method::GET, url)
            .header(ACCEPT, MANIFESTS);
        let answer = self.send(request, &authorization).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => {
                let manifest = answer
                    .bytes()
                    .await
                    .map_err(|error| self.unreachable(error))?;
                Ok(Some(oci::sha256(&manifest)))
            }
            _ => Err(self
                .refusal(&format!("does not say what {tag} is"), answer)
                .await),
        }
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        let text = format!("{}://{}{path}", self.registry.scheme(), self.registry);
        text.parse().or_environment(format!("{text} is not a URL"))
    }

    async fn send(
        &self,
        mut request: RequestBuilder,
        authorization: &Authorization,
    ) -> Result<Response, Failure> {
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
            Passing::sort(again.send().await)
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
            Ok(answer) => Ok(answer),
            Err(Passing::Answer(answer)) => Ok(*answer),
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

    /// Always for both actions: a token to read alone is denied for a repository that does not exist yet.
    ///
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
        if url.host() != own.host() || url.scheme() != own.scheme() {
            return Err(Failure::refused(format!(
                "{} sends the credential to {realm}, which is another host: it does not get it",
                self.registry
            ))
            .hint("Only a registry that answers for itself is trusted with the token."));
        }
        url.query_pairs_mut()
            .append_pair(
                "scope",
                &format!("repository:{}:pull,push", self.repository),
            )
            .extend_pairs(service.map(|service| ("service", service)));
        let answer = self.send(self.http.get(url), &Authorization::Basic).await?;
        if !answer.status().is_success() {
            return Err(self.refusal("does not accept the credential", answer).await);
        }
        let token: Token = answer.json().await.or_environment(format!(
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
            Failure::refused(message).hint(
                "The token needs `packages: write`, and the package has to be connected to this repository.",
            )
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
            Err(error) if error.is_timeout() || error.is_builder() => Err(Self::Not(error)),
            Err(error) => Err(Self::Broken(error)),
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
