//! `GET /`: the greeting, or the page.

use actix_web::{HttpRequest, HttpResponse, http::header::VARY, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{page, problem::Problem, rendered::Rendered, service::Service};

/// What this worker rendered last.
#[derive(Default)]
pub(super) struct Page(Rendered);

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
pub(super) async fn get(
    service: web::Data<Service>,
    page: web::Data<Page>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    if page::is_preferred(&request) {
        let body = page.0.get(service.board.generation(), || {
            page::render(&service.board, &service.title, &service.environment)
        })?;
        return Ok(page::response(body));
    }
    Ok(HttpResponse::Ok()
        .insert_header((VARY, "Accept"))
        .json(Greeting {
            message: "Hello from the Infrastructure Lab!",
            env: service.environment.clone(),
        }))
}
