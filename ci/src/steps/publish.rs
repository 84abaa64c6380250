//! The push, byte for byte: blobs, the manifest by its digest, the papers, and the tag last of all.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use dagger_sdk::{Container, Directory};
use oci_spec::image::{ImageConfiguration, ImageManifest};
use secrecy::ExposeSecret;
use serde_json::json;

use super::build::Image;
use super::crane::{self, Crane};
use super::workspace;
use crate::engine::graphql::EngineError;
use crate::image::archive::ArchiveInfo;
use crate::image::attestations::Paper;
use crate::image::labels::REVISION;
use crate::image::registry::{Access, Client, Manifest};
use crate::model::image_name::{Reference, Registry, Tag};
use crate::model::record::{Attached, Outcome, Published};
use crate::run::execution::StepContext;
use crate::source::checkout::State;
use crate::steps::verified::Verified;
use crate::trust::authority::{Credential, Permit};
use crate::trust::kind::Kind;
use common::failure::{ExitCode, Failure, OrFail};

/// As long as it may take from the look at a tag to its being set; and how long a publisher waits before it reads back what
/// it has set.
///
/// A registry has no "set if it is not there". Two publishers can both find no tag, and the later overwrites the earlier. As
/// the later one looked before the earlier one had set the tag, it is through before the earlier one reads back, who then
/// finds another's digest.
const WINDOW: Duration = Duration::from_secs(5);

/// How long one command of crane's may take. Dagger's tunnel to this machine's loopback does not tell crane when a registry
/// ends a connection, so there it is short: crane would wait for ever, and nothing on loopback takes long.
const LIMIT: Duration = Duration::from_secs(600);
const LIMIT_ON_LOOPBACK: Duration = Duration::from_secs(45);

/// Pushes the image and its papers, and reads back what was pushed.
///
/// # Errors
/// When the tag is there with another digest or the registry refuses (exit 4), or cannot be reached (exit 3).
pub async fn run<K: Kind>(
    step: &StepContext<'_, K>,
    (verified, permit): (Verified<'_, '_, K>, Permit<K::Registry>),
) -> Result<Published, Failure> {
    let image = verified.image();
    let tag = clean_tag(image, permit.tag())?;
    let registry: Registry = permit.registry().clone().into();
    let reference = Reference {
        registry: registry.clone(),
        repository: step.run.settings.repository.clone(),
        tag: tag.clone(),
    };
    let digest = &image.info().digest;
    let credential = permit.credential();
    let client = Client::new(&registry, &reference.repository, credential, Access::Write)?;
    let push = Push {
        step,
        crane: crane::container(step, &registry).await?,
        reference: &reference,
        info: image.info(),
        commit: image.commit(),
        client: &client,
        credential,
    };

    let outcome = push.there().await?;
    if outcome == Outcome::Pushed {
        let layout = layout(step, image).await?;
        push.by_digest(&layout, digest, "image").await?;
    }
    let referrers = push.papers(verified.papers()).await?;
    if outcome == Outcome::Pushed {
        push.tag().await?;
    }
    step.saw(digest);
    Ok(Published {
        image: reference.clone(),
        digest: digest.clone(),
        outcome,
        referrers,
    })
}

fn clean_tag<'a, K: Kind>(
    image: &Image<'_, '_, K>,
    permitted: &'a Tag,
) -> Result<&'a Tag, Failure> {
    match image.state() {
        State::Clean(tag) if tag == permitted => Ok(permitted),
        state => Err(Failure::refused(format!(
            "the image is that of {state}, and what may be published is {permitted}"
        ))),
    }
}

/// The image's archive as the layout that crane takes.
async fn layout<K: Kind>(
    step: &StepContext<'_, K>,
    image: &Image<'_, '_, K>,
) -> Result<Directory, Failure> {
    let archive = image.upload(step).await?;
    Ok(workspace::toolchain(step)
        .await?
        .with_mounted_file("/image.tar", archive)
        .with_exec(vec![
            "sh",
            "-c",
            "mkdir /layout && tar -xf /image.tar -C /layout && rm /layout/manifest.json",
        ])
        .directory("/layout"))
}

/// The push of one image.
struct Push<'a, 'step, K: Kind> {
    step: &'a StepContext<'step, K>,
    crane: Crane,
    reference: &'a Reference,
    info: &'a ArchiveInfo,
    commit: &'a str,
    client: &'a Client<'a>,
    credential: Option<&'a Credential>,
}

impl<K: Kind> Push<'_, '_, K> {
    /// What there is to do: nothing where the tag is there with this digest.
    ///
    /// # Errors
    /// When it is there with another (exit 4).
    async fn there(&self) -> Result<Outcome, Failure> {
        match self
            .client
            .manifest(&self.reference.tag.to_string())
            .await?
        {
            None => Ok(Outcome::Pushed),
            Some(there) if there.digest == self.info.digest => Ok(Outcome::AlreadyThere),
            Some(there) => Err(self.taken(&there).await),
        }
    }

