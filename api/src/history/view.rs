//! The history of a check as it is shown.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use utoipa::ToSchema;

use super::{Percentiles, Resolution, Rollup, Sample, Summary, milliseconds};
use crate::board::{Board, State, rfc3339};

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

impl History {
    /// The history of the check at `index` over the `window` before `now`: from the disk where there is one that works, else from
    /// memory. Waits for the disk. None where there is no such check.
    #[must_use]
    pub fn of(board: &Board, index: usize, window: Duration, now: SystemTime) -> Option<Self> {
        let status = board.status(index)?;
        let resolution = Resolution::of(window);
        let begin = Sample::new(
            now.checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH),
            None,
        );
        let end = Sample::new(now, None);
        let from = resolution.start(begin.seconds);
        let rollups = board
            .store()
            .and_then(|store| store.read(index, resolution, (from, end.seconds)))
            .or_else(|| {
                board.with_samples(index, |ring| {
                    let mut rollups = BTreeMap::new();
                    let samples = ring
                        .since(time(from))
                        .filter(|sample| sample.seconds <= end.seconds);
                    resolution.group(samples, &mut rollups);
                    rollups
                })
            })?;
        let recent = board.with_samples(index, |ring| {
            ring.taken()
                .filter(|sample| (begin.seconds..=end.seconds).contains(&sample.seconds))
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
