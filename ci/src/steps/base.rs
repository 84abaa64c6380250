//! Pulls the base image, byte for byte as its registry serves it.

use oci_spec::distribution::Reference;

use super::crane;
use crate::engine::graphql::EngineError;
use crate::image::archive::Base;
use crate::model::image_name::Registry;
use crate::run::execution::StepContext;
use crate::run::toolbox;
use crate::trust::kind::Kind;
use common::failure::{Failure, OrFail};
use common::scratch;

/// A base image on this machine.
#[derive(Debug)]
pub(super) struct Fetched {
    /// The reference, with its digest if the image was pulled.
    pub name: String,
    pub image: Base,
    /// Holds the layers' files.
    _folder: Option<tempfile::TempDir>,
}

/// Pulls the configured base image; `None` for `scratch`. An image with a digest comes from the engine's cache if possible. A
/// tag is resolved in each run, with a warning that suggests the digest.
///
/// # Errors
/// When the image cannot be pulled (exit code 3), or is for another platform (exit code 2).
pub(super) async fn fetch<K: Kind>(step: &StepContext<'_, K>) -> Result<Option<Fetched>, Failure> {
    let Some(reference) = &step.run.settings.image.base else {
        return Ok(None);
    };
    let fetched = match pull(step, reference).await {
        Ok(fetched) => {
            if reference.digest().is_none() {
                step.notice(&format!(
                    "image.base in ci.toml has no digest, so its content can change; pin it with\n    base = \"{}\"",
                    fetched.name
                ));
            }
            fetched
        }
        Err(EngineError::Exec { output, .. }) if toolbox::is_unreachable(&output) => {
            let Some(stand_ins) = step.run.toolbox.stand_ins() else {
                return Err(Failure::environment(format!(
                    "cannot reach the registry of base image {reference}"
                ))
                .output(output));
            };
            let stand_in = stand_ins.base().await?;
            step.run.toolbox.note(&reference.whole(), &stand_in.digest);
            Fetched {
                name: reference.whole(),
                image: Base::read(&stand_in.layout)
                    .or_environment("cannot read the stand-in base image")?,
                _folder: None,
            }
        }
        Err(EngineError::Exec { output, .. }) => {
            return Err(
                Failure::environment(format!("cannot pull base image {reference}"))
                    .output(output)
                    .hint("Check image.base in ci.toml."),
            );
        }
        Err(other) => return Err(other.into_environment("cannot pull the base image")),
    };
    if !fetched.image.is_for(&step.run.platforms.image) {
        return Err(Failure::usage(format!(
            "base image {reference} is not for {}",
            step.run.platforms.image
        ))
        .hint("Use a base image for this platform, or set --platform."));
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
            let resolved = crane
                .container
                // Keeps the engine from caching the tag's digest.
                .with_env_variable("RUN_ID", &step.run.id)
                .with_exec(crane.arguments(&["digest", &format!("{in_registry}:{tag}")]));
            resolved.stdout().await?.trim().to_owned()
        }
    };
    let folder = scratch::folder().map_err(|error| other(&error))?;
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
