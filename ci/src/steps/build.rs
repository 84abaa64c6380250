//! Compiles the service and writes its image as a deterministic OCI archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use dagger_sdk::File as EngineFile;
use generativity::{Guard, Id};
use tracing::{Instrument as _, info_span};
use walkdir::WalkDir;

use super::services::Services;
use super::workspace::{self, Hint, MESSAGES, Program, Work};
use super::{auditable, base};
use crate::engine::graphql::EngineError;
use crate::image::archive::{self, ArchiveInfo, Compression, ImageConfig, Platform};
use crate::image::attestations::{self, Attestation};
use crate::image::labels::{COMPILER, LINKER, REVISION};
use crate::image::provenance::{self, Parameters, ResourceDescriptor};
use crate::model::rust;
use crate::run::execution::StepContext;
use crate::settings::Settings;
use crate::settings::tables::{Libc, Service, User};
use crate::source::checkout::{Checkout, State};
use crate::source::snapshot::is_executable;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::digest;
use common::failure::{Failure, OrFail};
use common::file_tree;
use common::pins;

/// The path of cargo-auditable in the container.
const AUDITABLE: &str = "/usr/local/bin/cargo-auditable";

/// The image that a run has built: an archive on the disk and its metadata.
#[derive(Debug)]
pub struct Image<'run, 'img, K> {
    _run: Id<'run>,
    id: Id<'img>,
    archive: PathBuf,
    info: ArchiveInfo,
    commit: String,
    state: State,
    provenance: Attestation,
    _kind: PhantomData<K>,
}

impl<'img, K: Kind> Image<'_, 'img, K> {
    pub(crate) fn id(&self) -> Id<'img> {
        self.id
    }

    /// The digests of the archive, the manifest and the configuration.
    #[must_use]
    pub fn info(&self) -> &ArchiveInfo {
        &self.info
    }

    /// The state of the sources that the image was built from.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The full SHA of the commit that the image was built from.
    #[must_use]
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// The provenance attestation.
    #[must_use]
    pub fn provenance(&self) -> &Attestation {
        &self.provenance
    }

    /// The path of the archive.
    #[must_use]
    pub fn archive(&self) -> &Path {
        &self.archive
    }

    /// Uploads the archive to the engine, and verifies that the engine has the bytes that were built.
    ///
    /// # Errors
    /// When the file has changed since the build (exit code 1), or cannot be uploaded (exit code 3).
    pub async fn upload(&self, step: &StepContext<'_, K>) -> Result<EngineFile, Failure> {
        self.uploaded(step, async |file| Ok(file)).await
    }

    /// Runs `work` on the archive in the engine. Meanwhile, this verifies that the engine has the bytes that were built.
    ///
    /// # Errors
    /// Those of `work`; before them, when the file has changed since the build (exit code 1), or cannot be uploaded (exit code 3).
    pub async fn uploaded<T>(
        &self,
        step: &StepContext<'_, K>,
        work: impl AsyncFnOnce(EngineFile) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let archive = self.archive.clone();
        // The engine uploads a file once in a session, so it would not notice a later change.
        let digest = tokio::task::spawn_blocking(move || digest::sha256_of_file(&archive))
            .await
            .or_environment("computing the archive's digest was cancelled")?
            .or_environment(format!("cannot read {}", self.archive.display()))?;
        self.require_digest(&digest)?;
        let file = step
            .client()
            .host()
            .file(self.archive.display().to_string());
        // Boxed, because the compiler limits how deep futures can be nested.
        let work = Box::pin(work(file.clone()));
        let (done, verified) = tokio::join!(work, self.verify(step, file));
        verified?;
        done
    }

    async fn verify(&self, step: &StepContext<'_, K>, file: EngineFile) -> Result<(), Failure> {
        // The engine's File.digest covers more than the content, even without the metadata.
        let sum = workspace::toolchain(step)
            .await?
            .with_mounted_file("/image.tar", file)
            // Into a file, to keep the digest out of the log.
            .with_exec(vec!["sh", "-c", "sha256sum /image.tar > /sum"])
            .file("/sum")
            .contents()
            .await
            .map_err(|error| {
                EngineError::from(error).into_environment("cannot upload the image to the engine")
            })?;
        let digest = format!("sha256:{}", sum.split(' ').next().unwrap_or_default());
        self.require_digest(&digest)
    }

    fn require_digest(&self, digest: &str) -> Result<(), Failure> {
        if digest == self.info.file {
            return Ok(());
        }
        Err(Failure::gate(format!(
            "{} was changed during the run: its digest is {digest}, but {} was built",
            self.archive.display(),
            self.info.file
        ))
        .hint("Run again, and do not write to the report directory during the run."))
    }
}

