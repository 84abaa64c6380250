//! Reproducible OCI archives: the same content results in the same bytes.
//!
//! An archive is a tar file of an [OCI image layout] with one image. It also contains a `manifest.json`, so that `docker load`
//! and Trivy can read the file whose blobs are pushed to the registry.
//!
//! Crates that write OCI layouts set times or choose the order of entries. Here both must follow from the commit alone, so `tar` and
//! `oci-spec` are used directly.
//!
//! [OCI image layout]: https://github.com/opencontainers/image-spec/blob/main/image-layout.md

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compression as Level, GzBuilder};
use oci_spec::image::{
    ConfigBuilder, Descriptor, DescriptorBuilder, HistoryBuilder, ImageConfiguration,
    ImageConfigurationBuilder, ImageIndex, ImageIndexBuilder, ImageManifest, ImageManifestBuilder,
    MediaType, RootFsBuilder, Sha256Digest,
};
use sha2::{Digest as _, Sha256};

use common::digest::sha256;
use common::failure::Failure;
use common::file_tree::header;

/// The platform of an image, as the OCI image specification spells it (`linux/amd64`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// The operating system: always `linux`.
    pub os: String,
    /// The architecture as Go names it: `amd64` or `arm64`.
    pub architecture: String,
}

impl Platform {
    /// Returns the platform of the containers on this machine.
    #[must_use]
    pub fn here() -> Self {
        Self {
            os: "linux".into(),
            architecture: match std::env::consts::ARCH {
                "aarch64" => "arm64",
                _ => "amd64",
            }
            .into(),
        }
    }

    /// Returns the default platform of published images: `linux/amd64`.
    #[must_use]
    pub fn default_published() -> Self {
        Self {
            os: "linux".into(),
            architecture: "amd64".into(),
        }
    }

    /// Returns the target triple of the compiler.
    #[must_use]
    pub fn target(&self) -> &'static str {
        match self.architecture.as_str() {
            "arm64" => "aarch64-unknown-linux-gnu",
            _ => "x86_64-unknown-linux-gnu",
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl std::str::FromStr for Platform {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        // The engine appends the variant of arm64, which is always v8.
        match text.split('/').collect::<Vec<_>>()[..] {
            ["linux", architecture @ ("amd64" | "arm64")]
            | ["linux", architecture @ "arm64", "v8"] => Ok(Self {
                os: "linux".into(),
                architecture: architecture.into(),
            }),
            _ => Err(Failure::usage(format!("unsupported platform `{text}`"))
                .hint("Use linux/amd64 or linux/arm64.")),
        }
    }
}

/// The configuration of an image, apart from its layers.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// The program.
    pub entrypoint: Vec<String>,
    /// The default arguments, which can be replaced when a container starts.
    pub args: Vec<String>,
    /// The environment variables, in order.
    pub env: Vec<(String, String)>,
    /// `uid:gid`, numeric.
    pub user: Option<String>,
    /// The absolute path of the working directory.
    pub working_dir: Option<String>,
    /// The labels, by name.
    pub labels: BTreeMap<String, String>,
    /// The exposed ports, as in `8000/tcp`.
    pub exposed_ports: Vec<String>,
    /// The commit time in seconds since the epoch, so that the image is reproducible.
    pub created: i64,
    /// The platform of the binaries in the image.
    pub platform: Platform,
}

/// The compression of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// No compression: fast, for archives that stay on this machine.
    None,
    /// gzip, without file name or time in the header.
    Gzip,
    /// Zstandard at a fast level, for large archives that stay on this machine.
    Zstd,
}

/// The digests of the parts of an archive, each as in `sha256:2cf2…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveInfo {
    /// The digest of the image, which is the digest of its manifest.
    pub digest: String,
    /// The size of the manifest, in bytes.
    pub size: u64,
    /// The digest of the image configuration, which Trivy reports as `ImageID`.
    pub config: String,
    /// The digest of the stored, possibly compressed layer.
    pub layer: String,
    /// The digest of the uncompressed layer.
    pub diff_id: String,
    /// The digest of the archive file itself.
    pub file: String,
}

