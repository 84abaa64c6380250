//! The images in which the steps run: the real ones, or stand-ins if no registry can be reached.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dagger_sdk::{Container, DaggerConn, QueryContainerOpts};
use tokio::sync::OnceCell;

use crate::engine::graphql::EngineError;
use crate::image::archive::Platform;
use crate::model::record::StandInNote;
use crate::model::step::Step;
use crate::standin::{self, AdvisoryDb, StandIn, StandIns};
use crate::trust::kind::{self, Genuine, Kind};
use common::failure::Failure;
use common::pins;
use common::progress::Progress;

/// The source of a tool's image.
#[derive(Clone, Debug)]
pub enum ToolImage {
    /// An image in a registry.
    Registry(&'static str),
    /// An image that this machine has built.
    StandIn(StandIn),
}

impl ToolImage {
    /// Creates a container, for the engine's platform or another one.
    ///
    /// # Errors
    /// When the image is a stand-in and `platform` is set: stand-ins exist for this machine's platform only (exit code 3).
    pub fn container(
        &self,
        client: &DaggerConn,
        platform: Option<&Platform>,
    ) -> Result<Container, Failure> {
        match (self, platform) {
            (Self::Registry(reference), platform) => {
                Ok(container(client, platform).from(*reference))
            }
            (Self::StandIn(stand_in), None) => Ok(stand_in.container(client)),
            (Self::StandIn(_), Some(platform)) => Err(Failure::environment(format!(
                "the base images cannot be reached, and this machine's stand-ins do not support {platform}"
            ))
            .hint("Build for the engine's own platform, or let the engine reach docker.io.")),
        }
    }

    /// Resolves the image to its name and digest.
    ///
    /// # Errors
    /// When the registry does not return the digest (exit code 3).
    pub async fn resolve(&self, client: &DaggerConn) -> Result<(String, String), Failure> {
        match self {
            Self::StandIn(stand_in) => Ok(("stand-in".to_owned(), stand_in.digest.clone())),
            Self::Registry(reference) => {
                let resolved = client.container().from(*reference).image_ref().await;
                let resolved = resolved.map_err(|error| {
                    EngineError::from(error).into_environment(&format!("cannot pull {reference}"))
                })?;
                let (_, digest) = resolved.split_once('@').ok_or_else(|| {
                    Failure::environment(format!("the engine returned no digest for {reference}"))
                })?;
                Ok(((*reference).to_owned(), digest.to_owned()))
            }
        }
    }

    /// The path of the tool's program: `real` in the real image, `stand_in` in the stand-in.
    #[must_use]
    pub const fn program<'a>(&self, real: &'a str, stand_in: &'a str) -> &'a str {
        match self {
            Self::Registry(_) => real,
            Self::StandIn(_) => stand_in,
        }
    }
}

/// Creates an empty container, for the engine's platform or another one.
#[must_use]
pub(crate) fn container(client: &DaggerConn, platform: Option<&Platform>) -> Container {
    match platform {
        None => client.container(),
        Some(platform) => client.container_opts(QueryContainerOpts {
            platform: Some(platform.to_string().as_str().into()),
        }),
    }
}

/// The kind of this run's tool images, which each run decides anew.
pub(crate) enum AnyToolbox {
    /// All images are from their registries.
    Genuine(Toolbox<Genuine>),
    /// All images are stand-ins.
    StandIn(Toolbox<kind::StandIn>),
}

/// The images in which the steps run. Their kind `K` is also part of the type of all evidence that they produce.
pub struct Toolbox<K> {
    stand_ins: Option<Arc<StandIns>>,
    rust: OnceCell<ToolImage>,
    trivy: OnceCell<ToolImage>,
    crane: OnceCell<ToolImage>,
    advisories: OnceCell<Option<AdvisoryDb>>,
    others: Mutex<Vec<StandInNote>>,
    _kind: PhantomData<fn() -> K>,
}

/// Parts of the engine's errors for a registry that cannot be reached. They do not depend on the system's language.
const UNREACHABLE: [&str; 11] = [
    "no such host",
    "server misbehaving",
    "connection refused",
    "connection reset",
    "network is unreachable",
    "no route to host",
    "i/o timeout",
    "TLS handshake timeout",
    "context deadline exceeded",
    "Client.Timeout",
    "proxyconnect",
];

/// Whether an error of the engine means that a registry cannot be reached.
#[must_use]
pub(crate) fn is_unreachable(error: &str) -> bool {
    UNREACHABLE.iter().any(|part| error.contains(part))
}

/// Chooses the real images, or stand-ins if the engine, which may be on another machine, cannot reach the images that `steps`
/// need.
///
/// # Errors
/// When a registry answers but does not provide the image (exit code 3).
pub(crate) async fn choose(
    client: &DaggerConn,
    steps: &[Step],
    stand_ins: &Arc<StandIns>,
    progress: &dyn Progress,
) -> Result<AnyToolbox, Failure> {
    let mut needed = vec![pins::RUST_IMAGE];
    if steps.contains(&Step::Scan) {
        needed.push(pins::TRIVY_IMAGE);
    }
    if steps.contains(&Step::Publish) {
        needed.push(pins::CRANE_IMAGE);
    }
    for image in needed {
        if let Err(why) = check_reachable(client, image).await? {
            progress.notice(&format!("{why}: using stand-ins"));
            return Ok(AnyToolbox::StandIn(Toolbox::new(Some(Arc::clone(
                stand_ins,
            )))));
        }
    }
    Ok(AnyToolbox::Genuine(Toolbox::new(None)))
}

/// Checks whether the engine reaches the registry of `image`; the inner error is the reason why not.
async fn check_reachable(client: &DaggerConn, image: &str) -> Result<Result<(), String>, Failure> {
    let limit = Duration::from_secs(60);
    let container = client.container().from(image);
    Ok(
        match tokio::time::timeout(limit, container.image_ref()).await {
            Ok(Ok(_)) => Ok(()),
            Err(_) => Err(format!(
                "no answer for {image} within {} s",
                limit.as_secs()
            )),
            Ok(Err(error)) => match EngineError::from(error) {
                EngineError::Query(text) if is_unreachable(&text) => {
                    Err(format!("the engine cannot reach {image}"))
                }
                other => return Err(other.into_environment(&format!("cannot pull {image}"))),
            },
        },
    )
}

/// Whether this machine reaches the registry of the first image that a run needs. For use before an engine runs.
pub(crate) async fn is_reachable_from_here() -> bool {
    let host = match pins::RUST_IMAGE.split('/').next() {
        Some("docker.io") | None => "registry-1.docker.io",
        Some(host) => host,
    };
    let Ok(client) = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .build()
    else {
        return false;
    };
    client
        .get(format!("https://{host}/v2/"))
        .send()
        .await
        .is_ok()
}

impl<K: Kind> Toolbox<K> {
    fn new(stand_ins: Option<Arc<StandIns>>) -> Self {
        Self {
            stand_ins,
            rust: OnceCell::new(),
            trivy: OnceCell::new(),
            crane: OnceCell::new(),
            advisories: OnceCell::new(),
            others: Mutex::default(),
            _kind: PhantomData,
        }
    }

