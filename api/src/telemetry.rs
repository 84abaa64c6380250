//! Logs: one JSON object a line, on stdout.

use std::time::Instant;

use actix_web::{
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{Error, routes};

/// Starts logging what `filter` lets through.
///
/// # Errors
/// Where logging was started before in this process.
pub fn start(filter: Targets) -> Result<(), Error> {
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true);
    Ok(tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .try_init()?)
}

/// Logs each request with its outcome; what probes ask every few seconds only at `debug`.
pub(crate) async fn log_request(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let start = Instant::now();
    let response = next.call(request).await?;
    // The path without the query, which may hold what is nobody's business.
    let (method, path) = (
        response.request().method().as_str(),
        response.request().path(),
    );
    let (status, ms) = (
        response.status().as_u16(),
        start.elapsed().as_secs_f64() * 1e3,
    );
    if path == routes::HEALTH && response.status().is_success() {
        tracing::debug!(method, path, status, ms, "request");
    } else {
        tracing::info!(method, path, status, ms, "request");
    }
    Ok(response)
}
