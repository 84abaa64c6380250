//! `GET /api/v1/checks` and `GET /api/v1/checks/{name}`.

use actix_web::{HttpResponse, http::header::ContentType, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    board::Status,
    problem::{PROBLEM_JSON, Problem},
    rendered::Rendered,
    service::Service,
};

/// The cached response of one worker.
#[derive(Default)]
pub(super) struct Checks(Rendered);

/// All checks.
#[derive(Serialize, ToSchema)]
pub(super) struct CheckList {
    /// The checks in the order of the configuration.
    checks: Vec<Status>,
}

/// List all checks with their states
#[utoipa::path(get, operation_id = "listChecks", path = "/api/v1/checks", tag = "checks", responses(
    (status = 200, description = "The checks in the order of the configuration", body = CheckList),
))]
pub(super) async fn list(
    service: web::Data<Service>,
    checks: web::Data<Checks>,
) -> Result<HttpResponse, Problem> {
    let body = checks.0.get(service.board.generation(), || {
        serde_json::to_string(&CheckList {
            checks: service.board.statuses(),
        })
    })?;
    Ok(HttpResponse::Ok()
        .content_type(ContentType::json())
        .body(body))
}

/// Get the state of a check
#[utoipa::path(get, operation_id = "getCheck", path = "/api/v1/checks/{name}", tag = "checks",
    params(("name" = String, Path, description = "Name of the check", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "redis")),
    responses(
        (status = 200, description = "The check", body = Status),
        (status = 404, description = "No check has this name", body = Problem, content_type = PROBLEM_JSON),
    ),
)]
pub(super) async fn one(
    service: web::Data<Service>,
    name: web::Path<String>,
) -> Result<web::Json<Status>, Problem> {
    let status = service
        .board
        .find(&name)
        .and_then(|index| service.board.status(index));
    status
        .map(web::Json)
        .ok_or_else(|| Problem::no_check(&name))
}
