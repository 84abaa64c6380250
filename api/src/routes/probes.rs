//! `GET /livez` and `GET /readyz`, as Kubernetes itself answers them.

use std::fmt::Write;

use actix_web::{HttpResponse, http::StatusCode, web};
use serde::Deserialize;

use crate::{service::Service, state::State};

/// How a probe is answered.
#[derive(Deserialize)]
pub(super) struct Verbosity {
    /// Whatever it is set to.
    verbose: Option<String>,
}

/// Whether the process lives
///
/// Looks at nothing else: a lost dependency is no reason to restart the container.
#[utoipa::path(get, operation_id = "livez", path = "/livez", tag = "health", params(
    ("verbose" = Option<String>, Query, description = "A line for each thing that was looked at, for people; any value"),
), responses(
    (status = 200, description = "It does", body = String, content_type = "text/plain", example = "ok"),
))]
pub(super) async fn live(verbosity: web::Query<Verbosity>) -> HttpResponse {
    answer("livez", &verbosity, &[("process", Ok("ok".into()))])
}

/// Whether the service takes requests
///
/// No longer from the moment that it was told to end. Checks are listed, but do not count: a page that tells of an outage has to be reachable.
#[utoipa::path(get, operation_id = "readyz", path = "/readyz", tag = "health", params(
    ("verbose" = Option<String>, Query, description = "A line for each thing that was looked at, for people; any value"),
), responses(
    (status = 200, description = "It does", body = String, content_type = "text/plain", example = "ok"),
    (status = 503, description = "It is about to end", body = String, content_type = "text/plain"),
))]
pub(super) async fn ready(
    service: web::Data<Service>,
    verbosity: web::Query<Verbosity>,
) -> HttpResponse {
    let shutdown = if service.drain.has_begun() {
        Err("the service is about to end".to_owned())
    } else {
        Ok("ok".to_owned())
    };
    let mut looked_at = vec![("shutdown", shutdown)];
    let statuses = match verbosity.verbose {
        Some(_) => service.board.statuses(),
        None => Vec::new(),
    };
    for status in &statuses {
        let state = match status.state {
            State::Pending => "pending",
            State::Up => "up",
            State::Down => "down, which does not count here",
        };
        looked_at.push((&status.name, Ok(state.to_owned())));
    }
    answer("readyz", &verbosity, &looked_at)
}

fn answer(
    of: &str,
    verbosity: &Verbosity,
    looked_at: &[(&str, Result<String, String>)],
) -> HttpResponse {
    let well = looked_at.iter().all(|(_, found)| found.is_ok());
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut text = String::new();
    if verbosity.verbose.is_some() || !well {
        for (name, found) in looked_at {
            let (sign, words) = match found {
                Ok(words) => ('+', words),
                Err(words) => ('-', words),
            };
            // A String takes everything.
            let _ = writeln!(text, "[{sign}]{name} {words}");
        }
        let _ = writeln!(
            text,
            "{of} check {}",
            if well { "passed" } else { "failed" }
        );
    } else {
        text.push_str("ok");
    }
    HttpResponse::build(status)
        .content_type("text/plain; charset=utf-8")
        .insert_header(("cache-control", "no-store"))
        .body(text)
}
