//! `GET /stream.js`: the script by which all tabs of a browser share one event stream.
//!
//! It is not embedded in the page like the other script, because a shared worker needs a URL that is equal in all tabs.

use actix_web::{
    HttpResponse,
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS},
};

use crate::page::STREAM;

/// The media type of scripts.
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Script of the status page
///
/// The shared worker that holds the event stream of all tabs of a browser.
#[utoipa::path(get, operation_id = "streamScript", path = "/stream.js", tag = "status", responses(
    (status = 200, description = "The script", body = String, content_type = JAVASCRIPT),
))]
pub(super) async fn get() -> HttpResponse {
    HttpResponse::Ok()
        .content_type(JAVASCRIPT)
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; connect-src 'self'",
        ))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(STREAM)
}
