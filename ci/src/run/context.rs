//! The context that all steps of a run share.

use std::sync::Arc;

use dagger_sdk::DaggerConn;
use tokio::sync::OnceCell;

use super::history::History;
use super::stopper::Stopper;
use super::toolbox::Toolbox;
use super::turns::Turns;
use crate::engine::session::Connection;
use crate::engine::telemetry::Telemetry;
use crate::image::archive::Platform;
use crate::model::rust::Rust;
use crate::model::step::Step;
use crate::report::Reporter;
use crate::runner_cache::cache::Cache;
use crate::runner_cache::place::Place;
use crate::settings::Settings;
use crate::trust::kind::Kind;

/// The platform of the image and that of the engine.
#[derive(Clone, Debug)]
pub struct Platforms {
    pub image: Platform,
    pub engine: Platform,
}

/// The context that all steps of a run share.
pub struct RunContext<K: Kind> {
    pub settings: Settings,
    pub toolbox: Toolbox<K>,
    pub platforms: Platforms,
    pub telemetry: Telemetry,
    pub connection: Connection,
    pub reporter: Arc<Reporter>,
    pub stopper: Stopper,
    /// The caches of an ephemeral runner, if configured.
    pub cache: Option<Cache>,
    /// The turns of the steps in which cargo compiles.
    pub turns: Turns,
    /// The passes of earlier runs.
    pub history: History,
    /// The engine of the run.
    pub engine: String,
    /// The full SHA of HEAD.
    pub commit: String,
    /// A name that is unique to this run.
    pub id: String,
    /// The Rust toolchain.
    pub rust: Rust,
    /// The digest of the toolchain image; resolved when it is first needed.
    pub toolchain: OnceCell<String>,
}

/// Returns a unique name for a run.
#[must_use]
pub(crate) fn new_id() -> String {
    format!(
        "{:x}-{}",
        jiff::Timestamp::now().as_nanosecond(),
        std::process::id()
    )
}

impl<K: Kind> RunContext<K> {
    /// The image's platform, if it differs from the engine's.
    #[must_use]
    pub fn foreign_platform(&self) -> Option<&Platform> {
        (self.platforms.image != self.platforms.engine).then_some(&self.platforms.image)
    }

    /// The platform on which cargo runs in a step, if it differs from the engine's. `build` compiles on the image's platform, and
    /// also runs build scripts on it.
    #[must_use]
    pub fn platform_of(&self, step: Step) -> Option<&Platform> {
        self.foreign_platform().filter(|_| step == Step::Build)
    }

    /// The volume that `step` works in. Gates work in that of `lint`, where they find the dependencies that clippy has checked,
    /// unless they see other files or have other packages.
    #[must_use]
    pub fn place_of(&self, step: Step) -> Place {
        Place::Work(
            if step == Step::Custom && self.settings.gates_work_as_lint() {
                Step::Lint
            } else {
                step
            },
        )
    }

    /// The volumes of the steps that this project has, and those that all steps share.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let mut places = Place::all();
        places.retain(|place| match place {
            Place::Work(step) => self.settings.has(*step) && self.place_of(*step) == *place,
            Place::Cargo | Place::Database => true,
        });
        places
    }

    /// Creates a client for queries that belong to no step.
    #[must_use]
    pub fn client(&self) -> DaggerConn {
        self.connection.client(self.telemetry.trace("ci", None))
    }
}