/// Compiles the service and writes its image to the report directory.
///
/// # Errors
/// When the code does not compile (exit code 1), or the base image cannot be pulled (exit code 3).
pub async fn run<'run, 'img, K: Kind>(
    step: &StepContext<'_, K>,
    (source, image): (&Source<'run>, Guard<'img>),
) -> Result<Image<'run, 'img, K>, Failure> {
    let settings = &step.run.settings;
    let started = jiff::Timestamp::now();
    let (out, base) = tokio::try_join!(compile(step, source), base::fetch(step))?;
    let text = |name: &str| {
        std::fs::read_to_string(out.path().join(name))
            .map(|text| text.trim().to_owned())
            .or_environment(format!("the build did not write its {name}"))
    };
    let checkout = source.checkout();
    let config = ImageConfig {
        entrypoint: vec![format!("/{}", settings.service.binary)],
        args: settings.image.args.clone(),
        env: environment(settings, base.as_ref(), checkout)?,
        user: Some(settings.image.user.to_string()),
        working_dir: Some("/".into()),
        labels: labels(
            settings,
            checkout,
            &text("pkgid")?,
            base.as_ref(),
            [text("rustc")?, text("linker")?],
        ),
        exposed_ports: vec![format!("{}/tcp", settings.service.port)],
        created: checkout.commit.time,
        platform: step.run.platforms.image.clone(),
    };
    let base_image = base
        .as_ref()
        .map(|base| ResourceDescriptor::image(provenance::BASE, &base.name, &base.image.digest));
    let archive = settings.report_dir.join("image.tar");
    let layer = Layer {
        binary: out.path().join("binary"),
        name: settings.service.binary.clone(),
        sources: source.snapshot().path().join(&settings.folder),
        files: settings.image.files.clone(),
        writable: settings.image.writable.clone(),
        owner: settings.image.user,
        from_scratch: base.is_none(),
    };
    let info = tokio::task::spawn_blocking({
        let archive = archive.clone();
        move || {
            let base = base.as_ref().map(|base| &base.image);
            archive::write_archive(&archive, base, &config, Compression::Gzip, |tar| {
                layer.fill(tar)
            })
        }
    })
    .instrument(info_span!("write the image"))
    .await
    .or_environment("writing the image was cancelled")?
    .or_environment(format!("cannot write {}", archive.display()))?;
    let provenance = write_provenance(step, source, &info, base_image, started)
        .instrument(info_span!("write the provenance"))
        .await?;
    step.set_digest(&info.digest);
    Ok(Image {
        _run: source.run(),
        id: image.into(),
        archive,
        info,
        commit: checkout.commit.sha.clone(),
        state: checkout.state.clone(),
        provenance,
        _kind: PhantomData,
    })
}

/// Writes the provenance attestation to the report directory.
async fn write_provenance<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    image: &ArchiveInfo,
    base: Option<ResourceDescriptor>,
    started: jiff::Timestamp,
) -> Result<Attestation, Failure> {
    let settings = &step.run.settings;
    let checkout = source.checkout();
    let lockfile = source
        .snapshot()
        .path()
        .join(&settings.folder)
        .join("Cargo.lock");
    let (toolchain, digest) = step
        .run
        .toolbox
        .rust()
        .await?
        .resolve(step.client())
        .await?;
    let mut internal = BTreeMap::from([
        ("event".to_owned(), settings.event.to_string()),
        (rust::INTERNAL.to_owned(), step.run.rust.name.clone()),
    ]);
    let left_out = settings.narrowings();
    if !left_out.is_empty() {
        internal.insert(provenance::LEFT_OUT.to_owned(), left_out.join("; "));
    }
    let statement = provenance::Build {
        subject: (
            format!("{}/{}", settings.registry, settings.repository),
            &image.digest,
        ),
        checkout,
        parameters: Parameters {
            source: settings.source.clone(),
            revision: checkout.commit.sha.clone(),
            clean: checkout.is_clean(),
            package: settings.service.package.clone(),
            binary: settings.service.binary.clone(),
            platform: step.run.platforms.image.to_string(),
        },
        images: [ResourceDescriptor::image(
            provenance::TOOLCHAIN,
            &toolchain,
            &digest,
        )]
        .into_iter()
        .chain(base)
        .collect(),
        lockfile: &std::fs::read(&lockfile).or_environment("the sources have no Cargo.lock")?,
        internal,
        started,
    }
    .statement(|name| std::env::var(name).ok());
    let content = statement.to_json()?;
    let path = settings.report_dir.join(provenance::FILE);
    std::fs::write(&path, &content).or_environment(format!("cannot write {}", path.display()))?;
    Ok(Attestation {
        kind: attestations::IN_TOTO,
        annotations: [(
            "in-toto.io/predicate-type".to_owned(),
            provenance::PREDICATE.to_owned(),
        )]
        .into(),
        content,
    })
}

