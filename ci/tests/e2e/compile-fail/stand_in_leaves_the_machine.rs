//! What was made with stand-ins goes to a registry on loopback only.

use ci::steps::publish;
use ci::trust::authority::Permit;
use ci::trust::kind::StandIn;
use ci::steps::verified::Verified;
use ci::model::image_name::{LoopbackRegistry, Registry};
use ci::run::execution::StepContext;

async fn anywhere(
    step: &StepContext<'_, StandIn>,
    verified: Verified<'_, '_, StandIn>,
    permit: Permit<Registry>,
) {
    let _ = publish::run(step, (verified, permit)).await;
}

fn because_i_say_so(registry: Registry) -> LoopbackRegistry {
    LoopbackRegistry(registry)
}

fn main() {}
