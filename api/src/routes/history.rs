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
        ("window" = Option<String>, Query, example = "7d", pattern = "^([1-9][0-9]{0,2}[mhd]|1y)$",
            description = "How far to look back: minutes, hours or days such as `30m`, `24h`, `7d`, or `1y`, at most 366 days; `24h` where there is none"),
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

/// What the schema's pattern says. A window that reaches further back than anything is kept is as long as that.
fn parse(window: &str) -> Result<Duration, Problem> {
    let number = window.strip_suffix(['m', 'h', 'd']).unwrap_or_default();
    let plain = matches!(number.as_bytes(), [b'1'..=b'9', rest @ ..] if rest.len() < 3 && rest.iter().all(u8::is_ascii_digit));
    humantime::parse_duration(window)
        .ok()
        .filter(|_| plain || window == "1y")
        .map(|window| window.min(LONGEST))
        .ok_or_else(|| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!("window={window:?}: expected a duration such as 30m, 24h, 7d or 1y"),
            )
        })
}
