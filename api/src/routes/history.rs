//! `GET /api/v1/checks/{name}/history`: the results of a check, up to one year back.

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

/// The longest window: roll-ups of days are kept this long.
const MAX_WINDOW: Duration = Duration::from_secs(366 * 24 * 60 * 60);

#[derive(Deserialize)]
pub(super) struct Parameters {
    window: Option<String>,
}

/// The results of a check in a window.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct History {
    /// The name of the check.
    #[schema(example = "cache")]
    pub name: String,
    /// The current state.
    pub state: State,
    /// When the check entered this state.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
    /// The length of the requested window in seconds.
    #[schema(example = 86400)]
    pub window_seconds: u64,
    /// The start of the first bucket, up to one bucket before the window.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub from: SystemTime,
    /// The end of the window: the time of the request.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub to: SystemTime,
    /// Statistics of all buckets together.
    #[serde(flatten)]
    pub summary: Summary,
    /// The length of a bucket in seconds: a minute, an hour or a day in UTC.
    #[schema(example = 3600)]
    pub resolution_seconds: u32,
    /// The buckets that contain probes, oldest first. Latencies have an error of at most 5 %.
    pub buckets: Vec<Bucket>,
    /// The results in the window that are in memory, oldest first.
    pub recent: Vec<Taken>,
}

/// Statistics of a part of the window.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Bucket {
    /// The start of the bucket.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub start: SystemTime,
    /// The number of probes.
    pub samples: u64,
    /// The number of failed probes.
    pub failures: u32,
    /// The share of successful probes, from 0 to 1.
    pub uptime: Option<f64>,
    /// The latency percentiles of successful probes; `null` if there were none.
    pub latency_ms: Option<Percentiles>,
}

/// The result of one probe.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Taken {
    /// When the probe started, to the second.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// How long a successful probe took, in milliseconds; `null` if it failed.
    pub latency_ms: Option<f64>,
}

/// Limits concurrent reads of the history, because each one occupies a thread and memory.
static READS: Semaphore = Semaphore::const_new(2);

/// History of a check, up to one year back
#[utoipa::path(get, path = "/api/v1/checks/{name}/history", tag = "checks",
    params(
        ("name" = String, Path, description = "Name of the check"),
        ("window" = Option<String>, Query, example = "7d", pattern = "^([1-9][0-9]{0,2}[mhd]|1y)$",
            description = "Length of the window in minutes, hours or days, such as `30m`, `24h` or `7d`, or `1y`; at most 366 days. The default is `24h`"),
    ),
    responses(
        (status = 200, description = "The window, in buckets of a minute, an hour or a day", body = History),
        (status = 400, description = "The window is not valid", body = Problem, content_type = PROBLEM_JSON),
        (status = 404, description = "No check has this name", body = Problem, content_type = PROBLEM_JSON),
        (status = 503, description = "The service is shutting down", body = Problem, content_type = PROBLEM_JSON),
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
    let permit = READS.acquire().await;
    // On another thread, because the disk may be slow.
    web::block(move || {
        // Held until the read ends, even if the client disconnects.
        let _permit = permit;
        History::of(&board, index, window, SystemTime::now())
    })
    .await
    .map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the service is shutting down",
        )
    })?
    .map(web::Json)
    .ok_or_else(no_check)
}

/// Parses a window by the pattern of the schema. Longer windows are shortened to [`MAX_WINDOW`].
fn parse(window: &str) -> Result<Duration, Problem> {
    let number = window.strip_suffix(['m', 'h', 'd']).unwrap_or_default();
    let plain = matches!(number.as_bytes(), [b'1'..=b'9', rest @ ..] if rest.len() < 3 && rest.iter().all(u8::is_ascii_digit));
    humantime::parse_duration(window)
        .ok()
        .filter(|_| plain || window == "1y")
        .map(|window| window.min(MAX_WINDOW))
        .ok_or_else(|| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!("window={window:?}: expected a duration such as 30m, 24h, 7d or 1y"),
            )
        })
}

impl History {
    /// The history of the check at `index` over the `window` before `now`: from the disk if there is one that works, otherwise
    /// from memory. Blocks on disk access. Returns `None` if there is no such check.
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
