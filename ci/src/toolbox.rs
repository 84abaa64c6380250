//! The images that the steps run in: the real ones, or stand-ins where no registry can be reached.

use std::marker::PhantomData;

use dagger_sdk::{Container, DaggerConn};
use serde::Serialize;
use tokio::sync::OnceCell;

use crate::engine::EngineError;
use crate::evidence::{Genuine, Kind, StandIn};
use crate::failure::Failure;
use crate::narrator::Narrator;
use crate::pins;
use crate::provision::Consent;
use crate::standin;
use crate::step::Step;

/// Something that could not be reached, and what was taken in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StandInNote {
    /// What the pins name.
    pub name: String,
    /// What was taken.
    pub used: String,
}

/// Where one tool's image comes from.
#[derive(Clone, Debug)]
pub enum ToolImage {
    /// A registry.
    Registry(&'static str),
    /// A root file system of this machine's making.
    StandIn(standin::StandIn),
}

impl ToolImage {
    /// A container of it.
    #[must_use]
    pub fn container(&self, client: &DaggerConn) -> Container {
        match self {
            Self::Registry(reference) => client.container().from(*reference),
            Self::StandIn(stand_in) => stand_in.container(client),
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

/// Which of the two kinds this run's tools are; decided anew in each run.
pub enum AnyToolbox {
    /// All from their registries.
    Genuine(Toolbox<Genuine>),
    /// All stand-ins.
    StandIn(Toolbox<StandIn>),
}

/// The images that the steps run in. `K` says which kind, and so does all evidence that is made with them.
pub struct Toolbox<K> {
    stand_ins: bool,
    rust: OnceCell<ToolImage>,
    trivy: OnceCell<ToolImage>,
    crane: OnceCell<ToolImage>,
    advisories: OnceCell<Option<standin::AdvisoryDb>>,
    narrator: std::sync::Arc<dyn Narrator>,
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

/// Asks the engine, which may be on another machine, whether it reaches the images that `steps` need.
///
/// # Errors
/// When a registry answers, but does not give the image.
pub async fn choose(
    client: &DaggerConn,
    steps: &[Step],
    narrator: std::sync::Arc<dyn Narrator>,
) -> Result<AnyToolbox, Failure> {
    let mut needed = vec![pins::RUST_IMAGE];
    if steps.contains(&Step::Scan) {
        needed.push(pins::TRIVY_IMAGE);
    }
    if steps.contains(&Step::Publish) {
        needed.push(pins::CRANE_IMAGE);
    }
    for image in needed {
        let limit = std::time::Duration::from_secs(60);
        let asked = client.container().from(image);
        match tokio::time::timeout(limit, asked.image_ref()).await {
            Ok(Ok(_)) => {}
            Err(_) => {
                narrator.notice(&format!(
                    "no answer about {image} within {} s: taking stand-ins",
                    limit.as_secs()
                ));
                return Ok(AnyToolbox::StandIn(Toolbox::new(true, narrator)));
            }
            Ok(Err(error)) => match EngineError::from(error) {
                EngineError::Query(text) if UNREACHABLE.iter().any(|sign| text.contains(sign)) => {
                    narrator.notice(&format!(
                        "{image} cannot be reached from the engine: taking stand-ins"
                    ));
                    return Ok(AnyToolbox::StandIn(Toolbox::new(true, narrator)));
                }
                other => return Err(other.into_environment(&format!("cannot get {image}"))),
            },
        }
    }
    Ok(AnyToolbox::Genuine(Toolbox::new(false, narrator)))
}

impl<K: Kind> Toolbox<K> {
    fn new(stand_ins: bool, narrator: std::sync::Arc<dyn Narrator>) -> Self {
        Self {
            stand_ins,
            rust: OnceCell::new(),
            trivy: OnceCell::new(),
            crane: OnceCell::new(),
            advisories: OnceCell::new(),
            narrator,
            _kind: PhantomData,
        }
    }

    /// The Rust toolchain.
    ///
    /// # Errors
    /// When a stand-in has to be made and cannot be.
    pub async fn rust(&self, consent: Consent<'_>) -> Result<&ToolImage, Failure> {
        self.rust
            .get_or_try_init(|| {
                self.pick(
                    pins::RUST_IMAGE,
                    standin::toolchain(consent, &*self.narrator),
                )
            })
            .await
    }

    /// Trivy.
    ///
    /// # Errors
    /// When a stand-in has to be made and cannot be.
    pub async fn trivy(&self, consent: Consent<'_>) -> Result<&ToolImage, Failure> {
        self.trivy
            .get_or_try_init(|| {
                self.pick(pins::TRIVY_IMAGE, standin::trivy(consent, &*self.narrator))
            })
            .await
    }

    /// crane.
    ///
    /// # Errors
    /// When a stand-in has to be made and cannot be.
    pub async fn crane(&self, consent: Consent<'_>) -> Result<&ToolImage, Failure> {
        self.crane
            .get_or_try_init(|| {
                self.pick(pins::CRANE_IMAGE, standin::crane(consent, &*self.narrator))
            })
            .await
    }

    /// The stand-in for the vulnerability database, or none where the real one is taken.
    ///
    /// # Errors
    /// When the stand-in cannot be made.
    pub async fn advisories(
        &self,
        consent: Consent<'_>,
    ) -> Result<Option<&standin::AdvisoryDb>, Failure> {
        let database = self
            .advisories
            .get_or_try_init(|| async {
                if self.stand_ins {
                    standin::advisories(consent, &*self.narrator)
                        .await
                        .map(Some)
                } else {
                    Ok(None)
                }
            })
            .await?;
        Ok(database.as_ref())
    }

    async fn pick(
        &self,
        reference: &'static str,
        stand_in: impl Future<Output = Result<standin::StandIn, Failure>>,
    ) -> Result<ToolImage, Failure> {
        if self.stand_ins {
            Ok(ToolImage::StandIn(stand_in.await?))
        } else {
            Ok(ToolImage::Registry(reference))
        }
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
                let used = format!("made on this machine, {}", stand_in.digest);
                notes.push(StandInNote {
                    name: name.to_owned(),
                    used,
                });
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
        notes
    }
}
