//! Fetches a published image and verifies its digests.

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

/// The maximum size of an image's layers, in bytes.
const MAX_SIZE: u64 = 4 << 30;

/// A published image whose digests are verified.
pub(super) struct Image {
    pub manifest: Manifest,
    /// The configuration's JSON.
    pub config: Vec<u8>,
    /// The commit in the image's label, which is not trusted.
    pub revision: Sha,
    pub platform: Platform,
    /// The provenance attestation, if the registry has one.
    pub provenance: Option<Statement>,
}

/// Fetches the image, with its layers as files in `folder`, and verifies all digests.
pub(super) async fn fetch(
    client: &Client<'_>,
    name: &ImageName,
    folder: &Path,
) -> Result<Image, Failure> {
    let manifest = client.manifest(&name.version).await?.ok_or_else(|| {
        Failure::gate(format!("{name} is not in the registry")).hint(
            "Use the name that `ci` printed when it published the image, with its tag or digest.",
        )
    })?;
    let foreign = |why: &str| {
        Failure::gate(format!("{name} was not published by ci: {why}"))
            .hint("Use an image that ci published from this repository.")
    };
    let parsed: ImageManifest = manifest
        .read()
        .map_err(|_| foreign("not a single-platform image"))?;
    let config = client.small_blob(parsed.config().digest().as_ref()).await?;
    let read: ImageConfiguration =
        serde_json::from_slice(&config).map_err(|_| foreign("invalid configuration"))?;
    let label = read
        .labels_of_config()
        .and_then(|labels| labels.get(REVISION));
    let revision = label
        .ok_or_else(|| foreign(&format!("no label {REVISION}")))?
        .parse()
        .map_err(|_| foreign(&format!("label {REVISION} is not a commit's SHA")))?;
    let architecture = match read.architecture() {
        Arch::Amd64 => "amd64",
        Arch::ARM64 => "arm64",
        other => return Err(foreign(&format!("unsupported architecture {other}"))),
    };
    let mut left = MAX_SIZE;
    for layer in parsed.layers() {
        left = left
            .checked_sub(layer.size())
            .ok_or_else(|| foreign("its layers are larger than 4 GiB"))?;
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

/// The image's provenance attestation. It is only used to explain differences, so errors are ignored.
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
