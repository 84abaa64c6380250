//! An image made with stand-ins can be published only to a loopback registry.

use ci::steps::publish;
use ci::trust::authority::Permit;
use ci::trust::kind::StandIn;
use ci::steps::verified::Verified;
use ci::model::image_name::{LoopbackRegistry, Registry};
use ci::run::execution::StepContext;

async fn publish_anywhere(
    step: &StepContext<'_, StandIn>,
    verified: Verified<'_, '_, StandIn>,
    permit: Permit<Registry>,
) {
    let _ = publish::run(step, (verified, permit)).await;
}

fn construct_loopback_registry(registry: Registry) -> LoopbackRegistry {
    LoopbackRegistry(registry)
}

fn main() {}
