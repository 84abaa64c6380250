//! Pushes the image byte for byte: the blobs, the manifest by its digest, the attestations, and finally the tag.

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
use crate::image::attestations::Attestation;
use crate::image::labels::REVISION;
use crate::image::registry::{Access, Client, Manifest};
use crate::model::image_name::{Reference, Registry, Tag};
use crate::model::record::{AttachedArtifact, Outcome, Published};
use crate::run::execution::StepContext;
use crate::source::checkout::State;
use crate::steps::verified::Verified;
use crate::trust::authority::{Credential, Permit};
use crate::trust::kind::Kind;
use common::failure::{ExitCode, Failure, OrFail};
use common::scratch;

/// The maximum time between reading a tag and setting it, and the time that a publisher waits before it reads the tag back.
///
/// Registries cannot set a tag only if it does not exist. Of two publishers that both find no tag, the later one overwrites
/// the tag of the earlier one. The later one read the tag before the earlier one set it, so it has finished when the earlier
/// one reads the tag back and finds a foreign digest.
const WINDOW: Duration = Duration::from_secs(5);

/// The time limit of one crane command. Dagger's tunnel to this machine's loopback interface does not forward the end of a
/// connection, so crane would wait forever; commands on loopback are fast, and their limit is short.
const LIMIT: Duration = Duration::from_secs(600);
const LIMIT_ON_LOOPBACK: Duration = Duration::from_secs(45);

const RUN_AGAIN: &str = "Run again; existing content is not pushed again.";

/// Pushes the image and its attestations, and reads the tag back.
///
/// # Errors
/// When the tag exists with another digest or the registry refuses the push (exit code 4), or the registry cannot be reached
/// (exit code 3).
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

    let outcome = push.check_tag().await?;
    if outcome == Outcome::Pushed {
        let layout = layout(step, image).await?;
        push.by_digest(&layout, digest, "image").await?;
    }
    let referrers = push.attestations(verified.attestations()).await?;
    if outcome == Outcome::Pushed {
        push.tag().await?;
    }
    step.set_digest(digest);
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
            "the image was built from {state}, but only {permitted} is allowed to be published"
        ))),
    }
}

