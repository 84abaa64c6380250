//! What was made with stand-ins goes to a registry on loopback only.

use ci::authority::Permit;
use ci::evidence::{StandIn, Verified};
use ci::reference::{LoopbackRegistry, Registry};
use ci::run::StepContext;
use ci::steps::publish;

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
