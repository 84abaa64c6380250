//! `GET /openapi.json` and `GET /docs`: the OpenAPI document, generated from the handlers.

use actix_web::{HttpResponse, http::header::ContentType, web};
use utoipa::{OpenApi, openapi};

use super::{
    badge, check_page, checks, docs, events, health, history, hits, metrics, probes, root, stream,
    version,
};
use crate::{page, problem::Problem, service::Service};

#[derive(OpenApi)]
#[openapi(
    info(title = "infrastructure-lab status service"),
    paths(
        root::get,
        health::get,
        hits::get,
        probes::live,
        probes::ready,
        checks::list,
        checks::one,
        history::get,
        badge::get,
        check_page::get,
        events::get,
        stream::get,
        metrics::get,
        version::get,
        get,
        get_docs,
    ),
    tags(
        (name = "status", description = "Greeting, status page and counter"),
        (name = "checks", description = "Checks and their results"),
        (name = "health", description = "Container probes"),
        (name = "operation", description = "Metrics, build information and documentation"),
    ),
)]
struct Api;

/// The OpenAPI document of all resources, below the path `base`.
#[must_use]
pub fn document(base: &str) -> openapi::OpenApi {
    let mut document = Api::openapi();
    if !base.is_empty() {
        document.servers = Some(vec![openapi::Server::new(base)]);
    }
    document
}

/// OpenAPI document
#[utoipa::path(get, operation_id = "openapi", path = "/openapi.json", tag = "operation", responses(
    (status = 200, description = "This document, OpenAPI 3.1", body = Object, content_type = "application/json"),
))]
pub(super) async fn get(service: web::Data<Service>) -> Result<HttpResponse, Problem> {
    let body = match service.openapi.get() {
        Some(body) => body,
        None => {
            let document = serde_json::to_vec(&document(&service.base_path))?;
            service.openapi.get_or_init(|| document.into())
        }
    };
    Ok(HttpResponse::Ok()
        .content_type(ContentType::json())
        .body(body.clone()))
}

/// API documentation as a page
// In this file, because the document lists this handler, and the handler renders the document.
// Generated clients use this operation ID.
#[utoipa::path(get, operation_id = "get", path = "/docs", tag = "operation", responses(
    (status = 200, description = "A page without external resources", body = String, content_type = "text/html"),
))]
pub(super) async fn get_docs(service: web::Data<Service>) -> Result<HttpResponse, Problem> {
    let document = serde_json::to_value(document(&service.base_path))?;
    Ok(page::response(docs::render(&document)?))
}
