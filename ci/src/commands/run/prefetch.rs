//! Provisions stand-ins in the background, before the steps of a run need them.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::Notify;

use super::plan::Plan;
use crate::engine::find;
use crate::model::step::Step;
use crate::run::toolbox;
use crate::standin::StandIns;
use common::failure::Failure;

/// Provisions stand-ins of a first run while the engine is built and started, and while the tests run. If it is dropped early,
/// the steps provision the rest.
pub(super) struct Prefetch {
    stand_ins: Arc<StandIns>,
    steps: Vec<Step>,
    /// Notified when the run is known to need stand-ins.
    needed: Notify,
    /// Whether the engine may have to be built first.
    builds_engine: bool,
}

impl Prefetch {
    /// Prepares the prefetch for the steps of `plan`.
    #[must_use]
    pub(super) fn new(stand_ins: &Arc<StandIns>, plan: &Plan) -> Self {
        let mut steps = plan.steps.clone();
        if plan.permit.is_none() {
            steps.retain(|step| *step != Step::Publish);
        }
        Self {
            stand_ins: Arc::clone(stand_ins),
            steps,
            needed: Notify::new(),
            builds_engine: find::may_build_engine(&plan.settings.engine),
        }
    }

    /// The steps that need tools: those of the plan, without a publish that is not permitted.
    #[must_use]
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Starts provisioning the stand-ins of the steps.
    pub(super) fn start_stand_ins(&self) {
        self.needed.notify_one();
    }

    /// Provisions the stand-ins, and never returns. Ignores failures, because the step that needs a stand-in tries again and
    /// reports them.
    pub(super) async fn run(&self) -> Infallible {
        let quietly = |failure: Failure| tracing::debug!("prefetch: {failure}");
        // Reachability depends on the engine. Until it runs, this machine's own network is a good approximation.
        if self.builds_engine && !toolbox::is_reachable_from_here().await {
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
