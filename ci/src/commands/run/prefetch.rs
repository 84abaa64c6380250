//! What is made while a run still waits for something else.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::Notify;

use super::plan::Plan;
use crate::engine::find;
use crate::model::step::Step;
use crate::run::toolbox;
use crate::standin::StandIns;
use common::failure::Failure;

/// What a first run makes before anything waits for it: while the engine is being built and started, and while the tests
/// run. Where it is dropped before its end, what needs the rest makes it.
pub struct Prefetch {
    stand_ins: Arc<StandIns>,
    /// The steps that will want something.
    steps: Vec<Step>,
    /// Told when the run is known to need stand-ins.
    needed: Notify,
    /// Whether this machine will have to build an engine first.
    builds_engine: bool,
}

impl Prefetch {
    /// What `plan` will want.
    #[must_use]
    pub fn new(stand_ins: &Arc<StandIns>, plan: &Plan) -> Self {
        let mut steps = plan.steps.clone();
        if plan.permit.is_none() {
            steps.retain(|step| *step != Step::Publish);
        }
        Self {
            stand_ins: Arc::clone(stand_ins),
            steps,
            needed: Notify::new(),
            builds_engine: find::builds_first(&plan.settings.engine),
        }
    }

    /// The steps that will want something.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Says that the run needs stand-ins.
    pub fn stand_ins_are_needed(&self) {
        self.needed.notify_one();
    }

    /// Makes it, and never returns. A failure here is not the run's: who needs the thing tries again, and tells.
    pub async fn make(&self) -> Infallible {
        let quietly = |failure: Failure| tracing::debug!("prefetch: {failure}");
        // The engine decides what can be reached; before there is one, this machine's own view is a good guess.
        if self.builds_engine && !toolbox::reachable_from_here().await {
            let _ = self.stand_ins.rust().await.map_err(quietly);
        }
        self.needed.notified().await;
        if self.steps.contains(&Step::Scan) {
            let _ = self.stand_ins.trivy().await.map_err(quietly);
            let _ = self.stand_ins.advisories().await.map_err(quietly);
        }
        if self.steps.contains(&Step::Publish) {
            let _ = self.stand_ins.crane().await.map_err(quietly);
        }
        std::future::pending().await
    }
}
