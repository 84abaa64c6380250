//! The static binary, and its image as one deterministic OCI archive.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use dagger_sdk::File;
use generativity::{Guard, Id};

use super::workspace;
use crate::engine::EngineError;
use crate::evidence::{Kind, Source};
use crate::failure::{Failure, OrFail};
use crate::oci::{self, ArchiveInfo, Compression, ImageConfig, Platform};
use crate::run::StepContext;
use crate::source::State;

/// The package, and the binary, that is shipped.
pub const PACKAGE: &str = "api";
/// The port that the service listens on.
pub const PORT: u16 = 8000;
/// nobody's in particular: no name for it exists in an image from scratch.
const USER: &str = "65532:65532";
/// The compiler's name of the platform that is published.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The image of one run: an archive on the disk, and what is known of it.
#[derive(Debug)]
pub struct Image<'run, 'img, K> {
    _run: Id<'run>,
    id: Id<'img>,
    archive: PathBuf,
    info: ArchiveInfo,
    state: State,
    _kind: PhantomData<K>,
}

impl<'img, K: Kind> Image<'_, 'img, K> {
    pub(crate) fn id(&self) -> Id<'img> {
        self.id
    }

    /// The digests.
    #[must_use]
    pub fn info(&self) -> &ArchiveInfo {
        &self.info
    }

    /// The state of the sources that it was built from.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The archive's file.
    #[must_use]
    pub fn archive(&self) -> &Path {
        &self.archive
    }

    /// The archive in the engine, proven to be the bytes that were built.
    ///
    /// # Errors
    /// When the file on the disk was changed since, or the engine cannot have it.
    pub async fn upload(&self, step: &StepContext<'_, K>) -> Result<File, Failure> {
        let file = step
            .client()
            .host()
            .file(self.archive.display().to_string());
        // File.digest is the engine's own, over more than the content.
        let sum = workspace::toolchain(step)
            .await?
            .with_mounted_file("/image.tar", file.clone())
            // Into a file: the log is for what matters to people.
            .with_exec(vec!["sh", "-c", "sha256sum /image.tar > /sum"])
            .file("/sum")
            .contents()
            .await
            .map_err(|error| {
                EngineError::from(error).into_environment("cannot take the image to the engine")
            })?;
        let digest = format!("sha256:{}", sum.split(' ').next().unwrap_or_default());
        if digest != self.info.file {
            return Err(Failure::gate(format!(
                "{} was changed during the run: it has the digest {digest}, and what was built has {}",
                self.archive.display(),
                self.info.file
            ))
            .hint("Run again, and let nothing else write there."));
        }
        Ok(file)
    }
}

/// Compiles the service and assembles its image in the report directory.
///
/// # Errors
/// When the code does not compile.
pub async fn run<'run, 'img, K: Kind>(
    step: &StepContext<'_, K>,
    (source, image): (&Source<'run>, Guard<'img>),
) -> Result<Image<'run, 'img, K>, Failure> {
    let container = workspace::with_sources(step, &workspace::auditable(step).await?, source)
        .with_env_variable("RUSTFLAGS", "-C target-feature=+crt-static");
    let script = format!(
        "/opt/tools/bin/cargo-auditable auditable build --release --locked --package {PACKAGE} --bin {PACKAGE} --target {TARGET}
mkdir -p /out
cp /work/target/{TARGET}/release/{PACKAGE} /out/binary
rustc --version > /out/rustc
ld --version | head -n 1 > /out/linker
cargo pkgid --locked --package {PACKAGE} > /out/pkgid"
    );
    let built = workspace::run(
        step,
        &container,
        &script,
        "the service does not build",
        &format!("Run `cargo build --release --locked --package {PACKAGE}` for the same errors on this machine."),
    )
    .await?;

    let out = tempfile::tempdir().or_environment("cannot make a folder for the binary")?;
    built
        .directory("/out")
        .export(out.path().display().to_string())
        .await
        .map_err(|error| EngineError::from(error).into_environment("cannot get the binary"))?;
    let text = |name: &str| {
        std::fs::read_to_string(out.path().join(name))
            .map(|text| text.trim().to_owned())
            .or_environment(format!("the build did not say its {name}"))
    };
    let pkgid = text("pkgid")?;
    let version = pkgid.rsplit(['#', '@']).next().unwrap_or(&pkgid);
    let checkout = source.checkout();
    let settings = &step.run.settings;
    let config = ImageConfig {
        entrypoint: vec![format!("/{PACKAGE}")],
        env: vec![
            ("PORT".into(), PORT.to_string()),
            ("APP_COMMIT".into(), checkout.commit.sha.clone()),
            (
                "APP_BUILD_TIME".into(),
                jiff::Timestamp::from_second(checkout.commit.time)
                    .or_environment("the commit has an impossible time")?
                    .to_string(),
            ),
        ],
        user: Some(USER.into()),
        working_dir: Some("/".into()),
        labels: labels(
            &checkout.commit.sha,
            version,
            &settings.source,
            &text("rustc")?,
            &text("linker")?,
        ),
        exposed_ports: vec![format!("{PORT}/tcp")],
        created: checkout.commit.time,
        platform: Platform {
            os: "linux".into(),
            architecture: "amd64".into(),
        },
    };
    let archive = settings.report_dir.join("image.tar");
    let binary = out.path().join("binary");
    let info = tokio::task::spawn_blocking({
        let archive = archive.clone();
        let time = u64::try_from(checkout.commit.time).unwrap_or_default();
        move || assemble(&archive, &config, &binary, time)
    })
    .await
    .or_environment("the assembly was cancelled")?
    .or_environment(format!("cannot write {}", archive.display()))?;
    step.saw(&info.digest);
    Ok(Image {
        _run: source.run(),
        id: image.into(),
        archive,
        info,
        state: checkout.state.clone(),
        _kind: PhantomData,
    })
}

fn assemble(
    archive: &Path,
    config: &ImageConfig,
    binary: &Path,
    time: u64,
) -> std::io::Result<ArchiveInfo> {
    let content = std::fs::File::open(binary)?;
    let mut header = oci::header(content.metadata()?.len(), 0o755);
    header.set_mtime(time);
    oci::write_archive(archive, config, Compression::Gzip, |layer| {
        layer.append_data(&mut header, PACKAGE, content)
    })
}

/// The identity that the image carries, by the keys that the [OCI image specification] defines and, for the tools that
/// made it, keys of our own.
///
/// [OCI image specification]: https://github.com/opencontainers/image-spec/blob/main/annotations.md
fn labels(
    sha: &str,
    version: &str,
    source: &str,
    rustc: &str,
    linker: &str,
) -> BTreeMap<String, String> {
    [
        ("org.opencontainers.image.title", PACKAGE),
        ("org.opencontainers.image.revision", sha),
        ("org.opencontainers.image.version", version),
        ("org.opencontainers.image.source", source),
        ("io.github.upwind1647.infrastructure-lab.compiler", rustc),
        ("io.github.upwind1647.infrastructure-lab.linker", linker),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}