/// A base image, read from its OCI layout.
#[derive(Clone, Debug)]
pub struct Base {
    /// The digest of the manifest.
    pub digest: String,
    layout: PathBuf,
    layers: Vec<Descriptor>,
    config: ImageConfiguration,
}

impl Base {
    /// Reads the layout of one image with OCI or Docker media types.
    ///
    /// # Errors
    /// When the layout is invalid, has several images, or a blob does not match its digest.
    pub fn read(layout: &Path) -> io::Result<Self> {
        let blob = |digest: &str| {
            let content = std::fs::read(layout.join(blob_path(digest)))?;
            if sha256(&content) == digest {
                Ok(content)
            } else {
                Err(io::Error::other(format!(
                    "digest mismatch of blob {digest}"
                )))
            }
        };
        let index: ImageIndex = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)
            .map_err(io::Error::other)?;
        let [image] = index.manifests().as_slice() else {
            return Err(io::Error::other(format!(
                "the layout contains {} images instead of one",
                index.manifests().len()
            )));
        };
        let digest = image.digest().to_string();
        let manifest: ImageManifest =
            serde_json::from_slice(&blob(&digest)?).map_err(io::Error::other)?;
        let config: ImageConfiguration =
            serde_json::from_slice(&blob(manifest.config().digest().as_ref())?)
                .map_err(io::Error::other)?;
        let layers = manifest
            .layers()
            .iter()
            .map(|layer| {
                let mut layer = layer.clone();
                // Convert Docker media types to the equivalent OCI media types.
                let kind = match layer.media_type().to_string().as_str() {
                    "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                        MediaType::ImageLayerGzip
                    }
                    "application/vnd.docker.image.rootfs.diff.tar" => MediaType::ImageLayer,
                    _ => layer.media_type().clone(),
                };
                match kind {
                    MediaType::ImageLayer
                    | MediaType::ImageLayerGzip
                    | MediaType::ImageLayerZstd => {
                        layer.set_media_type(kind);
                        Ok(layer)
                    }
                    other => Err(io::Error::other(format!(
                        "unsupported layer media type {other}"
                    ))),
                }
            })
            .collect::<io::Result<Vec<_>>>()?;
        if layers.len() != config.rootfs().diff_ids().len() {
            return Err(io::Error::other(
                "the configuration does not match the layers of the manifest",
            ));
        }
        Ok(Self {
            digest,
            layout: layout.to_owned(),
            layers,
            config,
        })
    }

    /// Returns the environment variables of the image, in order.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let env = self
            .config
            .config()
            .as_ref()
            .and_then(|it| it.env().as_ref());
        env.into_iter()
            .flatten()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// Copies each distinct layer and verifies its digest.
    fn append_layers<W: Write>(&self, tar: &mut tar::Builder<W>) -> io::Result<()> {
        let mut written = Vec::new();
        for layer in &self.layers {
            let digest = layer.digest().to_string();
            if written.contains(&digest) {
                continue;
            }
            let path = blob_path(&digest);
            let file = File::open(self.layout.join(&path))?;
            let mut header = header(file.metadata()?.len(), 0o644);
            let mut hashing = HashingReader {
                inner: BufReader::new(file),
                hasher: Sha256::new(),
            };
            tar.append_data(&mut header, &path, &mut hashing)?;
            if format!("sha256:{}", hex::encode(hashing.hasher.finalize())) != digest {
                return Err(io::Error::other(format!(
                    "digest mismatch of layer {digest} of the base image"
                )));
            }
            written.push(digest);
        }
        Ok(())
    }

    /// Returns whether the image is for this platform.
    #[must_use]
    pub fn is_for(&self, platform: &Platform) -> bool {
        self.config.os().to_string() == platform.os
            && self.config.architecture().to_string() == platform.architecture
    }
}

