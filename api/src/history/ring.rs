//! The newest samples of one check, in memory.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use utoipa::ToSchema;

use super::sample::{FAILED, Sample};

/// A day of a check that is asked every minute: 11 KiB.
pub(super) const CAPACITY: usize = 1440;

/// The newest samples of one check.
#[derive(Debug, Default)]
pub struct Ring {
    samples: VecDeque<Sample>,
    /// How many of the oldest come from roll-ups: their times and latencies are not exact.
    restored: usize,
}

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
        if self.samples.len() == CAPACITY {
            self.samples.pop_front();
            self.restored = self.restored.saturating_sub(1);
        }
        self.samples.push_back(sample);
    }

    /// Fills the ring with what was before, newest first, as far as there is room.
    pub(crate) fn restore(&mut self, before: impl IntoIterator<Item = Sample>) {
        for sample in before.into_iter().take(CAPACITY - self.samples.len()) {
            self.samples.push_front(sample);
            self.restored += 1;
        }
    }

    /// The samples from `from` on, oldest first.
    pub fn since(&self, from: SystemTime) -> impl Iterator<Item = Sample> + '_ {
        // A clock that was set back makes the order wrong: each is looked at.
        self.samples
            .iter()
            .filter(move |sample| sample.at() >= from)
            .copied()
    }

    /// The samples as they were taken by this process, oldest first.
    pub(crate) fn taken(&self) -> impl Iterator<Item = Sample> + '_ {
        self.samples.iter().skip(self.restored).copied()
    }

    /// How the check did since `from`, exactly.
    #[must_use]
    pub fn summary(&self, from: SystemTime) -> Summary {
        let mut failures = 0_u64;
        let mut latencies = Vec::with_capacity(self.samples.len());
        for sample in self.since(from) {
            if sample.latency == FAILED {
                failures += 1;
            } else {
                latencies.push(sample.latency);
            }
        }
        let answers = latencies.len() as u64;
        Summary::new(failures, answers, |rank| {
            let rank = usize::try_from(rank).ok()?;
            // A fraction of what sorting costs.
            let latency =
                (rank < latencies.len()).then(|| *latencies.select_nth_unstable(rank).1)?;
            Some(Duration::from_micros(latency.into()))
        })
    }
}

impl Summary {
    /// A summary of so many failures and answers; `latency` gives the one of a rank, from 0 for the fastest.
    pub(super) fn new(
        failures: u64,
        answers: u64,
        mut latency: impl FnMut(u64) -> Option<Duration>,
    ) -> Self {
        let samples = failures + answers;
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let uptime = (samples > 0).then(|| answers as f64 / samples as f64);
        // The nearest rank.
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
        fn the_summary_is_that_of_the_newest_samples_sorted(
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
                ring.summary(at(from)),
                Summary {
                    samples: since.len() as u64,
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
    fn what_was_restored_makes_room_first_and_is_not_what_was_taken() {
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
