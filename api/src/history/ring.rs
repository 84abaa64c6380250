//! The newest samples of one check, in memory.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use utoipa::ToSchema;

use super::sample::{FAILED, Sample};

/// The number of samples in a ring: one day of a check with an interval of one minute, with a reserve for its jitter, in 12 KiB.
pub(super) const CAPACITY: usize = 1500;

/// The newest samples of one check.
#[derive(Debug, Default)]
pub struct Ring {
    samples: VecDeque<Sample>,
    /// How many of the oldest samples were restored from roll-ups, so that their times and latencies are approximate.
    restored: usize,
}

/// Statistics of a check over a period.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Summary {
    /// The number of probes.
    pub samples: u64,
    /// The number of failed probes.
    pub failures: u64,
    /// The share of successful probes, from 0 to 1; `null` if there were no probes.
    pub uptime: Option<f64>,
    /// The latency percentiles of successful probes; `null` if there were none.
    pub latency_ms: Option<Percentiles>,
}

/// Latency percentiles in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Percentiles {
    /// The median: half of the probes were at most this slow.
    pub p50: f64,
    /// 95 of 100 probes were at most this slow.
    pub p95: f64,
    /// 99 of 100 probes were at most this slow.
    pub p99: f64,
}

impl Ring {
    /// Adds the newest sample; removes the oldest one if the ring is full.
    pub fn push(&mut self, sample: Sample) {
        if self.is_full() {
            self.samples.pop_front();
            self.restored = self.restored.saturating_sub(1);
        } else if self.samples.len() == self.samples.capacity() && self.samples.len() > CAPACITY / 2
        {
            // Otherwise the capacity is doubled.
            self.samples.reserve_exact(CAPACITY - self.samples.len());
        }
        self.samples.push_back(sample);
    }

    /// Fills the free space with older samples, given newest first.
    pub(crate) fn restore(&mut self, before: impl IntoIterator<Item = Sample>) {
        for sample in before.into_iter().take(CAPACITY - self.samples.len()) {
            self.samples.push_front(sample);
            self.restored += 1;
        }
    }

    /// The samples from `from` on, oldest first.
    pub fn since(&self, from: SystemTime) -> impl Iterator<Item = Sample> + '_ {
        // Compares every sample, because they are not in order if the clock was set back.
        self.samples
            .iter()
            .filter(move |sample| sample.at() >= from)
            .copied()
    }

    /// The samples of this process, without restored ones, oldest first.
    pub(crate) fn taken(&self) -> impl Iterator<Item = Sample> + '_ {
        self.samples.iter().skip(self.restored).copied()
    }

    pub(super) fn is_full(&self) -> bool {
        self.samples.len() == CAPACITY
    }

    /// Exact statistics of `samples`.
    pub(super) fn summary(samples: impl IntoIterator<Item = Sample>) -> Summary {
        let mut failures = 0_u64;
        let mut latencies = Vec::with_capacity(CAPACITY);
        for sample in samples {
            if sample.latency == FAILED {
                failures += 1;
            } else {
                latencies.push(sample.latency);
            }
        }
        let answers = latencies.len() as u64;
        Summary::new(failures, answers, |rank| {
            let rank = usize::try_from(rank).ok()?;
            // Much faster than sorting.
            let latency =
                (rank < latencies.len()).then(|| *latencies.select_nth_unstable(rank).1)?;
            Some(Duration::from_micros(latency.into()))
        })
    }
}

impl Summary {
    /// Creates a summary; `latency` returns the latency of a rank, where 0 is the fastest.
    pub(super) fn new(
        failures: u64,
        answers: u64,
        mut latency: impl FnMut(u64) -> Option<Duration>,
    ) -> Self {
        let samples = failures + answers;
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let uptime = (samples > 0).then(|| answers as f64 / samples as f64);
        // The nearest-rank method.
        let mut percentile = |share: u64| {
            let rank = (answers * share).div_ceil(100).checked_sub(1)?;
            latency(rank).map(milliseconds)
        };
        let latency_ms = match (percentile(50), percentile(95), percentile(99)) {
            (Some(p50), Some(p95), Some(p99)) => Some(Percentiles { p50, p95, p99 }),
            _ => None,
        };
        Self {
            samples,
            failures,
            uptime,
            latency_ms,
        }
    }
}

/// A latency in milliseconds with three decimals.
#[must_use]
pub fn milliseconds(latency: Duration) -> f64 {
    (latency.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn at(seconds: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn summary_matches_the_sorted_newest_samples(
            samples in vec((0_u32..3000, option::weighted(0.9, 0_u32..5_000_000)), 0..2000),
            from in 0_u32..3000,
        ) {
            let mut ring = Ring::default();
            for (seconds, latency) in &samples {
                let latency = latency.map(|micros| Duration::from_micros(micros.into()));
                ring.push(Sample::new(at(*seconds), latency));
            }
            let newest = &samples[samples.len().saturating_sub(CAPACITY)..];
            let since: Vec<_> = newest.iter().filter(|(seconds, _)| *seconds >= from).collect();
            let mut latencies: Vec<u32> = since.iter().filter_map(|(_, latency)| *latency).collect();
            latencies.sort_unstable();
            let percentile = |share: usize| {
                f64::from(latencies[(latencies.len() * share).div_ceil(100) - 1]) / 1e3
            };
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let uptime = latencies.len() as f64 / since.len() as f64;
            prop_assert_eq!(
                Ring::summary(ring.since(at(from))),
                Summary {
                    samples: since.len() as u64,
                    failures: (since.len() - latencies.len()) as u64,
                    uptime: (!since.is_empty()).then_some(uptime),
                    latency_ms: (!latencies.is_empty()).then(|| Percentiles {
                        p50: percentile(50),
                        p95: percentile(95),
                        p99: percentile(99),
                    }),
                }
            );
        }
    }

    #[test]
    fn removes_restored_samples_first() {
        let sample = |seconds| Sample::new(at(seconds), None);
        let mut ring = Ring::default();
        ring.push(sample(5000));
        ring.restore((0..5000).rev().map(sample));
        assert_eq!(ring.since(at(0)).count(), CAPACITY);
        assert_eq!(ring.since(at(0)).last(), Some(sample(5000)));
        assert!(ring.since(at(0)).is_sorted_by_key(|sample| sample.at()));
        assert_eq!(ring.taken().collect::<Vec<_>>(), [sample(5000)]);
        for seconds in 5001..7000 {
            ring.push(sample(seconds));
        }
        assert_eq!(ring.taken().count(), CAPACITY);
    }
}
