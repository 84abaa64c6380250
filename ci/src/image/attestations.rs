//! The attestations of an image, stored as OCI referrers.
//!
//! [Guidance on artifacts](https://github.com/opencontainers/image-spec/blob/main/manifest.md#guidelines-for-artifact-usage).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use oci_spec::image::{Descriptor, ImageIndexBuilder, ImageManifestBuilder, MediaType};

use crate::image::archive::{self, ArchiveInfo};
use common::digest;

/// The media type of a CycloneDX SBOM.
pub const CYCLONEDX: &str = "application/vnd.cyclonedx+json";
/// The media type of an in-toto statement.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";
/// The config blob of an artifact without configuration.
const EMPTY: &[u8] = b"{}";

/// An attestation of an image.
#[derive(Clone, Debug)]
pub struct Attestation {
    /// The artifact type: [`CYCLONEDX`] or [`IN_TOTO`].
    pub kind: &'static str,
    /// The annotations of the manifest, which a registry includes in its list of referrers.
    pub annotations: BTreeMap<String, String>,
    /// The content of the only layer.
    pub content: Vec<u8>,
}

impl Attestation {
    /// Writes the attestation to an empty directory, as an OCI layout of an artifact with `image` as its `subject`. Returns the
    /// digest of the manifest.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write_layout(
        &self,
        folder: &Path,
        image: &ArchiveInfo,
        created: jiff::Timestamp,
    ) -> io::Result<String> {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let blob = |content: &[u8], media_type: MediaType| -> io::Result<Descriptor> {
            let digest = digest::sha256(content);
            fs::write(folder.join(archive::blob_path(&digest)), content)?;
            archive::descriptor(media_type, &digest, content.len() as u64)
        };
        let mut annotations: HashMap<_, _> = self.annotations.clone().into_iter().collect();
        annotations.insert(
            "org.opencontainers.image.created".to_owned(),
            created.to_string(),
        );
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .artifact_type(MediaType::from(self.kind))
            .config(blob(EMPTY, MediaType::EmptyJSON)?)
            .layers(vec![blob(&self.content, MediaType::from(self.kind))?])
            .subject(archive::descriptor(
                MediaType::ImageManifest,
                &image.digest,
                image.size,
            )?)
            .annotations(annotations)
            .build()
            .map_err(io::Error::other)?;
        let manifest = blob(&archive::to_json(&manifest)?, MediaType::ImageManifest)?;
        let digest = manifest.digest().to_string();
        let index = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![manifest])
            .build()
            .map_err(io::Error::other)?;
        fs::write(folder.join("index.json"), archive::to_json(&index)?)?;
        fs::write(
            folder.join("oci-layout"),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        Ok(digest)
    }
}

/// Returns the tag of the referrers list of `digest` in a registry without the referrers API.
///
/// [Referrers tag schema](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema).
#[must_use]
pub fn fallback_tag(digest: &str) -> String {
    digest.replacen(':', "-", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attestation_refers_to_its_image_and_has_a_reproducible_digest() {
        let image = ArchiveInfo {
            digest: digest::sha256(b"image"),
            size: 5,
            config: digest::sha256(b""),
            layer: digest::sha256(b""),
            diff_id: digest::sha256(b""),
            file: digest::sha256(b""),
        };
        let attestation = Attestation {
            kind: IN_TOTO,
            annotations: [("a", "1"), ("b", "2"), ("c", "3")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            content: b"{\"x\":1}".to_vec(),
        };
        let digests = [0, 1].map(|_| {
            let folder = tempfile::tempdir().unwrap();
            let digest = attestation
                .write_layout(folder.path(), &image, jiff::Timestamp::UNIX_EPOCH)
                .unwrap();
            let bytes = fs::read(folder.path().join(archive::blob_path(&digest))).unwrap();
            assert_eq!(digest::sha256(&bytes), digest);
            let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(manifest["subject"]["digest"], image.digest.as_str());
            assert_eq!(manifest["subject"]["size"], 5);
            assert_eq!(manifest["artifactType"], IN_TOTO);
            assert_eq!(
                manifest["config"]["mediaType"],
                "application/vnd.oci.empty.v1+json"
            );
            assert_eq!(
                manifest["layers"][0]["digest"],
                digest::sha256(b"{\"x\":1}").as_str()
            );
            digest
        });
        assert_eq!(digests[0], digests[1]);
        assert_eq!(fallback_tag("sha256:ab"), "sha256-ab");
    }
}
