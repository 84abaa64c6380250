//! `GET /`: the greeting or the status page.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::VARY,
    web::{self, Query},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    page::{self, Scope},
    problem::Problem,
    rendered::Rendered,
    service::Service,
};

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

/// Which rows a page contains.
#[derive(Default, Deserialize)]
pub(super) struct Update {
    since: Option<String>,
    only: Option<String>,
}

/// Greeting for API clients, status page for browsers
///
/// An open page updates itself with `since` and `only`; the response is then a page with only some rows.
#[utoipa::path(get, operation_id = "greet", path = "/", tag = "status", params(
    ("since" = Option<String>, Query, description = "The page contains only the rows that have changed since the page with this token"),
    ("only" = Option<String>, Query, description = "The page contains only the rows of these checks, separated by commas"),
), responses(
    (status = 200, description = "The greeting, or the status page if `Accept` prefers `text/html`", content(
        (Greeting = "application/json"),
        (String = "text/html"),
    )),
))]
pub(super) async fn get(
    service: web::Data<Service>,
    page: web::Data<Page>,
    request: HttpRequest,
    update: Option<Query<Update>>,
) -> Result<HttpResponse, Problem> {
    if page::is_preferred(&request) {
        let update = update.map(Query::into_inner).unwrap_or_default();
        let live = service.live();
        let render = |scope| {
            let names = (live.title.as_str(), live.environment.as_str());
            page::render(&service.board, &service.base_path, names, scope)
        };
        let scope = match (&update.only, &update.since) {
            (Some(names), _) => Scope::Only(names),
            (None, Some(token)) => Scope::Since(token),
            (None, None) => Scope::All,
        };
        return Ok(match scope {
            Scope::All => page::response(page.0.get(service.board.generation(), || render(scope))?),
            _ => page::response(render(scope)?),
        });
    }
    Ok(HttpResponse::Ok()
        .insert_header((VARY, "Accept"))
        .json(Greeting {
            message: "Hello from the Infrastructure Lab!",
            env: service.live().environment.clone(),
        }))
}
