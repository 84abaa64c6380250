//! `GET /checks/{name}`: the page of a check.

use std::time::{Duration, SystemTime};

use actix_web::{
    HttpResponse,
    http::StatusCode,
    web::{self, Query},
};
use serde::Deserialize;

use super::history::{History, READS};
use crate::{
    page::{self, Bucket, Window},
    problem::{PROBLEM_JSON, Problem},
    service::Service,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The windows of the page: the query parameter, the text and the length.
const WINDOWS: [(&str, &str, u32); 4] = [
    ("24h", "24 hours", 1),
    ("7d", "7 days", 7),
    ("30d", "30 days", 30),
    ("1y", "1 year", 366),
];

#[derive(Deserialize)]
pub(super) struct Parameters {
    window: Option<String>,
}

/// Page of a check
///
/// Uptime and latency of the last 24 hours, 7 days, 30 days and year, and the outages.
#[utoipa::path(get, operation_id = "showCheck", path = "/checks/{name}", tag = "checks",
    params(
        ("name" = String, Path, description = "Name of the check"),
        ("window" = Option<String>, Query, example = "7d", pattern = "^(24h|7d|30d|1y)$", description = "The window that is shown as charts. The default is `24h`"),
    ),
    responses(
        (status = 200, description = "A page without external resources", body = String, content_type = "text/html"),
        (status = 400, description = "The window is not valid", body = Problem, content_type = PROBLEM_JSON),
        (status = 404, description = "No check has this name", body = Problem, content_type = PROBLEM_JSON),
        (status = 503, description = "The service is shutting down", body = Problem, content_type = PROBLEM_JSON),
    ),
)]
pub(super) async fn get(
    service: web::Data<Service>,
    name: web::Path<String>,
    parameters: Result<Query<Parameters>, actix_web::Error>,
) -> Result<HttpResponse, Problem> {
    let no_check = || Problem::no_check(&name);
    let index = service.board.find(&name).ok_or_else(no_check)?;
    let selected = match parameters {
        Ok(Query(Parameters { window: None })) => Some(0),
        Ok(Query(Parameters {
            window: Some(window),
        })) => WINDOWS.iter().position(|(name, ..)| *name == window),
        Err(_) => None,
    };
    let selected = selected.ok_or_else(|| {
        let detail = "window: expected 24h, 7d, 30d or 1y";
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })?;
    let board = service.board.clone();
    let permit = READS.acquire().await;
    // On another thread, because the disk may be slow.
    let (status, windows, outages) = web::block(move || {
        // Held until the read ends, even if the client disconnects.
        let _permit = permit;
        let now = SystemTime::now();
        let windows: Option<Vec<_>> = WINDOWS
            .iter()
            .map(|(name, label, days)| {
                let history = History::of(&board, index, DAY * *days, now)?;
                Some(window((name, label), history))
            })
            .collect();
        Some((board.status(index)?, windows?, board.outages(index)))
    })
    .await
    .map_err(|_| {
        let detail = "the service is shutting down";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    })?
    .ok_or_else(no_check)?;
    let live = service.live();
    Ok(page::response(page::render_check(
        &service.base_path,
        (&live.title, &live.environment),
        &status,
        &windows,
        selected,
        &outages,
        service.board.store().is_some(),
    )?))
}

fn window((name, label): (&'static str, &'static str), history: History) -> Window {
    Window {
        name,
        label,
        from: history.from,
        to: history.to,
        resolution_seconds: history.resolution_seconds,
        known_since: history.known_since,
        summary: history.summary,
        buckets: (history.buckets.iter())
            .map(|bucket| Bucket {
                start: bucket.start,
                summary: bucket.summary(),
            })
            .collect(),
    }
}
