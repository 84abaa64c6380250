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
    history::{DAY, Percentiles, Resolution, Rollup, Sample, Summary, milliseconds},
    problem::{PROBLEM_JSON, Problem},
    service::Service,
    state::State,
    time::{optional_rfc3339, rfc3339},
};

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
    /// The name of the check for people.
    #[schema(example = "Cache of the shop")]
    pub display_name: String,
    /// The current state.
    pub state: State,
    /// When the check entered this state.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
    /// The length of the requested window in seconds.
    #[schema(example = 86400)]
    pub window_seconds: u64,
    /// The start of the statistics: the start of the minute in which the window begins, or, if the window is longer than 24 hours,
    /// of the bucket.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub from: SystemTime,
    /// The end of the window: the time of the request.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "rfc3339")]
    pub to: SystemTime,
    /// When the first result in the window was, if results do not cover the window; otherwise `null`. As exact as results are kept:
    /// to the minute, hour or day.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(serialize_with = "optional_rfc3339")]
    pub known_since: Option<SystemTime>,
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
    /// The start of the bucket. The first bucket of a window of up to 24 hours starts with the window.
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
pub(super) static READS: Semaphore = Semaphore::const_new(2);

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
        // Minutes are kept for a day. They exclude the part of the first bucket that is before the window.
        let precision = if window <= DAY {
            Resolution::Minute
        } else {
            resolution
        };
        let from = precision.start(begin.seconds());
        let precise = rollups_until(board, index, precision, (from, end.seconds()))?;
        let mut rollups: BTreeMap<u32, Rollup> = BTreeMap::new();
        for (start, rollup) in &precise {
            let start = resolution.start(*start).max(from);
            rollups.entry(start).or_default().merge(rollup);
        }
        let first = precise.keys().next();
        let known_since = first.and_then(|start| {
            let first = first_result(board, index, precision, *start);
            board.known_since(index, from, Some(first))
        });
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
            display_name: status.display_name,
            state: status.state,
            since: status.since,
            window_seconds: window.as_secs(),
            from: time(from),
            to: now,
            known_since,
            summary: all.summary(),
            resolution_seconds: resolution.seconds(),
            buckets: rollups.iter().map(Bucket::from).collect(),
            recent,
        })
    }
}

impl Bucket {
    /// The statistics without the start.
    pub(super) fn summary(&self) -> Summary {
        Summary {
            samples: self.samples,
            failures: self.failures.into(),
            uptime: self.uptime,
            latency_ms: self.latency_ms,
        }
    }
}

const fn finer(resolution: Resolution) -> Option<Resolution> {
    match resolution {
        Resolution::Day => Some(Resolution::Hour),
        Resolution::Hour => Some(Resolution::Minute),
        Resolution::Minute => None,
    }
}

/// The roll-ups from the one that starts at `from` to the minute that contains `to`. Later results can be in the last one if the
/// clock was ahead.
fn rollups_until(
    board: &Board,
    index: usize,
    resolution: Resolution,
    (from, to): (u32, u32),
) -> Option<BTreeMap<u32, Rollup>> {
    let mut rollups = board.rollups(index, resolution, (from, to))?;
    let last = resolution.start(to);
    if let Some(finer) = finer(resolution)
        && rollups.remove(&last).is_some()
    {
        for rollup in rollups_until(board, index, finer, (last, to))?.values() {
            rollups.entry(last).or_default().merge(rollup);
        }
    }
    Some(rollups)
}

/// The time of the first result of the roll-up that starts at `start`, as exact as finer roll-ups are kept.
fn first_result(board: &Board, index: usize, resolution: Resolution, start: u32) -> u32 {
    let Some(finer) = finer(resolution) else {
        return start;
    };
    let end = start.saturating_add(resolution.seconds() - 1);
    let rollups = board.rollups(index, finer, (start, end));
    let first = rollups.and_then(|rollups| rollups.keys().next().copied());
    first.map_or(start, |start| first_result(board, index, finer, start))
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
