//! `GET /api/v1/checks/{name}/history`: how a check did, up to a year back.

use std::time::{Duration, SystemTime};

use actix_web::{
    http::StatusCode,
    web::{self, Query},
};
use serde::Deserialize;

use crate::{board::Board, history::History, problem::Problem};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// As far back as days are kept.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

#[derive(Deserialize)]
pub(super) struct Parameters {
    window: Option<String>,
}

/// The history of one check.
pub(super) async fn get(
    board: web::Data<Board>,
    name: web::Path<String>,
    parameters: Result<Query<Parameters>, actix_web::Error>,
) -> Result<web::Json<History>, Problem> {
    let index = board.find(&name).ok_or_else(|| Problem::no_check(&name))?;
    let window = match parameters {
        Ok(Query(Parameters { window })) => window.map_or(Ok(DAY), |window| parse(&window)),
        Err(error) => Err(Problem::new(StatusCode::BAD_REQUEST, error.to_string())),
    }?;
    // The disk may be slow: no worker waits for it.
    let history = web::block(move || History::of(&board, index, window, SystemTime::now())).await;
    match history {
        Ok(Some(history)) => Ok(web::Json(history)),
        Ok(None) => Err(Problem::no_check(&name)),
        Err(error) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            error.to_string(),
        )),
    }
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
