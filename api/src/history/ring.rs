//! The newest samples of one check, in memory.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use utoipa::ToSchema;

use super::Sample;

/// A day of a check that is asked every minute: 11 KiB.
const CAPACITY: usize = 1440;

/// The newest samples of one check.
#[derive(Debug, Default)]
pub struct Ring(VecDeque<Sample>);

/// How a check did over some time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Summary {
    /// How many questions were asked.
    pub samples: u64,
    /// The share of them that was answered as expected, from 0 to 1; none where none was asked.
    pub uptime: Option<f64>,
    /// The latencies of the answers as expected.
    pub latency_ms: Option<Percentiles>,
}

/// Latencies in milliseconds that this share of the answers did not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Percentiles {
    /// Half of them.
    pub p50: f64,
    /// 95 of 100.
    pub p95: f64,
    /// 99 of 100.
    pub p99: f64,
}

impl Ring {
    /// Adds the newest sample; the oldest makes room.
    pub fn push(&mut self, sample: Sample) {
        if self.0.len() == CAPACITY {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The samples from `from` on, oldest first.
    pub fn since(&self, from: SystemTime) -> impl Iterator<Item = Sample> + '_ {
        // A clock that was set back makes the order wrong: each is looked at.
        self.0
            .iter()
            .filter(move |sample| sample.at() >= from)
            .copied()
    }

    /// How the check did since `from`.
    #[must_use]
    pub fn summary(&self, from: SystemTime) -> Summary {
        let mut samples = 0_u64;
        let mut latencies: Vec<Duration> = Vec::new();
        for sample in self.since(from) {
            samples += 1;
            latencies.extend(sample.latency());
        }
        latencies.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let uptime = (samples > 0).then(|| latencies.len() as f64 / samples as f64);
        // The nearest rank.
        let percentile = |share: usize| {
            let rank = (latencies.len() * share).div_ceil(100).saturating_sub(1);
            latencies.get(rank).map(|latency| milliseconds(*latency))
        };
        let latency_ms = match (percentile(50), percentile(95), percentile(99)) {
            (Some(p50), Some(p95), Some(p99)) => Some(Percentiles { p50, p95, p99 }),
            _ => None,
        };
        Summary {
            samples,
            uptime,
            latency_ms,
        }
    }
}

/// A latency as it is shown: milliseconds with three decimals.
#[must_use]
pub fn milliseconds(latency: Duration) -> f64 {
    (latency.as_secs_f64() * 1e6).round() / 1e3
}
