//! The image that a registry has, fetched and proven to be what its digest says.

use std::path::Path;

use oci_spec::image::{Arch, ImageConfiguration, ImageManifest};

use crate::image::archive::Platform;
use crate::image::attestations;
use crate::image::labels::REVISION;
use crate::image::provenance::Statement;
use crate::image::registry::{Client, Manifest};
use crate::model::image_name::ImageName;
use crate::source::checkout::Sha;
use common::failure::Failure;

/// The most that the layers of an image may have, in bytes.
const MOST: u64 = 4 << 30;

/// A published image, fetched.
pub struct Image {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its configuration.
    pub config: Vec<u8>,
    /// The commit that it says it is of.
    pub revision: Sha,
    /// The platform that it is for.
    pub platform: Platform,
    /// How it says that it came to be, where its registry has that.
    pub provenance: Option<Statement>,
}

/// Fetches the image, its layers into `folder`, and proves that all of it is what its digest says.
pub async fn fetch(client: &Client<'_>, name: &ImageName, folder: &Path) -> Result<Image, Failure> {
    let manifest = client.manifest(&name.version).await?.ok_or_else(|| {
        Failure::gate(format!("{name} is not in the registry"))
            .hint("Name it as `ci` printed it when it was published, with its tag or its digest.")
    })?;
    let foreign = |why: &str| {
        Failure::gate(format!(
            "{name} is not an image that ci has published: {why}"
        ))
        .hint("Only what ci has published from this repository can be verified.")
    };
    let parsed: ImageManifest = manifest
        .read()
        .map_err(|_| foreign("it is not a single image"))?;
    let config = client.small_blob(parsed.config().digest().as_ref()).await?;
    let read: ImageConfiguration =
        serde_json::from_slice(&config).map_err(|_| foreign("its configuration is none"))?;
    let label = read
        .labels_of_config()
        .and_then(|labels| labels.get(REVISION));
    let revision = label
        .ok_or_else(|| foreign(&format!("it has no label {REVISION}")))?
        .parse()
        .map_err(|_| foreign(&format!("its label {REVISION} is not a commit's SHA")))?;
    let architecture = match read.architecture() {
        Arch::Amd64 => "amd64",
        Arch::ARM64 => "arm64",
        other => return Err(foreign(&format!("it is for {other}"))),
    };
    let mut left = MOST;
    for layer in parsed.layers() {
        left = left
            .checked_sub(layer.size())
            .ok_or_else(|| foreign("its layers have more than 4 GiB"))?;
        let digest = layer.digest().to_string();
        let file = folder.join(digest.replace(':', "-"));
        client.blob(&digest, layer.size(), &file).await?;
    }
    let provenance = provenance_of(client, &manifest.digest).await;
    Ok(Image {
        manifest,
        config,
        revision,
        platform: format!("linux/{architecture}").parse()?,
        provenance,
    })
}

/// The provenance beside the image. It only explains a difference, so that none, or a broken one, changes nothing.
async fn provenance_of(client: &Client<'_>, digest: &str) -> Option<Statement> {
    let referrers = client.referrers(digest).await.ok()?;
    let found = referrers.iter().find(|it| {
        it.artifact_type()
            .as_ref()
            .map(ToString::to_string)
            .as_deref()
            == Some(attestations::IN_TOTO)
    })?;
    let manifest = client.manifest(found.digest().as_ref()).await.ok()??;
    let manifest: ImageManifest = manifest.read().ok()?;
    let content = client
        .small_blob(manifest.layers().first()?.digest().as_ref())
        .await
        .ok()?;
    serde_json::from_slice(&content).ok()
}
