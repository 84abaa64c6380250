//! Aggregates many samples: the number of failures, and a latency histogram with an error of at most 5 %.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::{
    ring::{CAPACITY, Summary},
    sample::{FAILED, Sample},
};

/// The growth of the histogram bins: each bin is 10 % wider than the previous one. So the middle of a bin differs by at most 4.8
/// % from every latency in it, and all latencies fit into 233 bins, whose index is one byte.
const GROWTH: f64 = 1.1;

/// The aggregated samples of a period. Merging the roll-ups of shorter periods gives the same result as adding their samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollup {
    failures: u32,
    /// The number of latencies per bin, without empty bins.
    latencies: BTreeMap<u8, u32>,
}

/// The stored form of a roll-up: the number of failures, and the bins in order.
pub(super) type Row = (u32, Vec<(u8, u32)>);

impl Rollup {
    /// Adds a sample.
    pub fn add(&mut self, sample: Sample) {
        let count = if sample.latency == FAILED {
            &mut self.failures
        } else {
            self.latencies.entry(bin(sample.latency)).or_default()
        };
        *count = count.saturating_add(1);
    }

    /// Adds failed samples.
    pub(super) fn add_failures(&mut self, count: u32) {
        self.failures = self.failures.saturating_add(count);
    }

    /// Adds samples whose latency is in `bin`.
    pub(super) fn add_answers(&mut self, bin: u8, count: u32) {
        let sum = self.latencies.entry(bin).or_default();
        *sum = sum.saturating_add(count);
    }

    /// The number of latencies in each bin that is not empty.
    pub(super) fn bins(&self) -> impl Iterator<Item = (u8, u32)> {
        self.latencies.iter().map(|(bin, count)| (*bin, *count))
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.add_failures(other.failures);
        for (bin, more) in other.bins() {
            self.add_answers(bin, more);
        }
    }

    /// The number of failed samples.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Statistics of the samples; latencies have an error of at most 5 %.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let answers = self.latencies.values().map(|count| u64::from(*count)).sum();
        Summary::new(u64::from(self.failures), answers, |rank| {
            let mut below = 0;
            let (bin, _) = self.latencies.iter().find(|(_, count)| {
                below += u64::from(**count);
                below > rank
            })?;
            Some(middle(*bin))
        })
    }

    /// Reconstructs samples, spread evenly over the `seconds` from `start` on; their original order is lost.
    pub(super) fn samples(
        &self,
        start: u32,
        seconds: u32,
    ) -> impl DoubleEndedIterator<Item = Sample> {
        let failed = (0..self.failures).map(|_| FAILED);
        let answered = self.latencies.iter().flat_map(|(bin, count)| {
            let latency = Sample::new(SystemTime::UNIX_EPOCH, Some(middle(*bin))).latency;
            (0..*count).map(move |_| latency)
        });
        // A ring cannot hold more.
        let latencies: Vec<u32> = failed.chain(answered).take(CAPACITY).collect();
        let count = latencies.len().max(1) as u64;
        latencies
            .into_iter()
            .enumerate()
            .map(move |(index, latency)| {
                let after = u64::from(seconds) * index as u64 / count;
                Sample {
                    seconds: start.saturating_add(u32::try_from(after).unwrap_or(0)),
                    latency,
                }
            })
    }

    pub(super) fn row(&self) -> Row {
        (self.failures, self.bins().collect())
    }
}

impl From<Row> for Rollup {
    fn from((failures, bins): Row) -> Self {
        Self {
            failures,
            latencies: bins.into_iter().collect(),
        }
    }
}

/// The bin of a latency in microseconds.
pub(super) fn bin(latency: u32) -> u8 {
    let bin = f64::from(latency.max(1)).log(GROWTH).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to 233"
    )]
    let bin = bin as u8;
    bin
}

