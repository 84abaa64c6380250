//! `GET /`: the greeting or the status page.

use actix_web::{HttpRequest, HttpResponse, http::header::VARY, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{page, problem::Problem, rendered::Rendered, service::Service};

/// The cached page of one worker.
#[derive(Default)]
pub(super) struct Page(Rendered);

/// The greeting for API clients.
#[derive(Serialize, ToSchema)]
pub(super) struct Greeting {
    /// A fixed message.
    #[schema(value_type = String, example = "Hello from the Infrastructure Lab!")]
    message: &'static str,
    /// The name of the environment that the service runs in.
    #[schema(example = "local")]
    env: String,
}

/// Greeting for API clients, status page for browsers
#[utoipa::path(get, operation_id = "greet", path = "/", tag = "status", responses(
    (status = 200, description = "The greeting, or the status page if `Accept` prefers `text/html`", content(
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
            let live = service.live();
            page::render(
                &service.board,
                &service.base_path,
                &live.title,
                &live.environment,
            )
        })?;
        return Ok(page::response(body));
    }
    Ok(HttpResponse::Ok()
        .insert_header((VARY, "Accept"))
        .json(Greeting {
            message: "Hello from the Infrastructure Lab!",
            env: service.live().environment.clone(),
        }))
}
