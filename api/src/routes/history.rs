//! `GET /api/v1/checks/{name}/history`: how a check did, up to a year back.

use std::time::{Duration, SystemTime};

use actix_web::{
    http::StatusCode,
    web::{self, Query},
};
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::{
    history::History,
    problem::{PROBLEM_JSON, Problem},
    service::Service,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// As far back as days are kept.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

#[derive(Deserialize)]
pub(super) struct Parameters {
    window: Option<String>,
}

/// So many threads look at once, however many clients ask: each costs memory.
static LOOKING: Semaphore = Semaphore::const_new(2);

/// How one check did, up to a year back
#[utoipa::path(get, path = "/api/v1/checks/{name}/history", tag = "checks",
    params(
        ("name" = String, Path, description = "The check's name"),
        ("window" = Option<String>, Query, example = "7d",
            description = "How far to look back: a duration such as `1h`, `24h`, `7d` or `1y`, up to `366d`; `24h` where there is none"),
    ),
    responses(
        (status = 200, description = "The window in parts of a minute, an hour or a day", body = History),
        (status = 400, description = "The window is no such duration", body = Problem, content_type = PROBLEM_JSON),
        (status = 404, description = "There is no such check", body = Problem, content_type = PROBLEM_JSON),
        (status = 503, description = "The service ends", body = Problem, content_type = PROBLEM_JSON),
    ),
)]
pub(super) async fn get(
    service: web::Data<Service>,
    name: web::Path<String>,
    parameters: Result<Query<Parameters>, actix_web::Error>,
) -> Result<web::Json<History>, Problem> {
    let no_check = || Problem::no_check(&name);
    let board = service.board.clone();
    let index = board.find(&name).ok_or_else(no_check)?;
    let window = match parameters {
        Ok(Query(Parameters { window })) => window.map_or(Ok(DAY), |window| parse(&window)),
        Err(error) => Err(Problem::new(StatusCode::BAD_REQUEST, error.to_string())),
    }?;
    let looking = LOOKING.acquire().await;
    // The disk may be slow: no worker waits for it.
    web::block(move || {
        // Also where the client is gone by now.
        let _looking = looking;
        History::of(&board, index, window, SystemTime::now())
    })
    .await
    .map_err(|_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the service ends"))?
    .map(web::Json)
    .ok_or_else(no_check)
}

fn parse(window: &str) -> Result<Duration, Problem> {
    humantime::parse_duration(window)
        .ok()
        .filter(|window| (Duration::from_secs(1)..=LONGEST).contains(window))
        .ok_or_else(|| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!(
                    "window={window:?}: expected a duration such as 1h, 24h, 7d or 1y, up to 366d"
                ),
            )
        })
}
