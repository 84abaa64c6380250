//! The results of about a day in memory, by minute.

use std::collections::BTreeMap;

use super::{
    rollup::{Resolution, Rollup, bin},
    sample::{FAILED, Sample},
};

/// How many hours with results are kept: those of a day, which are up to 25, and a reserve, because a jump of the clock can add one
/// that did not pass.
const KEPT: usize = 28;

/// The maximum number of hours, including later ones, from while the clock was ahead.
const MAX: usize = 2 * KEPT;

/// Stands for failures in place of a bin of latencies.
const FAILURES: u8 = u8::MAX;

/// The roll-ups of minutes. Each takes three bytes per bin, so that a check that is probed every 10 s needs about 15 KiB for a day.
#[derive(Debug, Default)]
pub(super) struct Minutes {
    /// Sorted by their start.
    hours: Vec<Hour>,
}

#[derive(Debug)]
struct Hour {
    start: u32,
    counts: Vec<Count>,
}

/// A number of results with about the same latency, or of failures. A larger number is split.
#[derive(Clone, Copy, Debug)]
struct Count {
    /// The minute of the hour.
    minute: u8,
    bin: u8,
    count: u8,
}

impl Minutes {
    /// Adds a result. Removes hours that have aged; their number shows how much time has passed even if the clock is wrong.
    pub(super) fn add(&mut self, sample: Sample) {
        let bin = match sample.latency {
            FAILED => FAILURES,
            latency => bin(latency),
        };
        self.count(sample.seconds, bin, 1);
    }

    /// Adds the roll-up of the minute that starts at `start`.
    pub(super) fn insert(&mut self, start: u32, rollup: &Rollup) {
        self.count(start, FAILURES, rollup.failures());
        for (bin, count) in rollup.bins() {
            self.count(start, bin, count);
        }
    }

    fn count(&mut self, seconds: u32, bin: u8, mut count: u32) {
        let start = Resolution::Hour.start(seconds);
        let minute = u8::try_from((seconds - start) / Resolution::Minute.seconds()).unwrap_or(0);
        let counts = self.hour(start);
        // A result is usually of the newest minute.
        let before = counts.iter_mut().rev();
        let mut before = before.take_while(|it| it.minute == minute);
        if let Some(before) = before.find(|it| it.bin == bin && it.count < u8::MAX) {
            let more = count.min(u32::from(u8::MAX - before.count));
            before.count = before.count.saturating_add(u8::try_from(more).unwrap_or(0));
            count -= more;
        }
        while count > 0 {
            let part = u8::try_from(count).unwrap_or(u8::MAX);
            counts.push(Count {
                minute,
                bin,
                count: part,
            });
            count -= u32::from(part);
        }
    }

    fn hour(&mut self, start: u32) -> &mut Vec<Count> {
        let at = self.hours.partition_point(|hour| hour.start < start);
        if self.hours.get(at).is_none_or(|hour| hour.start != start) {
            // Usually that one is complete now.
            if let Some(before) = at.checked_sub(1).and_then(|at| self.hours.get_mut(at)) {
                before.counts.shrink_to_fit();
            }
            let counts = Vec::new();
            self.hours.insert(at, Hour { start, counts });
            self.hours.truncate(MAX.max(at + 1));
            let aged = (at + 1).saturating_sub(KEPT);
            self.hours.drain(..aged);
            return &mut self.hours[at - aged].counts;
        }
        &mut self.hours[at].counts
    }

    /// The start of the first hour.
    pub(super) fn first(&self) -> Option<u32> {
        self.hours.first().map(|hour| hour.start)
    }

    /// The sum of the minutes from the one that starts at `from` to the one that contains `to`, and the start of the first one
    /// that has results.
    pub(super) fn total(&self, from: u32, to: u32) -> (Rollup, Option<u32>) {
        // Much faster than adding to a roll-up.
        let mut sums = [0_u32; 1 + FAILURES as usize];
        let mut first: Option<u32> = None;
        for (start, count) in self.between(from, to) {
            if let Some(sum) = sums.get_mut(usize::from(count.bin)) {
                *sum = sum.saturating_add(count.count.into());
            }
            first = Some(first.map_or(start, |first| first.min(start)));
        }
        let mut total = Rollup::default();
        for (bin, sum) in (0..=FAILURES).zip(sums).filter(|(_, sum)| *sum > 0) {
            add(&mut total, bin, sum);
        }
        (total, first)
    }