/// The latency with the same relative distance to both ends of a bin.
fn middle(bin: u8) -> Duration {
    Duration::from_secs_f64(2.0 * GROWTH.powi(bin.into()) / (GROWTH + 1.0) / 1e6)
}

/// The period that a roll-up covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// One minute, for windows of up to six hours.
    Minute,
    /// One hour, for windows of up to fifteen days.
    Hour,
    /// One day in UTC, for longer windows.
    Day,
}

impl Resolution {
    /// From the finest to the coarsest.
    pub(super) const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// The resolution that divides `window` into at most 367 roll-ups.
    #[must_use]
    pub const fn of(window: Duration) -> Self {
        const HOUR: Duration = Duration::from_secs(60 * 60);
        if window.as_millis() <= 6 * HOUR.as_millis() {
            Self::Minute
        } else if window.as_millis() <= 15 * 24 * HOUR.as_millis() {
            Self::Hour
        } else {
            Self::Day
        }
    }

    /// The number of seconds that a roll-up covers.
    #[must_use]
    pub const fn seconds(self) -> u32 {
        match self {
            Self::Minute => 60,
            Self::Hour => 60 * 60,
            Self::Day => 24 * 60 * 60,
        }
    }

    /// How many periods with results are kept on disk: those of the windows that the roll-ups are used for, and a reserve, because
    /// each jump of the clock can add a period that did not pass.
    pub(super) const fn kept(self) -> u32 {
        match self {
            // The ring is restored from the minutes of a day after a restart.
            Self::Minute => 1500,
            Self::Hour | Self::Day => 400,
        }
    }

    /// The start of the roll-up that contains `moment`, both in seconds since the epoch.
    #[must_use]
    pub const fn start(self, moment: u32) -> u32 {
        moment - moment % self.seconds()
    }

