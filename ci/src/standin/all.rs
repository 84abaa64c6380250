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

/// The stand-ins of one run: each is made once, when it is first asked for.
pub struct StandIns {
    consent: Consent<'static>,
    narrator: Arc<dyn Progress>,
    rust: OnceCell<StandIn>,
    trivy: OnceCell<StandIn>,
    crane: OnceCell<StandIn>,
    servers: OnceCell<StandIn>,
    advisories: OnceCell<AdvisoryDb>,
    base: OnceCell<BaseLayout>,
}

impl StandIns {
    /// None yet; what makes one asks `consent` and talks to `narrator`.
    #[must_use]
    pub fn new(consent: Consent<'static>, narrator: Arc<dyn Progress>) -> Self {
        Self {
            consent,
            narrator,
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
    /// When it cannot be made here.
    pub async fn rust(&self) -> Result<&StandIn, Failure> {
        self.rust
            .get_or_try_init(|| toolchain::toolchain(self.consent, &*self.narrator))
            .await
    }

    /// Trivy.
    ///
    /// # Errors
    /// When it cannot be built here.
    pub async fn trivy(&self) -> Result<&StandIn, Failure> {
        self.trivy
            .get_or_try_init(|| tools::trivy(&*self.narrator))
            .await
    }

    /// crane.
    ///
    /// # Errors
    /// When it cannot be built here.
    pub async fn crane(&self) -> Result<&StandIn, Failure> {
        self.crane
            .get_or_try_init(|| tools::crane(&*self.narrator))
            .await
    }

    /// The vulnerability database.
    ///
    /// # Errors
    /// When it cannot be made here.
    pub async fn advisories(&self) -> Result<&AdvisoryDb, Failure> {
        self.advisories
            .get_or_try_init(|| advisories::advisories(&*self.narrator))
            .await
    }

    /// The base image, whichever it was to be.
    ///
    /// # Errors
    /// When it cannot be made here.
    pub async fn base(&self) -> Result<&BaseLayout, Failure> {
        self.base
            .get_or_try_init(|| base::layout(self.consent, &*self.narrator))
            .await
    }

    /// The server whose released image is called `image`; none where there is no stand-in for it.
    ///
    /// # Errors
    /// When it cannot be made here.
    pub async fn server(&self, image: &str) -> Result<Option<Server>, Failure> {
        let Some(command) = servers::command(image) else {
            return Ok(None);
        };
        let image = self
            .servers
            .get_or_try_init(|| servers::image(self.consent, &*self.narrator))
            .await?;
        Ok(Some(Server {
            image: image.clone(),
            command,
        }))
    }
}
