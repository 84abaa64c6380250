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
        (name = "status", description = "For people and clients of the lab"),
        (name = "checks", description = "What is checked, and what came of it"),
        (name = "health", description = "For the probes of containers"),
        (name = "operation", description = "For those who run the service"),
    ),
)]
struct Api;

/// The OpenAPI document of everything that the service answers.
#[must_use]
pub fn document() -> openapi::OpenApi {
    Api::openapi()
}

/// This document
#[utoipa::path(get, operation_id = "openapi", path = "/openapi.json", tag = "operation", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json"),
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

/// This document for people
// The document lists this handler, and this handler renders the document: in a file of its own, the two files would import each other.
// Clients that were generated from the document know this operation ID.
#[utoipa::path(get, operation_id = "get", path = "/docs", tag = "operation", responses(
    (status = 200, description = "A page that needs nothing else", body = String, content_type = "text/html"),
))]
pub(super) async fn get_docs() -> Result<HttpResponse, Problem> {
    let document = serde_json::to_value(document())?;
    Ok(page::response(docs::render(&document)?))
}