/// Writes an image archive to `dest`, with the layers of `base` and a new layer whose entries `fill` appends. If `dest` is an earlier
/// archive whose last layer has the same content, its compressed bytes are used again.
///
/// # Errors
/// When a file cannot be read or written, or `config` is invalid.
pub fn write_archive(
    dest: &Path,
    base: Option<&Base>,
    config: &ImageConfig,
    compression: Compression,
    fill: impl FnOnce(&mut tar::Builder<&mut dyn Write>) -> io::Result<()>,
) -> io::Result<ArchiveInfo> {
    let directory = dest.parent().unwrap_or(Path::new("."));
    let mut layer = write_layer(directory, dest, compression, fill)?;

    let configuration = to_json(&configuration(config, base, &layer.diff_id)?)?;
    let config_digest = sha256(&configuration);
    let layer_type = match compression {
        Compression::None => MediaType::ImageLayer,
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::Zstd => MediaType::ImageLayerZstd,
    };
    let mut layers = base.map_or_else(Vec::new, |base| base.layers.clone());
    layers.push(descriptor(layer_type, &layer.digest, layer.size)?);
    let paths: Vec<_> = layers
        .iter()
        .map(|layer| blob_path(layer.digest().as_ref()))
        .collect();
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(
            MediaType::ImageConfig,
            &config_digest,
            configuration.len() as u64,
        )?)
        .layers(layers)
        .build()
        .map_err(io::Error::other)?;
    let manifest = to_json(&manifest)?;
    let manifest_digest = sha256(&manifest);
    let mut image = descriptor(
        MediaType::ImageManifest,
        &manifest_digest,
        manifest.len() as u64,
    )?;
    image.set_platform(Some(
        oci_spec::image::PlatformBuilder::default()
            .os(config.platform.os.as_str())
            .architecture(config.platform.architecture.as_str())
            .build()
            .map_err(io::Error::other)?,
    ));
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![image])
        .build()
        .map_err(io::Error::other)?;
    let docker = serde_json::json!([{
        "Config": blob_path(&config_digest),
        "RepoTags": null,
        "Layers": paths,
    }]);

    let temporary = tempfile::NamedTempFile::new_in(directory)?;
    let mut hashing = HashingWriter::new(BufWriter::new(temporary));
    {
        let mut tar = tar::Builder::new(&mut hashing);
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, "index.json", &to_json(&index)?)?;
        append(&mut tar, "manifest.json", &to_json(&docker)?)?;
        append(&mut tar, &blob_path(&config_digest), &configuration)?;
        append(&mut tar, &blob_path(&manifest_digest), &manifest)?;
        if let Some(base) = base {
            base.append_layers(&mut tar)?;
        }
        layer.file.rewind()?;
        let mut header = header(layer.size, 0o644);
        tar.append_data(
            &mut header,
            blob_path(&layer.digest),
            BufReader::new(&mut layer.file),
        )?;
        tar.finish()?;
    }
    let (writer, file) = hashing.finish();
    let temporary = writer
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        temporary
            .as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    temporary.persist(dest)?;
    Ok(ArchiveInfo {
        digest: manifest_digest,
        size: manifest.len() as u64,
        config: config_digest,
        layer: layer.digest,
        diff_id: layer.diff_id,
        file,
    })
}

/// Returns the image digest from the `index.json` of the archive at `path`.
///
/// # Errors
/// When the file is not an OCI archive with exactly one image.
pub fn read_digest(path: &Path) -> io::Result<String> {
    let index: ImageIndex =
        serde_json::from_slice(&read_entry(path, "index.json")?).map_err(io::Error::other)?;
    match index.manifests().as_slice() {
        [image] => Ok(image.digest().to_string()),
        images => Err(io::Error::other(format!(
            "the archive contains {} images instead of one",
            images.len()
        ))),
    }
}

