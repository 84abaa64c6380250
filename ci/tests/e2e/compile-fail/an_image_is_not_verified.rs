//! What was built is not what may be published.

use ci::authority::Permit;
use ci::evidence::Genuine;
use ci::reference::Registry;
use ci::run::StepContext;
use ci::steps::build::Image;
use ci::steps::publish;

async fn at_once(
    step: &StepContext<'_, Genuine>,
    image: Image<'_, '_, Genuine>,
    permit: Permit<Registry>,
) {
    let _ = publish::run(step, (image, permit)).await;
}

fn main() {}
