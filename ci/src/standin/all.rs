//! The stand-ins of one run.

use std::sync::Arc;

use tokio::sync::OnceCell;

use super::advisories::{self, AdvisoryDb};
use super::base::{self, BaseLayout};
use super::made::StandIn;
use super::servers::{self, Server};
use super::toolchain;
use super::tools;
use common::failure::Failure;
use common::progress::Progress;
use common::provision::Consent;

/// The stand-ins of one run. Each is built once, when it is first used.
pub struct StandIns {
    consent: Consent<'static>,
    progress: Arc<dyn Progress>,
    rust: OnceCell<StandIn>,
    trivy: OnceCell<StandIn>,
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
            crane: OnceCell::new(),
            servers: OnceCell::new(),
            advisories: OnceCell::new(),
            base: OnceCell::new(),
        }
    }

    /// The Rust toolchain.
    ///
    /// # Errors
    /// When the stand-in cannot be built (exit code 3).
    pub async fn rust(&self) -> Result<&StandIn, Failure> {
        self.rust
            .get_or_try_init(|| toolchain::toolchain(self.consent, &*self.progress))
            .await
    }

    /// # Errors
    /// When the stand-in cannot be built (exit code 3).
    pub async fn trivy(&self) -> Result<&StandIn, Failure> {
        self.trivy
            .get_or_try_init(|| tools::trivy(&*self.progress))
            .await
    }

    /// # Errors
    /// When the stand-in cannot be built (exit code 3).
    pub async fn crane(&self) -> Result<&StandIn, Failure> {
        self.crane
            .get_or_try_init(|| tools::crane(&*self.progress))
            .await
    }

    /// The vulnerability database.
    ///
    /// # Errors
    /// When the database cannot be built (exit code 3).
    pub async fn advisories(&self) -> Result<&AdvisoryDb, Failure> {
        self.advisories
            .get_or_try_init(|| advisories::advisories(&*self.progress))
            .await
    }

    /// The stand-in for any base image.
    ///
    /// # Errors
    /// When the image cannot be built (exit code 3).
    pub async fn base(&self) -> Result<&BaseLayout, Failure> {
        self.base
            .get_or_try_init(|| base::layout(self.consent, &*self.progress))
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
            .servers
            .get_or_try_init(|| servers::image(self.consent, &*self.progress))
            .await?;
        Ok(Some(Server {
            image: image.clone(),
            command,
        }))
    }
}
