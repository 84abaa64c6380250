//! A built image cannot be published without its evidence.

use ci::steps::publish;
use ci::trust::authority::Permit;
use ci::trust::kind::Genuine;
use ci::model::image_name::Registry;
use ci::run::execution::StepContext;
use ci::steps::build::Image;

async fn publish_image(
    step: &StepContext<'_, Genuine>,
    image: Image<'_, '_, Genuine>,
    permit: Permit<Registry>,
) {
    let _ = publish::run(step, (image, permit)).await;
}

fn main() {}