/// Unpacks the image's archive to an OCI layout for crane.
async fn layout<K: Kind>(
    step: &StepContext<'_, K>,
    image: &Image<'_, '_, K>,
) -> Result<Directory, Failure> {
    let archive = Box::pin(image.upload(step)).await?;
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
    /// Checks whether the tag exists: [`Outcome::AlreadyThere`] if it does with this image's digest.
    ///
    /// # Errors
    /// When the tag exists with another digest (exit code 4).
    async fn check_tag(&self) -> Result<Outcome, Failure> {
        match self
            .client
            .manifest(&self.reference.tag.to_string())
            .await?
        {
            None => Ok(Outcome::Pushed),
            Some(existing) if existing.digest == self.info.digest => Ok(Outcome::AlreadyThere),
            Some(existing) => Err(self.tag_conflict(&existing).await),
        }
    }

    async fn tag_conflict(&self, existing: &Manifest) -> Failure {
        let Self {
            reference,
            commit: ours,
            ..
        } = self;
        let theirs = self.revision(existing).await;
        let of = |commit: &str| format!(", of commit {commit}");
        let output = format!(
            "in the registry: {}{}\nof this run:     {}{}",
            existing.digest,
            theirs.as_deref().map(of).unwrap_or_default(),
            self.info.digest,
            of(ours),
        );
        match theirs.filter(|theirs| theirs != ours) {
            Some(_) => Failure::refused(format!("{reference} already exists as the image of another commit"))
                .hint("Nothing was overwritten. If two commits have the same short SHA, set tag-length = 12 in ci.toml."),
            None => Failure::refused(format!("{reference} already exists with another digest"))
                .hint("Nothing was overwritten. Run `ci verify` to compare the two images."),
        }
        .output(output)
    }

    /// The commit in the label of an image in the registry.
    async fn revision(&self, image: &Manifest) -> Option<String> {
        let manifest: ImageManifest = image.read().ok()?;
        let config = manifest.config().digest().to_string();
        let config = self.client.small_blob(&config).await.ok()?;
        let config: ImageConfiguration = serde_json::from_slice(&config).ok()?;
        config.labels_of_config()?.get(REVISION).cloned()
    }

    /// Attaches the attestations, except for kinds that the registry already has.
    async fn attestations(
        &self,
        attestations: [&Attestation; 2],
    ) -> Result<Vec<AttachedArtifact>, Failure> {
        let mut attached = Vec::new();
        for attestation in attestations {
            let (digest, outcome) = match self.listed(attestation).await? {
                Some(existing) => (existing, Outcome::AlreadyThere),
                None => (self.attach(attestation).await?, Outcome::Pushed),
            };
            attached.push(AttachedArtifact {
                artifact_type: attestation.kind.to_owned(),
                digest,
                outcome,
            });
        }
        Ok(attached)
    }

    /// The digest of the image's OCI referrer with the attestation's kind.
    async fn listed(&self, attestation: &Attestation) -> Result<Option<String>, Failure> {
        let listed = self.client.referrers(&self.info.digest).await?;
        let found = listed.iter().find(|referrer| {
            let kind = referrer.artifact_type().as_ref().map(ToString::to_string);
            kind.as_deref() == Some(attestation.kind)
        });
        Ok(found.map(|referrer| referrer.digest().to_string()))
    }

    /// Pushes an attestation until the registry lists it as a referrer; returns its digest.
    ///
    /// In a registry without the referrers API the list is a tag, which two publishers can overwrite for each other, and crane
    /// adds an artifact to the list only when it pushes it. Each attempt therefore pushes a new artifact, with another time.
    async fn attach(&self, attestation: &Attestation) -> Result<String, Failure> {
        let attempt = AtomicU32::new(0);
        let attach = || async {
            let number = attempt.fetch_add(1, Ordering::Relaxed);
            if let (1.., Some(existing)) = (number, self.listed(attestation).await?) {
                return Ok(existing);
            }
            let folder =
                scratch::folder().or_environment("cannot create a directory for an attestation")?;
            let digest = attestation
                .write_layout(folder.path(), self.info, jiff::Timestamp::now())
                .or_environment("cannot write an attestation")?;
            let host = self.step.client().host();
            let layout = host.directory(folder.path().display().to_string());
            self.push(&layout, &digest, attestation.kind, number)
                .await?;
            let listed = self.client.referrers(&self.info.digest).await?;
            if listed
                .iter()
                .any(|referrer| referrer.digest().to_string() == digest)
            {
                return Ok(digest);
            }
            Err(Failure::environment(format!(
                "{} does not list {} as a referrer of {}",
                self.reference.registry, attestation.kind, self.reference
            ))
            .hint("Run again to add the missing attestations."))
        };
        retried(attach).await
    }

    /// Pushes the blobs and the manifest, by its digest and without a tag.
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

    /// Sets the tag unless it exists, waits for [`WINDOW`], and reads the tag back.
    async fn tag(&self) -> Result<(), Failure> {
        let source = self.in_registry(&self.info.digest);
        let tag = self.reference.tag.to_string();
        let attempt = AtomicU32::new(0);
        let set = || async {
            // Prepared first, to keep the time between reading and setting the tag short.
            let container = self
                .container(attempt.fetch_add(1, Ordering::Relaxed))
                .await?;
            if self.check_tag().await? == Outcome::AlreadyThere {
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
                .hint(RUN_AGAIN))
            })
        };
        retried(set).await?;
        tokio::time::sleep(WINDOW).await;
        match self.check_tag().await? {
            Outcome::AlreadyThere => Ok(()),
            Outcome::Pushed => Err(Failure::environment(format!(
                "{} was pushed, but the registry does not have it",
                self.reference
            ))
            .hint(RUN_AGAIN)),
        }
    }

    fn in_registry(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.crane.host, self.reference.repository)
    }

    async fn container(&self, attempt: u32) -> Result<Container, Failure> {
        let container = self
            .crane
            .container
            // Keeps the engine from reusing the result of an earlier run.
            .with_env_variable("RUN_ID", format!("{}-{attempt}", self.step.run.id));
        let Some(credential) = self.credential else {
            return Ok(container);
        };
        // crane would send the credential to any host that the registry names as its realm. It only gets the registry's token.
        let auth = match self.client.fetch_token().await? {
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
                "pushing {reference} ({what}) to {registry} took longer than {} s",
                limit.as_secs()
            ))
            .hint(RUN_AGAIN));
        };
        done.map(drop)
            .map_err(|error| match EngineError::from(error) {
                EngineError::Exec { output, .. } if refused(&output) => Failure::new(
                    ExitCode::PublishRefused,
                    format!("{registry} refused the push of {reference} ({what})"),
                )
                .output(output),
                EngineError::Exec { output, .. } => {
                    Failure::environment(format!("cannot push {reference} ({what})"))
                        .output(output)
                        .hint(RUN_AGAIN)
                }
                other => other.into_environment("step publish"),
            })
    }
}

/// Retries `work` after failures of the network or the registry, but not after a refusal.
async fn retried<T, F>(work: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    work.retry(
        // crane itself tries three times within a few seconds.
        ExponentialBuilder::default()
            .with_max_times(2)
            .with_jitter(),
    )
    .when(|failure| failure.code == ExitCode::Environment)
    .notify(|failure, wait| tracing::warn!("retrying in {wait:?}: {failure}"))
    .await
}

fn refused(output: &str) -> bool {
    ["UNAUTHORIZED", "DENIED", "401 ", "403 "]
        .iter()
        .any(|sign| output.contains(sign))
}

/// Mounts the credential for one command, as secrets that the engine redacts in its output: the file that `docker login` would
/// write, and the bare token.
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