    /// The stand-ins, if this run uses them.
    #[must_use]
    pub fn stand_ins(&self) -> Option<&StandIns> {
        self.stand_ins.as_deref()
    }

    /// The Rust toolchain.
    ///
    /// # Errors
    /// When its stand-in cannot be built (exit code 3).
    pub async fn rust(&self) -> Result<&ToolImage, Failure> {
        let stand_in = async |stand_ins: &StandIns| stand_ins.rust().await.cloned();
        self.pick(&self.rust, pins::RUST_IMAGE, stand_in).await
    }

    /// # Errors
    /// When its stand-in cannot be built (exit code 3).
    pub async fn trivy(&self) -> Result<&ToolImage, Failure> {
        let stand_in = async |stand_ins: &StandIns| stand_ins.trivy().await.cloned();
        self.pick(&self.trivy, pins::TRIVY_IMAGE, stand_in).await
    }

    /// # Errors
    /// When its stand-in cannot be built (exit code 3).
    pub async fn crane(&self) -> Result<&ToolImage, Failure> {
        let stand_in = async |stand_ins: &StandIns| stand_ins.crane().await.cloned();
        self.pick(&self.crane, pins::CRANE_IMAGE, stand_in).await
    }

    /// The stand-in for the vulnerability database, or `None` if the run uses the real one.
    ///
    /// # Errors
    /// When the stand-in cannot be built (exit code 3).
    pub async fn advisories(&self) -> Result<Option<&AdvisoryDb>, Failure> {
        let database = self
            .advisories
            .get_or_try_init(|| async {
                match &self.stand_ins {
                    Some(stand_ins) => stand_ins.advisories().await.cloned().map(Some),
                    None => Ok(None),
                }
            })
            .await?;
        Ok(database.as_ref())
    }

    /// The stand-in for the image of a backing service, or `None` if the engine can use the image itself.
    ///
    /// # Errors
    /// When its registry cannot be reached and the image has no stand-in (exit code 3).
    pub async fn backing(
        &self,
        client: &DaggerConn,
        image: &str,
    ) -> Result<Option<standin::Server>, Failure> {
        let Some(stand_ins) = &self.stand_ins else {
            return Ok(None);
        };
        let Err(why) = check_reachable(client, image).await? else {
            return Ok(None);
        };
        let server = stand_ins.server(image).await?.ok_or_else(|| {
            Failure::environment(why).hint(
                "Let the engine reach its registry: only PostgreSQL and Redis have stand-ins.",
            )
        })?;
        self.note(image, &server.image.digest);
        Ok(Some(server))
    }

    /// Records that the stand-in with this digest replaces the image `name`.
    pub fn note(&self, name: &str, digest: &str) {
        let note = StandInNote::provisioned_here(name, digest);
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if !others.contains(&note) {
            others.push(note);
        }
    }

    async fn pick<'a>(
        &'a self,
        cell: &'a OnceCell<ToolImage>,
        reference: &'static str,
        stand_in: impl AsyncFnOnce(&StandIns) -> Result<StandIn, Failure>,
    ) -> Result<&'a ToolImage, Failure> {
        cell.get_or_try_init(|| async {
            match &self.stand_ins {
                Some(stand_ins) => Ok(ToolImage::StandIn(stand_in(stand_ins).await?)),
                None => Ok(ToolImage::Registry(reference)),
            }
        })
        .await
    }

    /// The replaced images so far, with their stand-ins.
    #[must_use]
    pub fn notes(&self) -> Vec<StandInNote> {
        let images = [
            (pins::RUST_IMAGE, &self.rust),
            (pins::TRIVY_IMAGE, &self.trivy),
            (pins::CRANE_IMAGE, &self.crane),
        ];
        let mut notes = Vec::new();
        for (name, image) in images {
            if let Some(ToolImage::StandIn(stand_in)) = image.get() {
                notes.push(StandInNote::provisioned_here(name, &stand_in.digest));
            }
        }
        if let Some(Some(database)) = self.advisories.get() {
            notes.push(StandInNote {
                name: "ghcr.io/aquasecurity/trivy-db".to_owned(),
                used: format!(
                    "a few advisories from {}, {}",
                    database.dated, database.digest
                ),
            });
        }
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        notes.extend(others.iter().cloned());
        notes
    }
}
