//! What the service answers, one file for each resource.

mod health;
mod history;
mod root;

use actix_web::web::{self, ServiceConfig};

pub use root::Greeting;

/// The path that the container's probes and the pipeline's smoke test ask.
pub const HEALTH: &str = "/health";

/// Adds every route.
pub fn configure(service: &mut ServiceConfig) {
    service
        .service(web::resource("/").get(root::get).head(root::get))
        .service(web::resource(HEALTH).get(health::get).head(health::get))
        .service(
            web::resource("/api/v1/checks/{name}/history")
                .get(history::get)
                .head(history::get),
        );
}