    /// Adds each sample to its roll-up.
    pub(crate) fn group(
        self,
        samples: impl IntoIterator<Item = Sample>,
        rollups: &mut BTreeMap<u32, Rollup>,
    ) {
        for sample in samples {
            rollups
                .entry(self.start(sample.seconds))
                .or_default()
                .add(sample);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::history::ring::{Percentiles, milliseconds};

    /// Unordered samples of three days, with latencies of all sizes.
    fn samples() -> impl Strategy<Value = Vec<Sample>> {
        let latency = prop_oneof![
            1 => Just(FAILED),
            4 => (0_u32..32, any::<u32>()).prop_map(|(size, of)| (of >> size).min(FAILED - 1)),
        ];
        let sample = (1_800_000_000_u32..1_800_259_200, latency)
            .prop_map(|(seconds, latency)| Sample { seconds, latency });
        vec(sample, 0..300)
    }

    /// Compares the roll-up with the sorted samples.
    fn check(rollup: &Rollup, samples: &[Sample]) {
        let mut latencies: Vec<_> = samples.iter().filter_map(Sample::latency).collect();
        latencies.sort_unstable();
        let summary = rollup.summary();
        assert_eq!(summary.samples, samples.len() as u64);
        assert_eq!(rollup.failures() as usize, samples.len() - latencies.len());
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let uptime = latencies.len() as f64 / samples.len() as f64;
        assert_eq!(summary.uptime, (!samples.is_empty()).then_some(uptime));
        assert_eq!(summary.latency_ms.is_some(), !latencies.is_empty());
        if let Some(Percentiles { p50, p95, p99 }) = summary.latency_ms {
            for (share, found) in [(50, p50), (95, p95), (99, p99)] {
                let exact = latencies[(latencies.len() * share).div_ceil(100) - 1];
                let exact = milliseconds(exact.max(Duration::from_micros(1)));
                // Both are rounded to microseconds.
                assert!(
                    (found - exact).abs() <= 0.05 * exact + 0.001,
                    "p{share} is {found} and not {exact}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn groups_samples_into_roll_ups(samples in samples()) {
            for resolution in Resolution::ALL {
                let mut rollups = BTreeMap::new();
                resolution.group(samples.iter().copied(), &mut rollups);
                prop_assert_eq!(
                    rollups.values().map(|rollup| rollup.summary().samples).sum::<u64>(),
                    samples.len() as u64
                );
                for (start, rollup) in &rollups {
                    let end = start + resolution.seconds();
                    let of: Vec<_> = samples
                        .iter()
                        .filter(|sample| (*start..end).contains(&sample.seconds))
                        .copied()
                        .collect();
                    check(rollup, &of);
                }
            }
        }

        #[test]
        fn merging_finer_roll_ups_gives_the_coarser_ones(samples in samples()) {
            let of = |resolution: Resolution| {
                let mut rollups = BTreeMap::new();
                resolution.group(samples.iter().copied(), &mut rollups);
                rollups
            };
            for (fine, coarse) in [
                (Resolution::Minute, Resolution::Hour),
                (Resolution::Hour, Resolution::Day),
                (Resolution::Minute, Resolution::Day),
            ] {
                let mut merged: BTreeMap<u32, Rollup> = BTreeMap::new();
                for (start, rollup) in of(fine) {
                    merged.entry(coarse.start(start)).or_default().merge(&rollup);
                }
                prop_assert_eq!(merged, of(coarse));
            }
        }

        #[test]
        fn merging_is_commutative(samples in samples(), cut in 0_usize..300) {
            let rollup = |samples: &[Sample]| {
                let mut rollup = Rollup::default();
                samples.iter().for_each(|sample| rollup.add(*sample));
                rollup
            };
            let (left, right) = samples.split_at(cut.min(samples.len()));
            let (mut one, mut other) = (rollup(left), rollup(right));
            one.merge(&rollup(right));
            other.merge(&rollup(left));
            prop_assert_eq!(&one, &other);
            prop_assert_eq!(&one, &rollup(&samples));
            check(&one, &samples);
        }

        #[test]
        fn rows_and_reconstructed_samples_preserve_the_counts(samples in samples()) {
            let mut rollup = Rollup::default();
            samples.iter().for_each(|sample| rollup.add(*sample));
            prop_assert_eq!(&Rollup::from(rollup.row()), &rollup);
            let mut again = Rollup::default();
            for sample in rollup.samples(60, 60) {
                prop_assert!((60..120).contains(&sample.seconds));
                again.add(sample);
            }
            prop_assert_eq!(again.failures(), rollup.failures());
            prop_assert_eq!(again.summary().samples, rollup.summary().samples);
        }
    }

    #[test]
    fn the_middle_of_the_bin_is_close_to_every_latency() {
        for latency in (0..32).flat_map(|size| [u32::MAX >> size, 1 << size, 3 << (size / 2)]) {
            let latency = latency.min(FAILED - 1);
            let middle = middle(bin(latency)).as_secs_f64() * 1e6;
            let exact = f64::from(latency);
            assert!(
                (middle - exact).abs() <= 0.05 * exact,
                "{latency}: {middle}"
            );
        }
        assert_eq!((bin(0), bin(1)), (0, 0));
        assert_eq!(bin(FAILED - 1), 233);
    }

    #[test]
    fn selects_a_resolution_whose_roll_ups_cover_the_window() {
        let hour = 60 * 60_u32;
        for (seconds, resolution) in [
            (1, Resolution::Minute),
            (hour, Resolution::Minute),
            (6 * hour, Resolution::Minute),
            (6 * hour + 1, Resolution::Hour),
            (15 * 24 * hour, Resolution::Hour),
            (15 * 24 * hour + 1, Resolution::Day),
            (366 * 24 * hour, Resolution::Day),
        ] {
            assert_eq!(
                Resolution::of(Duration::from_secs(seconds.into())),
                resolution
            );
            assert!(seconds.div_ceil(resolution.seconds()) <= 366);
            assert!(seconds.div_ceil(resolution.seconds()) < resolution.kept());
        }
    }
}