    async fn taken(&self, there: &Manifest) -> Failure {
        let Self {
            reference,
            commit: ours,
            ..
        } = self;
        let theirs = self.revision(there).await;
        let of = |commit: &str| format!(", of commit {commit}");
        let output = format!(
            "in the registry: {}{}\nof this run:     {}{}",
            there.digest,
            theirs.as_deref().map(of).unwrap_or_default(),
            self.info.digest,
            of(ours),
        );
        match theirs.filter(|theirs| theirs != ours) {
            Some(_) => Failure::refused(format!("{reference} is there already, as the image of another commit"))
                .hint("Nothing was overwritten. Where two commits have the same short SHA, a longer one helps: git config core.abbrev 12"),
            None => Failure::refused(format!("{reference} is there already with another digest"))
                .hint("Nothing was overwritten: a tag is one commit's image for good. `ci verify` tells where the two part."),
        }
        .output(output)
    }

    /// The commit that an image in the registry says it is of.
    async fn revision(&self, image: &Manifest) -> Option<String> {
        let manifest: ImageManifest = image.read().ok()?;
        let config = manifest.config().digest().to_string();
        let config = self.client.small_blob(&config).await.ok()?;
        let config: ImageConfiguration = serde_json::from_slice(&config).ok()?;
        config.labels_of_config()?.get(REVISION).cloned()
    }

    /// Attaches the papers of which the registry has none of their kind.
    async fn papers(&self, papers: [&Paper; 2]) -> Result<Vec<Attached>, Failure> {
        let mut attached = Vec::new();
        for paper in papers {
            let (digest, outcome) = match self.listed(paper).await? {
                Some(there) => (there, Outcome::AlreadyThere),
                None => (self.attach(paper).await?, Outcome::Pushed),
            };
            attached.push(Attached {
                artifact_type: paper.kind.to_owned(),
                digest,
                outcome,
            });
        }
        Ok(attached)
    }

    /// The digest of what the registry lists beside the image as of the paper's kind.
    async fn listed(&self, paper: &Paper) -> Result<Option<String>, Failure> {
        let listed = self.client.referrers(&self.info.digest).await?;
        let found = listed.iter().find(|there| {
            let kind = there.artifact_type().as_ref().map(ToString::to_string);
            kind.as_deref() == Some(paper.kind)
        });
        Ok(found.map(|there| there.digest().to_string()))
    }

    /// Pushes a paper, and sees to it that it is listed; returns its digest.
    ///
    /// The list of a registry without the referrers API is a tag, which two publishers can overwrite for each other; and crane
    /// lists only what it has pushed itself. So each attempt is another artifact, by its time.
    async fn attach(&self, paper: &Paper) -> Result<String, Failure> {
        let attempt = AtomicU32::new(0);
        let attach = || async {
            let number = attempt.fetch_add(1, Ordering::Relaxed);
            if let (1.., Some(there)) = (number, self.listed(paper).await?) {
                return Ok(there);
            }
            let folder = tempfile::tempdir().or_environment("cannot make a folder for a paper")?;
            let digest = paper
                .write_layout(folder.path(), self.info, jiff::Timestamp::now())
                .or_environment("cannot write a paper")?;
            let host = self.step.client().host();
            let layout = host.directory(folder.path().display().to_string());
            self.push(&layout, &digest, paper.kind, number).await?;
            let listed = self.client.referrers(&self.info.digest).await?;
            if listed
                .iter()
                .any(|there| there.digest().to_string() == digest)
            {
                return Ok(digest);
            }
            Err(Failure::environment(format!(
                "{} does not list {} beside {}",
                self.reference.registry, paper.kind, self.reference
            ))
            .hint("Run again: what is missing is added."))
        };
        retried(attach).await
    }

    /// Pushes blobs, and their manifest under its digest alone.
    async fn by_digest(&self, layout: &Directory, digest: &str, what: &str) -> Result<(), Failure> {
        let attempt = AtomicU32::new(0);
        retried(|| {
            self.push(
                layout,
                digest,
                what,
                attempt.fetch_add(1, Ordering::Relaxed),
            )
        })
        .await
    }

    async fn push(
        &self,
        layout: &Directory,
        digest: &str,
        what: &str,
        attempt: u32,
    ) -> Result<(), Failure> {
        let container = self
            .container(attempt)
            .await?
            .with_mounted_directory("/layout", layout.clone());
        let target = self.in_registry(digest);
        self.exec(container, &["push", "/layout", &target], what)
            .await
    }

