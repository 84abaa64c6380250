//! The push, byte for byte.

use dagger_sdk::Container;
use secrecy::ExposeSecret;

use super::build::Image;
use super::{crane, workspace};
use crate::authority::{Credential, Permit};
use crate::engine::EngineError;
use crate::evidence::{Kind, Verified};
use crate::failure::{ExitCode, Failure};
use crate::reference::{Reference, Registry, Tag};
use crate::registry;
use crate::run::StepContext;
use crate::source::State;

/// How an image got to where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was pushed.
    Pushed,
    /// It was there already, with the same digest.
    AlreadyThere,
}

/// A published image.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Published {
    /// Its name.
    pub image: Reference,
    /// Its digest, as read back from the registry.
    pub digest: String,
    /// How it got there.
    pub outcome: Outcome,
}

/// Pushes the image, and reads it back.
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
    let client = registry::Client::new(&registry, &reference.repository, permit.credential())?;

    let outcome = match client.manifest_digest(tag).await? {
        Some(there) if there == *digest => Outcome::AlreadyThere,
        Some(there) => return Err(taken(&reference, &there, digest)),
        None => {
            push(step, image, &reference, permit.credential()).await?;
            Outcome::Pushed
        }
    };
    match client.manifest_digest(tag).await? {
        Some(there) if there == *digest => {}
        Some(there) => return Err(taken(&reference, &there, digest)),
        None => {
            return Err(Failure::environment(format!(
                "{reference} was pushed, but the registry does not have it"
            ))
            .hint("Run again: what is there is not pushed twice."));
        }
    }
    step.saw(digest);
    Ok(Published {
        image: reference,
        digest: digest.clone(),
        outcome,
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

fn taken(reference: &Reference, there: &str, ours: &str) -> Failure {
    Failure::refused(format!("{reference} is there already with another digest"))
        .output(format!("in the registry: {there}\nof this run:     {ours}"))
        .hint("Nothing was overwritten: a tag is one commit's image for good. Find out who pushed the other one.")
}

async fn push<K: Kind>(
    step: &StepContext<'_, K>,
    image: &Image<'_, '_, K>,
    reference: &Reference,
    credential: Option<&Credential>,
) -> Result<(), Failure> {
    let archive = image.upload(step).await?;
    let layout = workspace::toolchain(step)
        .await?
        .with_mounted_file("/image.tar", archive)
        .with_exec(vec![
            "sh",
            "-c",
            "mkdir /layout && tar -xf /image.tar -C /layout && rm /layout/manifest.json",
        ])
        .directory("/layout");
    let registry = &reference.registry;
    let crane = crane::container(step, registry).await?;
    let host = &crane.host;
    let mut container = crane
        .container
        .with_mounted_directory("/layout", layout)
        // What is in a registry is not in the engine's cache: each run asks anew.
        .with_env_variable("RUN_ID", &step.run.id);
    if let Some(credential) = credential {
        container = with_credential(step, container, host, credential);
    }
    let target = format!("{host}/{}:{}", reference.repository, reference.tag);
    container
        .with_exec(crane.arguments(&["push", "/layout", &target]))
        .sync()
        .await
        .map(drop)
        .map_err(|error| match EngineError::from(error) {
            EngineError::Exec { output, .. } if refused(&output) => Failure::new(
                ExitCode::PublishRefused,
                format!("{registry} refused the push of {reference}"),
            )
            .output(output),
            EngineError::Exec { output, .. } => {
                Failure::environment(format!("the push of {reference} failed"))
                    .output(output)
                    .hint("Run again.")
            }
            other => other.into_environment("step publish"),
        })
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
    host: &str,
    credential: &Credential,
) -> Container {
    let client = step.client();
    let auth = credential.basic();
    let config =
        serde_json::json!({ "auths": { host: { "auth": auth.expose_secret() } } }).to_string();
    let secret =
        |name: &str, value: &str| client.set_secret(format!("{name}-{}", step.run.id), value);
    container
        .with_env_variable("DOCKER_CONFIG", "/run/secrets")
        .with_mounted_secret(
            "/run/secrets/config.json",
            secret("registry-config", &config),
        )
        .with_mounted_secret(
            "/run/secrets/token",
            secret("registry-token", credential.token.expose_secret()),
        )
}