    /// Adds the minutes from the one that starts at `from` to the one that contains `to` to the roll-ups that they are part of.
    pub(super) fn group(
        &self,
        resolution: Resolution,
        (from, to): (u32, u32),
        rollups: &mut BTreeMap<u32, Rollup>,
    ) {
        for (start, count) in self.between(from, to) {
            let rollup = rollups.entry(resolution.start(start)).or_default();
            add(rollup, count.bin, count.count.into());
        }
    }

    /// The counts with the start of their minute.
    fn between(&self, from: u32, to: u32) -> impl Iterator<Item = (u32, Count)> {
        self.hours
            .iter()
            .filter(move |hour| (Resolution::Hour.start(from)..=to).contains(&hour.start))
            .flat_map(|hour| {
                hour.counts.iter().map(|count| {
                    let after = u32::from(count.minute) * Resolution::Minute.seconds();
                    (hour.start + after, *count)
                })
            })
            .filter(move |(start, _)| (from..=to).contains(start))
    }
}

fn add(rollup: &mut Rollup, bin: u8, count: u32) {
    if bin == FAILURES {
        rollup.add_failures(count);
    } else {
        rollup.add_answers(bin, count);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    const HOUR: u32 = Resolution::Hour.seconds();
    const DAY: u32 = Resolution::Day.seconds();
    const START: u32 = 1_800_000_000 - 1_800_000_000 % DAY;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn total_and_groups_match_the_samples(
            samples in vec((0..DAY, option::weighted(0.9, 0_u32..5_000_000)), 0..500),
            from in 0..DAY / 60,
            to in 0..DAY,
            repeated in 0..1000_u32,
        ) {
            let samples = || samples.iter().map(|(after, latency)| Sample {
                seconds: START + after,
                latency: latency.unwrap_or(FAILED),
            });
            let (from, to) = (START + from * 60, START + to);
            let mut minutes = Minutes::default();
            samples().for_each(|sample| minutes.add(sample));
            let mut many = Rollup::default();
            (0..repeated).for_each(|_| many.add(Sample { seconds: START, latency: 7 }));
            minutes.insert(START, &many);

            let mut expected: BTreeMap<u32, Rollup> = BTreeMap::new();
            Resolution::Minute.group(samples(), &mut expected);
            if repeated > 0 {
                expected.entry(START).or_default().merge(&many);
            }
            expected.retain(|start, _| (from..=to).contains(start));
            let mut all = Rollup::default();
            expected.values().for_each(|rollup| all.merge(rollup));
            prop_assert_eq!(minutes.total(from, to), (all, expected.keys().next().copied()));
            let mut found = BTreeMap::new();
            minutes.group(Resolution::Minute, (from, to), &mut found);
            prop_assert_eq!(found, expected);
        }
    }

    /// The number of samples in the day before `now`.
    fn day(minutes: &Minutes, now: u32) -> u64 {
        minutes.total(now - DAY, now).0.summary().samples
    }

    fn add_hours(minutes: &mut Minutes, from: u32, hours: u32) {
        for hour in 0..hours {
            minutes.add(Sample {
                seconds: from + hour * HOUR,
                latency: 1,
            });
        }
    }

    #[test]
    fn keeps_a_day_and_no_more() {
        let mut minutes = Minutes::default();
        add_hours(&mut minutes, START, 1000);
        assert_eq!(day(&minutes, START + 999 * HOUR), 25);
        assert_eq!(minutes.hours.len(), KEPT);
    }

    #[test]
    fn a_jump_of_the_clock_removes_nothing() {
        for ahead in [400 * i64::from(DAY), -400 * i64::from(DAY)] {
            let mut minutes = Minutes::default();
            add_hours(&mut minutes, START, 24);
            let wrong = u32::try_from(i64::from(START) + ahead).unwrap();
            // Twice, each for a moment.
            add_hours(&mut minutes, wrong, 2);
            assert_eq!(day(&minutes, START + 24 * HOUR), 24);
            assert_eq!(day(&minutes, wrong + HOUR), 2);
            add_hours(&mut minutes, START + 24 * HOUR, 1);
            assert_eq!(day(&minutes, START + 24 * HOUR), 25);
        }
        let mut minutes = Minutes::default();
        for days in 1..1000 {
            add_hours(&mut minutes, START + days * DAY, 1);
            add_hours(&mut minutes, START, 1);
        }
        assert!(minutes.hours.len() <= MAX, "{}", minutes.hours.len());
    }
}