/// cargo-auditable, for the container in which the service is compiled.
pub(super) async fn auditable<K: Kind>(step: &StepContext<'_, K>) -> Result<Program, Failure> {
    let file = auditable::program(step, step.run.foreign_platform());
    Ok(Program {
        path: AUDITABLE,
        version: pins::CARGO_AUDITABLE,
        file: step.waiting("cargo-auditable", file).await?,
    })
}

/// The environment in which the service is compiled.
///
/// # Errors
/// When the repository's own settings contradict it (exit code 2).
pub(crate) fn env(
    settings: &Settings,
    platform: &Platform,
) -> Result<BTreeMap<String, String>, Failure> {
    let target = platform.target();
    settings.cargo_config.require_target(target)?;
    let mut env = settings.cargo.env.clone();
    if settings.image.libc == Libc::Static {
        let flags = "-C target-feature=+crt-static".to_owned();
        env.insert(settings.cargo_config.variable_for_static(target)?, flags);
    }
    Ok(env)
}

/// Compiles the service. The directory that is returned has the binary, and the versions of the service and its tools.
async fn compile<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
) -> Result<tempfile::TempDir, Failure> {
    let settings = &step.run.settings;
    let Service {
        package, binary, ..
    } = &settings.service;
    let target = step.run.platforms.image.target();
    let auditable = auditable(step).await?;
    let services = Services::of(step).await?;
    let features = settings.cargo.service_features.arguments();
    // Nothing here needs quoting: Cargo allows only letters, digits, `-` and `_` in names.
    let script = format!(
        "using {AUDITABLE} auditable build --release --locked --package {package} --bin {binary}{features} --target {target} {MESSAGES}
mkdir -p /out
cp /work/target/{target}/release/{binary} /out/binary
rustc --version > /out/rustc
ld --version | head -n 1 > /out/linker
cargo pkgid --locked --package {package} > /out/pkgid"
    );
    let work = Work {
        script: &script,
        env: env(settings, &step.run.platforms.image)?,
        services: Some(&services),
        program: Some(auditable),
        writes_out: true,
        failed: "the service does not compile",
        hint: Hint::Reproduce(&format!(
            "`cargo build --release --locked --package {package}{features}`"
        )),
    };
    workspace::run(step, source, work).await
}

/// The image's environment, in ascending order of precedence: base image, settings, `ci`'s own variables.
fn environment(
    settings: &Settings,
    base: Option<&base::Fetched>,
    checkout: &Checkout,
) -> Result<Vec<(String, String)>, Failure> {
    let ours = [
        ("PORT".to_owned(), settings.service.port.to_string()),
        ("APP_COMMIT".to_owned(), checkout.commit.sha.clone()),
        (
            "APP_BUILD_TIME".to_owned(),
            jiff::Timestamp::from_second(checkout.commit.time)
                .or_environment("invalid commit time")?
                .to_string(),
        ),
    ];
    let ours: Vec<_> = settings.image.env.clone().into_iter().chain(ours).collect();
    let mut env = base.map_or_else(Vec::new, |base| base.image.env());
    env.retain(|(name, _)| ours.iter().all(|(own, _)| own != name));
    env.extend(ours);
    Ok(env)
}

/// The layer on top of the base image. Its files have no time, so that commits with the same files share the layer.
struct Layer {
    binary: PathBuf,
    name: String,
    sources: PathBuf,
    files: BTreeMap<PathBuf, PathBuf>,
    writable: BTreeSet<PathBuf>,
    /// The owner of the directories that the service can write to.
    owner: User,
    from_scratch: bool,
}

