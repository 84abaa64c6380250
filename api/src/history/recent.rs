//! The results of one check in memory.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::{
    minutes::Minutes,
    ring::{Ring, Summary},
    rollup::{Resolution, Rollup},
    sample::Sample,
};

/// The window of the statistics that are shown with a state.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The newest samples of one check, and roll-ups of its last day.
#[derive(Debug, Default)]
pub struct Recent {
    ring: Ring,
    minutes: Minutes,
}

impl Recent {
    /// Adds the newest sample.
    pub(crate) fn push(&mut self, sample: Sample) {
        self.ring.push(sample);
        self.minutes.add(sample);
    }

    /// Adds the roll-up of a minute before all others.
    pub(crate) fn restore(&mut self, start: u32, rollup: &Rollup) {
        self.minutes.insert(start, rollup);
        if !self.ring.is_full() {
            let samples = rollup.samples(start, Resolution::Minute.seconds());
            self.ring.restore(samples.rev());
        }
    }

    /// Replaces the roll-ups of minutes.
    pub(crate) fn replace_minutes(&mut self, minutes: &BTreeMap<u32, Rollup>) {
        self.minutes = Minutes::default();
        for (start, rollup) in minutes {
            self.minutes.insert(*start, rollup);
        }
    }

    /// The newest samples.
    pub(crate) const fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Statistics of the 24 hours before `now`, and the start of the first minute that has results. Results from while the clock
    /// was ahead are not part of them. Latencies are exact if all samples are in the ring.
    pub(crate) fn day(&self, now: SystemTime) -> (Summary, Option<u32>) {
        let (from, to) = day_before(now);
        let (total, first) = self.minutes.total(from, to);
        let total = total.summary();
        let newest = || {
            let samples = self.ring.since(SystemTime::UNIX_EPOCH);
            samples.filter(move |sample| {
                (from..=to).contains(&Resolution::Minute.start(sample.seconds))
            })
        };
        let complete = newest().count() as u64 == total.samples;
        let summary = if complete {
            Ring::summary(newest())
        } else {
            total
        };
        (summary, first)
    }

    /// The roll-ups from the one that starts at `from` to the one that contains `to`, as far as results are in memory.
    pub(crate) fn read(
        &self,
        resolution: Resolution,
        (from, to): (u32, u32),
    ) -> BTreeMap<u32, Rollup> {
        let mut rollups = BTreeMap::new();
        self.minutes.group(resolution, (from, to), &mut rollups);
        // The ring goes back further if the interval is long.
        let before = self.minutes.first().unwrap_or(u32::MAX).min(to);
        let older = self
            .ring
            .since(SystemTime::UNIX_EPOCH)
            .filter(|sample| (from..before).contains(&sample.seconds));
        resolution.group(older, &mut rollups);
        rollups
    }
}

/// The start of the first minute of the 24 hours before `now`, and `now`, in seconds since the epoch.
pub(crate) fn day_before(now: SystemTime) -> (u32, u32) {
    let begin = now.checked_sub(DAY).unwrap_or(SystemTime::UNIX_EPOCH);
    let seconds = |time| Sample::new(time, None).seconds;
    (Resolution::Minute.start(seconds(begin)), seconds(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_800_000_000;

    fn time(seconds: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into())
    }

    /// A check that was probed at this interval for this time.
    fn probed(interval: u32, seconds: u32) -> Recent {
        let mut recent = Recent::default();
        for before in (0..seconds / interval).rev() {
            let latency = Some(Duration::from_millis(20));
            recent.push(Sample::new(time(NOW - before * interval), latency));
        }
        recent
    }

    fn samples(recent: &Recent, seconds: u32) -> u64 {
        let rollups = recent.read(Resolution::Hour, (NOW - seconds, NOW));
        let samples = |rollup: &Rollup| rollup.summary().samples;
        rollups.values().map(samples).sum()
    }

    #[test]
    fn covers_a_day_of_a_check_with_a_short_interval() {
        let day = Resolution::Day.seconds();
        let recent = probed(10, 3 * day);
        let (summary, first) = recent.day(time(NOW));
        assert_eq!(summary.samples, u64::from(day / 10) + 1);
        assert_eq!(first, Some(NOW - day));
        let p50 = summary.latency_ms.unwrap().p50;
        assert!((p50 - 20.0).abs() <= 1.0, "{p50}");
        assert_eq!(samples(&recent, day), summary.samples);
    }

    #[test]
    fn covers_as_many_results_as_the_ring_of_a_check_with_a_long_interval() {
        let (hour, day) = (Resolution::Hour.seconds(), Resolution::Day.seconds());
        let recent = probed(hour, 100 * day);
        assert_eq!(samples(&recent, 100 * day), 1500);
        assert_eq!(samples(&recent, 30 * day), 30 * 24 + 1);
        let (summary, _) = recent.day(time(NOW));
        assert_eq!(summary.samples, 25);
        assert_eq!(summary.latency_ms.unwrap().p99, 20.0);
    }
}
