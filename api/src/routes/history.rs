//! `GET /api/v1/checks/{name}/history`: how a check did, up to a year back.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use actix_web::{
    http::StatusCode,
    web::{self, Query},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use utoipa::ToSchema;

use crate::{
    board::Board,
    history::{Percentiles, Resolution, Rollup, Sample, Summary, milliseconds},
    problem::{PROBLEM_JSON, Problem},
    service::Service,
    state::State,
    time::rfc3339,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// As far back as days are kept.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

#[derive(Deserialize)]
pub(super) struct Parameters {
    window: Option<String>,
}

/// How a check did over a window, in all and in parts.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct History {
    /// The check's name.
    #[schema(example = "cache")]
    pub name: String,
    /// Its state now.
    pub state: State,
    /// Since when it is so.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
    /// The length of the window that was asked for.
    #[schema(example = 86400)]
    pub window_seconds: u64,
    /// When the first bucket begins: up to one bucket before the window.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub from: SystemTime,
    /// Now.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub to: SystemTime,
    /// How it did in all buckets together.
    #[serde(flatten)]
    pub summary: Summary,
    /// How much time a bucket covers: a minute, an hour or a day in UTC.
    #[schema(example = 3600)]
    pub resolution_seconds: u32,
    /// How it did in each part of the window in which it was asked, oldest first. Latencies are right to within 5 %.
    pub buckets: Vec<Bucket>,
    /// The newest single answers in the window, oldest first: as many as are in memory.
    pub recent: Vec<Taken>,
}

/// How a check did in a part of a window.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Bucket {
    /// When it begins.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub start: SystemTime,
    /// How many questions were asked.
    pub samples: u64,
    /// How many of them failed.
    pub failures: u32,
    /// The share that did not, from 0 to 1.
    pub uptime: Option<f64>,
    /// The latencies of the answers as expected; none where there was none.
    pub latency_ms: Option<Percentiles>,
}

/// One answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Taken {
    /// When it was asked for, to the second.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// How long it took; none where it was not as expected.
    pub latency_ms: Option<f64>,
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

impl History {
    /// The history of the check at `index` over the `window` before `now`: from the disk if there is one that works, otherwise from
    /// memory. Waits for the disk. Returns `None` if there is no such check.
    #[must_use]
    pub fn of(board: &Board, index: usize, window: Duration, now: SystemTime) -> Option<Self> {
        let status = board.status(index)?;
        let resolution = Resolution::of(window);
        let begin = Sample::new(
            now.checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH),
            None,
        );
        let end = Sample::new(now, None);
        let from = resolution.start(begin.seconds());
        let rollups = board
            .store()
            .and_then(|store| store.read(index, resolution, (from, end.seconds())))
            .or_else(|| {
                board.with_samples(index, |ring| {
                    let mut rollups = BTreeMap::new();
                    let samples = ring
                        .since(time(from))
                        .filter(|sample| sample.seconds() <= end.seconds());
                    resolution.group(samples, &mut rollups);
                    rollups
                })
            })?;
        let recent = board.with_samples(index, |ring| {
            ring.taken()
                .filter(|sample| (begin.seconds()..=end.seconds()).contains(&sample.seconds()))
                .map(Taken::from)
                .collect()
        })?;
        let mut all = Rollup::default();
        for rollup in rollups.values() {
            all.merge(rollup);
        }
        Some(Self {
            name: status.name,
            state: status.state,
            since: status.since,
            window_seconds: window.as_secs(),
            from: time(from),
            to: now,
            summary: all.summary(),
            resolution_seconds: resolution.seconds(),
            buckets: rollups.iter().map(Bucket::from).collect(),
            recent,
        })
    }
}

impl From<(&u32, &Rollup)> for Bucket {
    fn from((start, rollup): (&u32, &Rollup)) -> Self {
        let summary = rollup.summary();
        Self {
            start: time(*start),
            samples: summary.samples,
            failures: rollup.failures(),
            uptime: summary.uptime,
            latency_ms: summary.latency_ms,
        }
    }
}

impl From<Sample> for Taken {
    fn from(sample: Sample) -> Self {
        Self {
            time: sample.at(),
            latency_ms: sample.latency().map(milliseconds),
        }
    }
}

fn time(seconds: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into())
}
