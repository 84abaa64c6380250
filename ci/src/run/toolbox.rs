//! The images that the steps run in: the real ones, or stand-ins where no registry can be reached.

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

/// Where one tool's image comes from.
#[derive(Clone, Debug)]
pub enum ToolImage {
    /// A registry.
    Registry(&'static str),
    /// A root file system of this machine's making.
    StandIn(StandIn),
}

impl ToolImage {
    /// A container of it, for the engine's own platform or for another.
    ///
    /// # Errors
    /// When another is asked for and this machine has made it for its own (exit 3).
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
                "the base images cannot be reached, and the stand-ins of this machine are not for {platform}"
            ))
            .hint("Build for the engine's own platform, or let the engine reach docker.io.")),
        }
    }

    /// What it is called, and its digest.
    ///
    /// # Errors
    /// When its registry does not say (exit 3).
    pub async fn resolved(&self, client: &DaggerConn) -> Result<(String, String), Failure> {
        match self {
            Self::StandIn(stand_in) => Ok(("stand-in".to_owned(), stand_in.digest.clone())),
            Self::Registry(reference) => {
                let resolved = client.container().from(*reference).image_ref().await;
                let resolved = resolved.map_err(|error| {
                    EngineError::from(error).into_environment(&format!("cannot get {reference}"))
                })?;
                let (_, digest) = resolved.split_once('@').ok_or_else(|| {
                    Failure::environment(format!(
                        "the engine does not say the digest of {reference}"
                    ))
                })?;
                Ok(((*reference).to_owned(), digest.to_owned()))
            }
        }
    }

    /// Where the tool's program lies: in the real image, or in the stand-in.
    #[must_use]
    pub const fn program<'a>(&self, real: &'a str, stand_in: &'a str) -> &'a str {
        match self {
            Self::Registry(_) => real,
            Self::StandIn(_) => stand_in,
        }
    }
}

/// An empty container, for the engine's own platform or for another.
#[must_use]
pub fn container(client: &DaggerConn, platform: Option<&Platform>) -> Container {
    match platform {
        None => client.container(),
        Some(platform) => client.container_opts(QueryContainerOpts {
            platform: Some(platform.to_string().as_str().into()),
        }),
    }
}

/// Which of the two kinds this run's tools are; decided anew in each run.
pub enum AnyToolbox {
    /// All from their registries.
    Genuine(Toolbox<Genuine>),
    /// All stand-ins.
    StandIn(Toolbox<kind::StandIn>),
}

/// The images that the steps run in. `K` says which kind, and so does all evidence that is made with them.
pub struct Toolbox<K> {
    stand_ins: Option<Arc<StandIns>>,
    rust: OnceCell<ToolImage>,
    trivy: OnceCell<ToolImage>,
    crane: OnceCell<ToolImage>,
    advisories: OnceCell<Option<AdvisoryDb>>,
    others: Mutex<Vec<StandInNote>>,
    _kind: PhantomData<fn() -> K>,
}

/// What a registry that cannot be reached makes the engine say, whatever the language of the system below.
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

/// Whether the engine says, in whatever words, that a registry cannot be reached.
#[must_use]
pub fn is_unreachable(words: &str) -> bool {
    UNREACHABLE.iter().any(|sign| words.contains(sign))
}

/// Asks the engine, which may be on another machine, whether it reaches the images that `steps` need.
///
/// # Errors
/// When a registry answers, but does not give the image.
pub async fn choose(
    client: &DaggerConn,
    steps: &[Step],
    stand_ins: &Arc<StandIns>,
    narrator: &dyn Progress,
) -> Result<AnyToolbox, Failure> {
    let mut needed = vec![pins::RUST_IMAGE];
    if steps.contains(&Step::Scan) {
        needed.push(pins::TRIVY_IMAGE);
    }
    if steps.contains(&Step::Publish) {
        needed.push(pins::CRANE_IMAGE);
    }
    for image in needed {
        if let Err(why) = reaches(client, image).await? {
            narrator.notice(&format!("{why}: taking stand-ins"));
            return Ok(AnyToolbox::StandIn(Toolbox::new(Some(Arc::clone(
                stand_ins,
            )))));
        }
    }
    Ok(AnyToolbox::Genuine(Toolbox::new(None)))
}

