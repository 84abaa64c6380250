//! The base image, byte for byte as its registry has it.

use oci_spec::distribution::Reference;

use super::crane;
use crate::engine::graphql::EngineError;
use crate::image::archive::Base;
use crate::model::image_name::Registry;
use crate::run::execution::StepContext;
use crate::run::toolbox;
use crate::trust::kind::Kind;
use common::failure::{Failure, OrFail};

/// A base image on this machine.
#[derive(Debug)]
pub struct Fetched {
    /// What the settings call it.
    pub name: String,
    /// Its layers and configuration.
    pub image: Base,
    /// They lie here as long as this lives.
    _folder: Option<tempfile::TempDir>,
}

/// Gets the base image that the settings name, or nothing where it is `scratch`. A name without a digest is asked for
/// anew each time, and the user is told to add the one that it has; what has a digest comes from the engine's cache.
///
/// # Errors
/// When the registry cannot be reached or does not have it, or it is not for the image's platform.
pub async fn fetch<K: Kind>(step: &StepContext<'_, K>) -> Result<Option<Fetched>, Failure> {
    let Some(reference) = &step.run.settings.image.base else {
        return Ok(None);
    };
    let fetched = match pull(step, reference).await {
        Ok(fetched) => {
            if reference.digest().is_none() {
                step.notice(&format!(
                    "image.base in ci.toml has no digest, and may be another image tomorrow; today's is\n    base = \"{}\"",
                    fetched.name
                ));
            }
            fetched
        }
        Err(EngineError::Exec { output, .. }) if toolbox::is_unreachable(&output) => {
            let Some(stand_ins) = step.run.toolbox.stand_ins() else {
                return Err(Failure::environment(format!(
                    "the base image {reference} cannot be reached"
                ))
                .output(output));
            };
            let stand_in = stand_ins.base().await?;
            step.run.toolbox.note(&reference.whole(), &stand_in.digest);
            Fetched {
                name: reference.whole(),
                image: Base::read(&stand_in.layout)
                    .or_environment("the stand-in base image is damaged")?,
                _folder: None,
            }
        }
        Err(EngineError::Exec { output, .. }) => {
            return Err(
                Failure::environment(format!("the base image {reference} cannot be had"))
                    .output(output)
                    .hint("image.base in ci.toml names it."),
            );
        }
        Err(other) => return Err(other.into_environment("getting the base image")),
    };
    if !fetched.image.is_for(&step.run.platforms.image) {
        return Err(Failure::usage(format!(
            "the base image {reference} is not for {}",
            step.run.platforms.image
        ))
        .hint("Take one that is, or set the platform."));
    }
    Ok(Some(fetched))
}

async fn pull<K: Kind>(
    step: &StepContext<'_, K>,
    reference: &Reference,
) -> Result<Fetched, EngineError> {
    let other = |error: &dyn std::fmt::Display| EngineError::Query(error.to_string());
    let registry: Registry = reference
        .resolve_registry()
        .parse()
        .map_err(|error| other(&error))?;
    let crane = crane::container(step, &registry)
        .await
        .map_err(|error| other(&error))?;
    let in_registry = format!("{}/{}", crane.host, reference.repository());
    let digest = match reference.digest() {
        Some(digest) => digest.to_owned(),
        None => {
            let tag = reference.tag().unwrap_or_default();
            let asked = crane
                .container
                // What a tag names today.
                .with_env_variable("RUN_ID", &step.run.id)
                .with_exec(crane.arguments(&["digest", &format!("{in_registry}:{tag}")]));
            asked.stdout().await?.trim().to_owned()
        }
    };
    let folder = tempfile::tempdir().map_err(|error| other(&error))?;
    crane
        .container
        .with_exec(crane.arguments(&[
            "pull",
            "--format",
            "oci",
            "--platform",
            &step.run.platforms.image.to_string(),
            &format!("{in_registry}@{digest}"),
            "/base",
        ]))
        .directory("/base")
        .export(folder.path().display().to_string())
        .await?;
    Ok(Fetched {
        name: format!(
            "{}@{digest}",
            reference.whole().split('@').next().unwrap_or_default()
        ),
        image: Base::read(folder.path()).map_err(|error| other(&error))?,
        _folder: Some(folder),
    })
}