    /// Lets the tag name the image, unless it names another; then waits, and reads back.
    async fn tag(&self) -> Result<(), Failure> {
        let source = self.in_registry(&self.info.digest);
        let tag = self.reference.tag.to_string();
        let attempt = AtomicU32::new(0);
        let set = || async {
            // Ready before the look, so that little time is between the two.
            let container = self
                .container(attempt.fetch_add(1, Ordering::Relaxed))
                .await?;
            if self.there().await? == Outcome::AlreadyThere {
                return Ok(());
            }
            let arguments = ["tag", &source, &tag];
            let set = self.exec(container, &arguments, "tag");
            tokio::time::timeout(WINDOW, set).await.unwrap_or_else(|_| {
                Err(Failure::environment(format!(
                    "{} took longer than {} s to set a tag",
                    self.reference.registry,
                    WINDOW.as_secs()
                ))
                .hint("Run again: what is there is not pushed twice."))
            })
        };
        retried(set).await?;
        tokio::time::sleep(WINDOW).await;
        match self.there().await? {
            Outcome::AlreadyThere => Ok(()),
            Outcome::Pushed => Err(Failure::environment(format!(
                "{} was pushed, but the registry does not have it",
                self.reference
            ))
            .hint("Run again: what is there is not pushed twice.")),
        }
    }

    fn in_registry(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.crane.host, self.reference.repository)
    }

    async fn container(&self, attempt: u32) -> Result<Container, Failure> {
        let container = self
            .crane
            .container
            // What is in a registry is not in the engine's cache: each run asks anew.
            .with_env_variable("RUN_ID", format!("{}-{attempt}", self.step.run.id));
        let Some(credential) = self.credential else {
            return Ok(container);
        };
        // crane would take the credential to whatever host a registry names as its realm: it gets what this one gave for it.
        let auth = match self.client.token().await? {
            Some(token) => json!({ "registrytoken": token.expose_secret() }),
            None => json!({ "auth": credential.basic().expose_secret() }),
        };
        let config = json!({ "auths": { (&self.crane.host): auth } }).to_string();
        Ok(with_credential(self.step, container, &config, credential))
    }

    async fn exec(
        &self,
        container: Container,
        arguments: &[&str],
        what: &str,
    ) -> Result<(), Failure> {
        let Self { reference, .. } = self;
        let registry = &reference.registry;
        let limit = if registry.is_loopback() {
            LIMIT_ON_LOOPBACK
        } else {
            LIMIT
        };
        let command = container.with_exec(self.crane.arguments(arguments));
        let Ok(done) = tokio::time::timeout(limit, command.sync()).await else {
            return Err(Failure::environment(format!(
                "{registry} did not take the push of {reference} ({what}) within {} s",
                limit.as_secs()
            ))
            .hint("Run again: what is there is not pushed twice."));
        };
        done.map(drop)
            .map_err(|error| match EngineError::from(error) {
                EngineError::Exec { output, .. } if refused(&output) => Failure::new(
                    ExitCode::PublishRefused,
                    format!("{registry} refused the push of {reference} ({what})"),
                )
                .output(output),
                EngineError::Exec { output, .. } => {
                    Failure::environment(format!("the push of {reference} failed ({what})"))
                        .output(output)
                        .hint("Run again: what is there is not pushed twice.")
                }
                other => other.into_environment("step publish"),
            })
    }
}

/// `work`, again where the network or the registry failed and did not refuse.
async fn retried<T, F>(work: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    work.retry(
        // crane itself tries three times within some seconds.
        ExponentialBuilder::default()
            .with_max_times(2)
            .with_jitter(),
    )
    .when(|failure| failure.code == ExitCode::Environment)
    .notify(|failure, wait| tracing::warn!("again in {wait:?}: {failure}"))
    .await
}

fn refused(output: &str) -> bool {
    ["UNAUTHORIZED", "DENIED", "401 ", "403 "]
        .iter()
        .any(|sign| output.contains(sign))
}

/// The credential as files that exist for one command only: what `docker login` would write, and the bare token, so that
/// the engine strikes it out of whatever the command prints.
fn with_credential<K: Kind>(
    step: &StepContext<'_, K>,
    container: Container,
    config: &str,
    credential: &Credential,
) -> Container {
    let client = step.client();
    let secret =
        |name: &str, value: &str| client.set_secret(format!("{name}-{}", step.run.id), value);
    container
        .with_env_variable("DOCKER_CONFIG", "/run/secrets")
        .with_mounted_secret(
            "/run/secrets/config.json",
            secret("registry-config", config),
        )
        .with_mounted_secret(
            "/run/secrets/token",
            secret("registry-token", credential.token.expose_secret()),
        )
}