impl Layer {
    fn fill(&self, tar: &mut tar::Builder<&mut dyn Write>) -> std::io::Result<()> {
        let content = File::open(&self.binary)?;
        let mut header = file_tree::header(content.metadata()?.len(), 0o755);
        tar.append_data(&mut header, &self.name, content)?;
        // An image from scratch needs entries for directories. With a base image they would change the mode of its own.
        let mut folders = BTreeSet::new();
        let all = self.files.values().chain(&self.writable);
        for to in all.filter(|_| self.from_scratch) {
            folders.extend(
                to.ancestors()
                    .skip(1)
                    .filter(|it| !it.as_os_str().is_empty()),
            );
        }
        for path in folders {
            if !self.writable.contains(path) {
                folder(tar, path)?;
            }
        }
        for path in &self.writable {
            writable_folder(tar, path, self.owner)?;
        }
        for (from, to) in &self.files {
            let from = self.sources.join(from);
            for entry in WalkDir::new(&from).sort_by_file_name() {
                let entry = entry?;
                let below = entry.path().strip_prefix(&from);
                let below = below.map_err(std::io::Error::other)?;
                // Joining an empty path would add a trailing slash.
                let path = if below.as_os_str().is_empty() {
                    to.clone()
                } else {
                    to.join(below)
                };
                append(tar, &entry, &path)?;
            }
        }
        Ok(())
    }
}

fn append(
    tar: &mut tar::Builder<&mut dyn Write>,
    entry: &walkdir::DirEntry,
    path: &Path,
) -> std::io::Result<()> {
    let kind = entry.file_type();
    if kind.is_dir() {
        return folder(tar, path);
    }
    if kind.is_symlink() {
        let mut header = file_tree::header(0, 0o777);
        header.set_entry_type(tar::EntryType::Symlink);
        return tar.append_link(&mut header, path, std::fs::read_link(entry.path())?);
    }
    let content = File::open(entry.path())?;
    let data = content.metadata()?;
    // Git records no other permissions.
    let mode = if is_executable(&data) { 0o755 } else { 0o644 };
    let mut header = file_tree::header(data.len(), mode);
    tar.append_data(&mut header, path, content)
}

fn folder(tar: &mut tar::Builder<&mut dyn Write>, path: &Path) -> std::io::Result<()> {
    let mut header = file_tree::header(0, 0o755);
    header.set_entry_type(tar::EntryType::Directory);
    tar.append_data(&mut header, path, std::io::empty())
}

/// A directory that its owner can write to, or everybody if it is for temporary files.
fn writable_folder(
    tar: &mut tar::Builder<&mut dyn Write>,
    path: &Path,
    owner: User,
) -> std::io::Result<()> {
    let is_temporary = path == Path::new("tmp") || path == Path::new("var/tmp");
    let (mode, uid, gid) = if is_temporary {
        (0o1777, 0, 0)
    } else {
        (0o755, owner.uid, owner.gid)
    };
    let mut header = file_tree::header(0, mode);
    header.set_entry_type(tar::EntryType::Directory);
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    tar.append_data(&mut header, path, std::io::empty())
}

/// The image's labels: those that the [OCI image specification] defines, and two of `ci` for the compiler and the linker.
///
/// [OCI image specification]: https://github.com/opencontainers/image-spec/blob/main/annotations.md
fn labels(
    settings: &Settings,
    checkout: &Checkout,
    pkgid: &str,
    base: Option<&base::Fetched>,
    [rustc, linker]: [String; 2],
) -> BTreeMap<String, String> {
    let version = pkgid.rsplit(['#', '@']).next().unwrap_or(pkgid);
    let oci = |key: &str| format!("org.opencontainers.image.{key}");
    let mut labels = BTreeMap::from([
        (oci("title"), settings.service.binary.clone()),
        (REVISION.to_owned(), checkout.commit.sha.clone()),
        (oci("version"), version.to_owned()),
        (COMPILER.to_owned(), rustc),
        (LINKER.to_owned(), linker),
    ]);
    labels.extend(settings.source.clone().map(|url| (oci("source"), url)));
    if let Some(base) = base {
        labels.insert(oci("base.name"), base.name.clone());
        labels.insert(oci("base.digest"), base.image.digest.clone());
    }
    labels
}
