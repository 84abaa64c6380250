//! `GET /livez` and `GET /readyz`, in the format of the Kubernetes API server.

use std::fmt::Write;

use actix_web::{HttpResponse, http::StatusCode, web};
use serde::Deserialize;

use crate::{service::Service, state::State};

/// The query of a probe.
#[derive(Deserialize)]
pub(super) struct Verbosity {
    /// Only its presence matters, not its value.
    verbose: Option<String>,
}

/// Liveness probe
///
/// Does not depend on checks, because restarting the container would not restore a lost dependency.
#[utoipa::path(get, operation_id = "livez", path = "/livez", tag = "health", params(
    ("verbose" = Option<String>, Query, description = "If present, with any value, the response lists each condition on a line"),
), responses(
    (status = 200, description = "The process is running", body = String, content_type = "text/plain", example = "ok"),
))]
pub(super) async fn live(verbosity: web::Query<Verbosity>) -> HttpResponse {
    respond("livez", &verbosity, &[("process", Ok("ok".into()))])
}

/// Readiness probe
///
/// Fails from the first shutdown signal on. The verbose output lists checks, but they do not affect the result: the status page
/// must stay reachable during an outage.
#[utoipa::path(get, operation_id = "readyz", path = "/readyz", tag = "health", params(
    ("verbose" = Option<String>, Query, description = "If present, with any value, the response lists each condition on a line"),
), responses(
    (status = 200, description = "The service accepts requests", body = String, content_type = "text/plain", example = "ok"),
    (status = 503, description = "The service is shutting down", body = String, content_type = "text/plain"),
))]
pub(super) async fn ready(
    service: web::Data<Service>,
    verbosity: web::Query<Verbosity>,
) -> HttpResponse {
    let shutdown = if service.drain.has_begun() {
        Err("the service is shutting down".to_owned())
    } else {
        Ok("ok".to_owned())
    };
    let mut conditions = vec![("shutdown", shutdown)];
    let statuses = match verbosity.verbose {
        Some(_) => service.board.statuses(),
        None => Vec::new(),
    };
    for status in &statuses {
        let state = match status.state {
            State::Pending => "pending",
            State::Up => "up",
            State::Degraded => "degraded",
            State::Down => "down, ignored for readiness",
        };
        conditions.push((&status.name, Ok(state.to_owned())));
    }
    respond("readyz", &verbosity, &conditions)
}

fn respond(
    probe: &str,
    verbosity: &Verbosity,
    conditions: &[(&str, Result<String, String>)],
) -> HttpResponse {
    let passed = conditions.iter().all(|(_, result)| result.is_ok());
    let status = if passed {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut text = String::new();
    if verbosity.verbose.is_some() || !passed {
        for (name, result) in conditions {
            let (sign, message) = match result {
                Ok(message) => ('+', message),
                Err(message) => ('-', message),
            };
            // Writing to a String does not fail.
            let _ = writeln!(text, "[{sign}]{name} {message}");
        }
        let _ = writeln!(
            text,
            "{probe} check {}",
            if passed { "passed" } else { "failed" }
        );
    } else {
        text.push_str("ok");
    }
    HttpResponse::build(status)
        .content_type("text/plain; charset=utf-8")
        .insert_header(("cache-control", "no-store"))
        .body(text)
}
