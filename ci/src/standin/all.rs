//! The stand-ins of one run.

use std::sync::Arc;

use tokio::sync::{Mutex, OnceCell};

use super::advisories::{self, AdvisoryDb};
use super::base::{self, BaseLayout};
use super::made::StandIn;
use super::servers::{self, Server};
use super::toolchain;
use super::tools;
use common::failure::Failure;
use common::progress::{Branch, Progress};
use common::provision::Consent;

/// The stand-ins of one run. Each is built once, when it is first used.
pub struct StandIns {
    consent: Consent<'static>,
    progress: Arc<dyn Progress>,
    rust: OnceCell<StandIn>,
    trivy: OnceCell<StandIn>,
    /// Held while Trivy's programs are built, which [`StandIns::trivy`] and [`StandIns::advisories`] both need.
    trivy_programs: Mutex<()>,
    crane: OnceCell<StandIn>,
    servers: OnceCell<StandIn>,
    advisories: OnceCell<AdvisoryDb>,
    base: OnceCell<BaseLayout>,
}

impl StandIns {
    #[must_use]
    pub fn new(consent: Consent<'static>, progress: Arc<dyn Progress>) -> Self {
        Self {
            consent,
            progress,
            rust: OnceCell::new(),
            trivy: OnceCell::new(),
            trivy_programs: Mutex::new(()),
            crane: OnceCell::new(),
            servers: OnceCell::new(),
            advisories: OnceCell::new(),
            base: OnceCell::new(),
        }
    }

    /// Builds what `cell` lacks, maybe while others are built.
    async fn once<'a, T>(
        &self,
        cell: &'a OnceCell<T>,
        build: impl AsyncFnOnce(&dyn Progress) -> Result<T, Failure>,
    ) -> Result<&'a T, Failure> {
        let branch = Branch::of(&*self.progress);
        // Boxed, because the compiler limits how deep futures can be nested.
        cell.get_or_try_init(|| Box::pin(build(&branch))).await
    }

    /// The Rust toolchain.
    ///
    /// # Errors
    /// When the stand-in cannot be built (exit code 3).
    pub async fn rust(&self) -> Result<&StandIn, Failure> {
        self.once(&self.rust, async |progress| {
            toolchain::toolchain(self.consent, progress).await
        })
        .await
    }

    /// # Errors
    /// When the stand-in cannot be built (exit code 3).
    pub async fn trivy(&self) -> Result<&StandIn, Failure> {
        self.once(&self.trivy, async |progress| {
            let _alone = self.trivy_programs.lock().await;
            tools::trivy(progress).await
        })
        .await
    }

    /// # Errors
    /// When the stand-in cannot be built (exit code 3).
    pub async fn crane(&self) -> Result<&StandIn, Failure> {
        self.once(&self.crane, async |progress| tools::crane(progress).await)
            .await
    }

    /// The vulnerability database.
    ///
    /// # Errors
    /// When the database cannot be built (exit code 3).
    pub async fn advisories(&self) -> Result<&AdvisoryDb, Failure> {
        self.once(&self.advisories, async |progress| {
            let _alone = self.trivy_programs.lock().await;
            advisories::advisories(progress).await
        })
        .await
    }

    /// The stand-in for any base image.
    ///
    /// # Errors
    /// When the image cannot be built (exit code 3).
    pub async fn base(&self) -> Result<&BaseLayout, Failure> {
        self.once(&self.base, async |progress| {
            base::layout(self.consent, progress).await
        })
        .await
    }

    /// The server that replaces the released image `image`, or `None` if that image has no stand-in.
    ///
    /// # Errors
    /// When the stand-in cannot be built (exit code 3).
    pub async fn server(&self, image: &str) -> Result<Option<Server>, Failure> {
        let Some(command) = servers::command(image) else {
            return Ok(None);
        };
        let image = self
            .once(&self.servers, async |progress| {
                servers::image(self.consent, progress).await
            })
            .await?;
        Ok(Some(Server {
            image: image.clone(),
            command,
        }))
    }
}