/// Whether the engine reaches the registry of `image`; within, why not.
async fn reaches(client: &DaggerConn, image: &str) -> Result<Result<(), String>, Failure> {
    let limit = Duration::from_secs(60);
    let asked = client.container().from(image);
    Ok(match tokio::time::timeout(limit, asked.image_ref()).await {
        Ok(Ok(_)) => Ok(()),
        Err(_) => Err(format!(
            "no answer about {image} within {} s",
            limit.as_secs()
        )),
        Ok(Err(error)) => match EngineError::from(error) {
            EngineError::Query(text) if is_unreachable(&text) => {
                Err(format!("{image} cannot be reached from the engine"))
            }
            other => return Err(other.into_environment(&format!("cannot get {image}"))),
        },
    })
}

/// Whether this machine, where no engine can be asked yet, reaches the registry of the first image that a run needs.
pub async fn reachable_from_here() -> bool {
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

    /// What this run's stand-ins come from, where it has any.
    #[must_use]
    pub fn stand_ins(&self) -> Option<&StandIns> {
        self.stand_ins.as_deref()
    }

    /// The Rust toolchain.
    ///
    /// # Errors
    /// When a stand-in has to be made and cannot be.
    pub async fn rust(&self) -> Result<&ToolImage, Failure> {
        let stand_in = async |made: &StandIns| made.rust().await.cloned();
        self.pick(&self.rust, pins::RUST_IMAGE, stand_in).await
    }

    /// Trivy.
    ///
    /// # Errors
    /// When a stand-in has to be made and cannot be.
    pub async fn trivy(&self) -> Result<&ToolImage, Failure> {
        let stand_in = async |made: &StandIns| made.trivy().await.cloned();
        self.pick(&self.trivy, pins::TRIVY_IMAGE, stand_in).await
    }

    /// crane.
    ///
    /// # Errors
    /// When a stand-in has to be made and cannot be.
    pub async fn crane(&self) -> Result<&ToolImage, Failure> {
        let stand_in = async |made: &StandIns| made.crane().await.cloned();
        self.pick(&self.crane, pins::CRANE_IMAGE, stand_in).await
    }

    /// The stand-in for the vulnerability database, or none where the real one is taken.
    ///
    /// # Errors
    /// When the stand-in cannot be made.
    pub async fn advisories(&self) -> Result<Option<&AdvisoryDb>, Failure> {
        let database = self
            .advisories
            .get_or_try_init(|| async {
                match &self.stand_ins {
                    Some(made) => made.advisories().await.cloned().map(Some),
                    None => Ok(None),
                }
            })
            .await?;
        Ok(database.as_ref())
    }

    /// The image of a backing service, by the engine's own name of it, or the stand-in for it.
    ///
    /// # Errors
    /// When its registry cannot be reached and there is no stand-in for it.
    pub async fn backing(
        &self,
        client: &DaggerConn,
        image: &str,
    ) -> Result<Option<standin::Server>, Failure> {
        let Some(made) = &self.stand_ins else {
            return Ok(None);
        };
        let Err(why) = reaches(client, image).await? else {
            return Ok(None);
        };
        let server = made.server(image).await?.ok_or_else(|| {
            Failure::environment(why)
                .hint("There are stand-ins for the images of PostgreSQL and Redis only.")
        })?;
        self.note(image, &server.image.digest);
        Ok(Some(server))
    }

    /// Notes that the stand-in with this digest was taken for the image `name`.
    pub fn note(&self, name: &str, digest: &str) {
        let note = StandInNote::made_here(name, digest);
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
                Some(made) => Ok(ToolImage::StandIn(stand_in(made).await?)),
                None => Ok(ToolImage::Registry(reference)),
            }
        })
        .await
    }

    /// What was taken in place of what, up to now.
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
                notes.push(StandInNote::made_here(name, &stand_in.digest));
            }
        }
        if let Some(Some(database)) = self.advisories.get() {
            notes.push(StandInNote {
                name: "ghcr.io/aquasecurity/trivy-db".to_owned(),
                used: format!(
                    "a few advisories of {}, {}",
                    database.dated, database.digest
                ),
            });
        }
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        notes.extend(others.iter().cloned());
        notes
    }
}