/// Returns the digest of the image configuration in the archive at `path`, which Docker uses as the image id.
///
/// # Errors
/// When the file is not an OCI archive with exactly one image.
pub fn read_config_digest(path: &Path) -> io::Result<String> {
    let manifest = read_entry(path, &blob_path(&read_digest(path)?))?;
    let manifest: ImageManifest = serde_json::from_slice(&manifest).map_err(io::Error::other)?;
    Ok(manifest.config().digest().to_string())
}

/// Returns the content of one entry of the archive at `path`.
///
/// # Errors
/// When the file cannot be read or has no such entry.
pub fn read_entry(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    copy_entry(path, name, &mut content)?;
    Ok(content)
}

fn copy_entry(path: &Path, name: &str, to: &mut impl Write) -> io::Result<()> {
    let mut archive = tar::Archive::new(BufReader::new(File::open(path)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_ref() == Path::new(name) {
            io::copy(&mut entry, to)?;
            return Ok(());
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("the archive has no entry {name}"),
    ))
}

/// Returns the path of the blob with `digest` in an OCI layout.
#[must_use]
pub fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

struct Layer {
    file: File,
    size: u64,
    digest: String,
    diff_id: String,
}

/// Writes a layer to a temporary file in `directory`. `earlier` may be an archive with the same layer.
fn write_layer(
    directory: &Path,
    earlier: &Path,
    compression: Compression,
    fill: impl FnOnce(&mut tar::Builder<&mut dyn Write>) -> io::Result<()>,
) -> io::Result<Layer> {
    let stored = HashingWriter::new(BufWriter::new(tempfile::tempfile_in(directory)?));
    let (stored, diff_id) = match compression {
        Compression::None => {
            let mut plain = stored;
            fill_tar(&mut plain, fill)?;
            let diff_id = plain.digest();
            (plain, diff_id)
        }
        Compression::Gzip => return write_gzip_layer(directory, earlier, fill),
        Compression::Zstd => {
            let mut plain = HashingWriter::new(zstd::Encoder::new(stored, 3)?);
            fill_tar(&mut plain, fill)?;
            let (zstd, diff_id) = plain.finish();
            (zstd.finish()?, diff_id)
        }
    };
    Layer::new(stored, diff_id)
}

impl Layer {
    fn new(stored: HashingWriter<BufWriter<File>>, diff_id: String) -> io::Result<Self> {
        let (writer, digest) = stored.finish();
        let mut file = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        let size = file.stream_position()?;
        Ok(Self {
            file,
            size,
            digest,
            diff_id,
        })
    }
}

/// A gzip stream whose header is reproducible: it has no time, and the operating system is always 255 ("unknown").
fn gzip<W: Write>(writer: W) -> GzEncoder<W> {
    // The best level takes twice the time, and saves 0.5 % of a binary.
    GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(writer, Level::default())
}

/// How many bytes of an earlier layer are compressed again, to see that this results in the same bytes.
const SAMPLE: u64 = 512 * 1024;

/// A layer compressed with gzip. It is written without compression first, because compressing takes far longer than finding out
/// that the archive at `earlier` has the same layer.
fn write_gzip_layer(
    directory: &Path,
    earlier: &Path,
    fill: impl FnOnce(&mut tar::Builder<&mut dyn Write>) -> io::Result<()>,
) -> io::Result<Layer> {
    let mut plain = write_layer(directory, earlier, Compression::None, fill)?;
    match read_layer(directory, earlier, &plain.diff_id) {
        Ok(Some(layer)) => return Ok(layer),
        Ok(None) => {}
        Err(error) => tracing::debug!("cannot reuse {}: {error}", earlier.display()),
    }
    plain.file.rewind()?;
    let mut compressed = gzip(HashingWriter::new(BufWriter::new(tempfile::tempfile_in(
        directory,
    )?)));
    io::copy(&mut plain.file, &mut compressed)?;
    Layer::new(compressed.finish()?, plain.diff_id)
}

/// The last layer of the archive at `path`, if its content, uncompressed, has the digest `diff_id`.
fn read_layer(directory: &Path, path: &Path, diff_id: &str) -> io::Result<Option<Layer>> {
    if !path.is_file() {
        return Ok(None);
    }
    let manifest = read_entry(path, &blob_path(&read_digest(path)?))?;
    let manifest: ImageManifest = serde_json::from_slice(&manifest).map_err(io::Error::other)?;
    let config = read_entry(path, &blob_path(manifest.config().digest().as_ref()))?;
    let config: ImageConfiguration = serde_json::from_slice(&config).map_err(io::Error::other)?;
    let (Some(layer), Some(last)) = (manifest.layers().last(), config.rootfs().diff_ids().last())
    else {
        return Ok(None);
    };
    if last != diff_id || *layer.media_type() != MediaType::ImageLayerGzip {
        return Ok(None);
    }
    let mut stored = HashingWriter::new(BufWriter::new(tempfile::tempfile_in(directory)?));
    copy_entry(path, &blob_path(layer.digest().as_ref()), &mut stored)?;
    let mut found = Layer::new(stored, diff_id.to_owned())?;
    found.file.rewind()?;
    // Only the content counts, not what the earlier archive says of it.
    let mut plain = GzDecoder::new(BufReader::new(&mut found.file));
    let mut content = HashingWriter::new(io::sink());
    let mut start = Vec::new();
    plain.by_ref().take(SAMPLE).read_to_end(&mut start)?;
    content.write_all(&start)?;
    io::copy(&mut plain, &mut content)?;
    if content.digest() != diff_id {
        return Ok(None);
    }
    // Another version may have compressed it to other bytes, and the image must not depend on what is left on a machine.
    let mut again = gzip(Vec::new());
    again.write_all(&start)?;
    let expected = again.get_ref();
    let mut bytes = vec![0; expected.len()];
    found.file.rewind()?;
    found.file.read_exact(&mut bytes)?;
    Ok((start.len() as u64 == SAMPLE && bytes == *expected).then_some(found))
}

fn fill_tar(
    writer: &mut dyn Write,
    fill: impl FnOnce(&mut tar::Builder<&mut dyn Write>) -> io::Result<()>,
) -> io::Result<()> {
    let mut tar = tar::Builder::new(writer);
    fill(&mut tar)?;
    tar.finish()?;
    tar.get_mut().flush()
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, content: &[u8]) -> io::Result<()> {
    let mut header = header(content.len() as u64, 0o644);
    tar.append_data(&mut header, path, content)
}

fn configuration(
    config: &ImageConfig,
    base: Option<&Base>,
    diff_id: &str,
) -> io::Result<ImageConfiguration> {
    let base_config = base.map(|base| &base.config);
    let mut diff_ids = base_config.map_or_else(Vec::new, |it| it.rootfs().diff_ids().clone());
    diff_ids.push(diff_id.to_owned());
    let mut history = base_config
        .and_then(|it| it.history().clone())
        .unwrap_or_default();
    let created = jiff::Timestamp::from_second(config.created)
        .map_err(io::Error::other)?
        .to_string();
    let mut process = ConfigBuilder::default()
        .entrypoint(config.entrypoint.clone())
        .env(
            config
                .env
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>(),
        )
        .exposed_ports(config.exposed_ports.clone());
    if !config.args.is_empty() {
        process = process.cmd(config.args.clone());
    }
    if let Some(user) = &config.user {
        process = process.user(user.clone());
    }
    if let Some(directory) = &config.working_dir {
        process = process.working_dir(directory.clone());
    }
    let mut process = process.build().map_err(io::Error::other)?;
    // oci-spec keeps labels in a HashMap, which has no stable order; `to_json` sorts the keys.
    process.set_labels(Some(config.labels.clone().into_iter().collect()));
    history.push(
        HistoryBuilder::default()
            .created(created.clone())
            .created_by("ci build")
            .build()
            .map_err(io::Error::other)?,
    );
    ImageConfigurationBuilder::default()
        .created(created)
        .architecture(config.platform.architecture.as_str())
        .os(config.platform.os.as_str())
        .config(process)
        .rootfs(
            RootFsBuilder::default()
                .typ("layers")
                .diff_ids(diff_ids)
                .build()
                .map_err(io::Error::other)?,
        )
        .history(history)
        .build()
        .map_err(io::Error::other)
}

pub(crate) fn descriptor(media_type: MediaType, digest: &str, size: u64) -> io::Result<Descriptor> {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    DescriptorBuilder::default()
        .media_type(media_type)
        .digest(hex.parse::<Sha256Digest>().map_err(io::Error::other)?)
        .size(size)
        .build()
        .map_err(io::Error::other)
}

/// Serializes as JSON with sorted keys, so that the result is reproducible.
pub(crate) fn to_json(value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let value: serde_json::Value = serde_json::to_value(value).map_err(io::Error::other)?;
    serde_json::to_vec(&value).map_err(io::Error::other)
}

struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
}

