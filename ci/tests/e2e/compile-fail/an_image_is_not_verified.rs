//! What was built is not what may be published.

use ci::steps::publish;
use ci::trust::authority::Permit;
use ci::trust::kind::Genuine;
use ci::model::image_name::Registry;
use ci::run::execution::StepContext;
use ci::steps::build::Image;

async fn at_once(
    step: &StepContext<'_, Genuine>,
    image: Image<'_, '_, Genuine>,
    permit: Permit<Registry>,
) {
    let _ = publish::run(step, (image, permit)).await;
}

fn main() {}
