//! `GET /health`: the state of the service, for probes.

use actix_web::HttpResponse;

/// The health document of draft-inadarei-api-health-check.
pub(super) async fn get() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/health+json")
        .body(r#"{"status":"pass"}"#)
}
