//! What all steps of a run share.

use std::sync::Arc;

use dagger_sdk::DaggerConn;
use tokio::sync::OnceCell;

use super::stopper::Stopper;
use super::toolbox::Toolbox;
use crate::engine::session::Connection;
use crate::engine::telemetry::Telemetry;
use crate::image::archive::Platform;
use crate::model::step::Step;
use crate::report::Reporter;
use crate::runner_cache::cache::Cache;
use crate::runner_cache::place::Place;
use crate::settings::Settings;
use crate::trust::kind::Kind;

/// For which platform the image is, and on which the engine runs.
#[derive(Clone, Debug)]
pub struct Platforms {
    /// The image's.
    pub image: Platform,
    /// The engine's.
    pub engine: Platform,
}

/// What all steps of a run share.
pub struct RunContext<K: Kind> {
    /// What the user said.
    pub settings: Settings,
    /// The images that the steps run in.
    pub toolbox: Toolbox<K>,
    /// The image's and the engine's.
    pub platforms: Platforms,
    /// What the engine reports.
    pub telemetry: Telemetry,
    /// The session with the engine.
    pub connection: Connection,
    /// Tells the user.
    pub reporter: Arc<Reporter>,
    /// Ends the run before its end.
    pub stopper: Stopper,
    /// The caches of a throw-away runner, where it has some.
    pub cache: Option<Cache>,
    /// Unique to this run.
    pub id: String,
    /// The digest of the toolchain's image, once it is known.
    pub toolchain: OnceCell<String>,
}

/// A name that no other run has.
#[must_use]
pub fn new_id() -> String {
    format!(
        "{:x}-{}",
        jiff::Timestamp::now().as_nanosecond(),
        std::process::id()
    )
}

impl<K: Kind> RunContext<K> {
    /// The image's platform, where it is not the engine's own.
    #[must_use]
    pub fn foreign_platform(&self) -> Option<&Platform> {
        (self.platforms.image != self.platforms.engine).then_some(&self.platforms.image)
    }

    /// The platform on which cargo works in a step, where it is not the engine's own. What `build` compiles runs on the image's: so do the
    /// programs of build scripts.
    #[must_use]
    pub fn platform_of(&self, step: Step) -> Option<&Platform> {
        self.foreign_platform().filter(|_| step == Step::Build)
    }

    /// The volumes of the steps that this project has, and those that all steps share.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let mut places = Place::all();
        places.retain(|place| match place {
            Place::Work(step) => self.settings.has(*step),
            Place::Cargo | Place::Database => true,
        });
        places
    }

    /// A client for work that is no step's.
    #[must_use]
    pub fn client(&self) -> DaggerConn {
        self.connection.client(self.telemetry.trace(None))
    }
}
