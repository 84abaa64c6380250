//! `GET /openapi.json` and `GET /docs`: the OpenAPI document, generated from the handlers.

use actix_web::{HttpResponse, http::header::ContentType, web::Bytes};
use std::sync::OnceLock;
use utoipa::{OpenApi, openapi};

use super::{badge, checks, docs, events, health, history, hits, metrics, probes, root, version};
use crate::{page, problem::Problem};

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
        events::get,
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

/// The OpenAPI document of all resources.
#[must_use]
pub fn document() -> openapi::OpenApi {
    Api::openapi()
}

/// OpenAPI document
#[utoipa::path(get, operation_id = "openapi", path = "/openapi.json", tag = "operation", responses(
    (status = 200, description = "This document, OpenAPI 3.1", body = Object, content_type = "application/json"),
))]
pub(super) async fn get() -> Result<HttpResponse, Problem> {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    let body = match DOCUMENT.get() {
        Some(body) => body,
        None => {
            let document = serde_json::to_vec(&document())?;
            DOCUMENT.get_or_init(|| document.into())
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
pub(super) async fn get_docs() -> Result<HttpResponse, Problem> {
    let document = serde_json::to_value(document())?;
    Ok(page::response(docs::render(&document)?))
}
