//! `GET /`: the greeting.

use actix_web::web;
use serde::Serialize;
use utoipa::ToSchema;

use crate::service::Service;

/// The greeting.
#[derive(Serialize, ToSchema)]
pub(super) struct Greeting {
    /// Always the same.
    #[schema(value_type = String, example = "Hello from the Infrastructure Lab!")]
    message: &'static str,
    /// The environment that the service runs in.
    #[schema(example = "local")]
    env: String,
}

/// A greeting for API clients, the status page for browsers
#[utoipa::path(get, operation_id = "greet", path = "/", tag = "status", responses(
    (status = 200, description = "The greeting, or the page where `Accept` prefers `text/html`", content(
        (Greeting = "application/json"),
        (String = "text/html"),
    )),
))]
pub(super) async fn get(service: web::Data<Service>) -> web::Json<Greeting> {
    web::Json(Greeting {
        message: "Hello from the Infrastructure Lab!",
        env: service.environment.clone(),
    })
}