impl<W> HashingWriter<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
        }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(self.hasher.clone().finalize()))
    }

    fn finish(self) -> (W, String) {
        let digest = self.digest();
        (self.inner, digest)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/api".into()],
            args: Vec::new(),
            env: vec![("PORT".into(), "8000".into())],
            user: Some("65532:65532".into()),
            working_dir: Some("/".into()),
            labels: (0..20)
                .map(|n| (format!("label.{n}"), n.to_string()))
                .collect(),
            exposed_ports: vec!["8000/tcp".into()],
            created: 1_700_000_000,
            platform: Platform {
                os: "linux".into(),
                architecture: "amd64".into(),
            },
        }
    }

    fn write(name: &str, compression: Compression) -> (tempfile::TempDir, ArchiveInfo) {
        let directory = tempfile::tempdir().unwrap();
        let info = write_archive(
            &directory.path().join(name),
            None,
            &config(),
            compression,
            |layer| {
                let mut entry = header(5, 0o755);
                layer.append_data(&mut entry, "api", &b"hello"[..])
            },
        )
        .unwrap();
        (directory, info)
    }

    #[test]
    fn same_content_results_in_the_same_bytes() {
        for compression in [Compression::None, Compression::Gzip] {
            let (_a, first) = write("a.tar", compression);
            let (_b, second) = write("b.tar", compression);
            assert_eq!(first, second);
        }
    }

    #[test]
    fn appends_a_layer_and_keeps_the_blobs_of_the_base_image() {
        let (directory, below) = write("base.tar", Compression::Gzip);
        let layout = directory.path().join("layout");
        let archive = File::open(directory.path().join("base.tar")).unwrap();
        tar::Archive::new(archive).unpack(&layout).unwrap();
        let base = Base::read(&layout).unwrap();
        assert_eq!(base.digest, below.digest);
        assert!(base.is_for(&Platform::default_published()));
        let dest = directory.path().join("image.tar");
        let fill = |layer: &mut tar::Builder<&mut dyn Write>| {
            layer.append_data(&mut header(3, 0o644), "extra", &b"abc"[..])
        };
        let info = write_archive(&dest, Some(&base), &config(), Compression::Gzip, fill).unwrap();
        let json = |digest: &str| -> serde_json::Value {
            serde_json::from_slice(&read_entry(&dest, &blob_path(digest)).unwrap()).unwrap()
        };
        let manifest = json(&info.digest);
        assert_eq!(manifest["layers"][0]["digest"], below.layer);
        assert_eq!(manifest["layers"][1]["digest"], info.layer);
        assert_eq!(
            sha256(&read_entry(&dest, &blob_path(&below.layer)).unwrap()),
            below.layer
        );
        let diff_ids = &json(&info.config)["rootfs"]["diff_ids"];
        assert_eq!(*diff_ids, serde_json::json!([below.diff_id, info.diff_id]));
        assert_eq!(json(&info.config)["history"].as_array().unwrap().len(), 2);

        std::fs::write(layout.join(blob_path(&below.layer)), "tampered").unwrap();
        let base = Base::read(&layout).unwrap();
        assert!(write_archive(&dest, Some(&base), &config(), Compression::Gzip, fill).is_err());
        std::fs::write(layout.join(blob_path(&below.config)), "{}").unwrap();
        assert!(Base::read(&layout).is_err());
    }

    /// Writes an archive with a large layer to `dest`; `text` is part of the content.
    fn write_large(dest: &Path, text: &str) -> ArchiveInfo {
        let numbers = (0_u64..300_000).map(|n| format!("{text}{}", n * 7919 % 104_729));
        let content = numbers.collect::<String>();
        write_archive(dest, None, &config(), Compression::Gzip, |layer| {
            let mut entry = header(content.len() as u64, 0o755);
            layer.append_data(&mut entry, "api", content.as_bytes())
        })
        .unwrap()
    }

    #[test]
    fn takes_a_layer_from_an_earlier_archive_only_if_the_bytes_would_be_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path();
        let archive = folder.join("image.tar");
        let info = write_large(&archive, "a");
        let found = |diff_id: &str| read_layer(folder, &archive, diff_id).unwrap();
        assert_eq!(found(&info.diff_id).unwrap().digest, info.layer);
        assert!(found("sha256:0").is_none(), "another layer");
        assert_eq!(write_large(&archive, "a"), info, "again");
        assert_ne!(write_large(&archive, "b").layer, info.layer);

        // The same archive, with a blob that was compressed or made by somebody else.
        let rewrite = |blob: Vec<u8>| {
            write_large(&archive, "a");
            let bytes = std::fs::read(&archive).unwrap();
            let mut tar = tar::Builder::new(File::create(&archive).unwrap());
            for entry in tar::Archive::new(&*bytes).entries().unwrap() {
                let mut entry = entry.unwrap();
                let name = entry.path().unwrap().display().to_string();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                let is_layer = name == blob_path(&info.layer);
                append(&mut tar, &name, if is_layer { &blob } else { &content }).unwrap();
            }
            tar.finish().unwrap();
        };
        let content = {
            let blob = read_entry(&archive, &blob_path(&write_large(&archive, "a").layer));
            let mut content = Vec::new();
            GzDecoder::new(&*blob.unwrap())
                .read_to_end(&mut content)
                .unwrap();
            content
        };
        let mut fast = GzEncoder::new(Vec::new(), Level::fast());
        fast.write_all(&content).unwrap();
        rewrite(fast.finish().unwrap());
        assert!(found(&info.diff_id).is_none(), "compressed differently");
        let mut other = gzip(Vec::new());
        other.write_all(&content[..content.len() - 1]).unwrap();
        rewrite(other.finish().unwrap());
        assert!(found(&info.diff_id).is_none(), "other content");
        std::fs::write(&archive, "not an archive").unwrap();
        assert_eq!(write_large(&archive, "a"), info);
    }

    #[test]
    fn every_blob_matches_its_digest() {
        let (directory, info) = write("a.tar", Compression::Gzip);
        let archive = directory.path().join("a.tar");
        for digest in [&info.digest, &info.config, &info.layer] {
            assert_eq!(
                &sha256(&read_entry(&archive, &blob_path(digest)).unwrap()),
                digest
            );
        }
        assert_eq!(read_digest(&archive).unwrap(), info.digest);
        assert_eq!(read_config_digest(&archive).unwrap(), info.config);
        assert_eq!(sha256(&std::fs::read(&archive).unwrap()), info.file);
        assert_ne!(info.layer, info.diff_id);
    }

    #[test]
    fn created_is_the_given_time() {
        let (directory, info) = write("a.tar", Compression::Gzip);
        let config = read_entry(&directory.path().join("a.tar"), &blob_path(&info.config)).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        assert_eq!(config["history"][0]["created"], "2023-11-14T22:13:20Z");
    }
}
