//! The bars of the last results, as SVG paths.

use std::time::SystemTime;

use super::{age, digits, latency};
use crate::history::{Ring, Sample, milliseconds};

/// The number of results that are shown.
const RESULTS: usize = 60;
/// The horizontal distance between results.
const STEP: usize = 4;
/// The vertical position of the base line: latencies are above it, failures below.
const BASE: f64 = 20.0;

/// The last results of a check: a bar for each success, whose height is its latency, and a mark for each failure.
pub(super) struct Bars {
    /// One upward line per successful probe.
    pub answered: String,
    /// One downward line per failed probe.
    pub failed: String,
    /// The text alternative.
    pub description: String,
    /// The end of the vertical axis: the highest latency.
    pub highest: Option<String>,
    /// The start of the horizontal axis: the age of the oldest result.
    pub oldest: Option<String>,
    /// The results for the script: the time of the newest one in seconds since the epoch, then of each result, oldest first, how many
    /// seconds it is older, and its latency in milliseconds unless it failed.
    pub results: String,
}

impl Bars {
    pub(super) fn new(ring: &Ring, now: SystemTime) -> Self {
        let samples: Vec<Sample> = ring.since(SystemTime::UNIX_EPOCH).collect();
        let samples = samples.split_at(samples.len().saturating_sub(RESULTS)).1;
        let latencies = || samples.iter().filter_map(Sample::latency);
        let slowest = latencies().max().unwrap_or_default();
        let newest = samples.last().map_or(0, Sample::seconds);
        let (mut answered, mut failed) = (String::new(), String::new());
        let mut results = newest.to_string();
        for (place, sample) in samples.iter().enumerate() {
            // The newest result is at the right end.
            let x = (RESULTS - samples.len() + place) * STEP + STEP / 2;
            results += &format!(" {}", newest.saturating_sub(sample.seconds()));
            match sample.latency() {
                Some(latency) => {
                    let share = latency.as_secs_f64() / slowest.as_secs_f64().max(1e-6);
                    answered += &format!("M{x} {BASE}v-{:.1}", (share * BASE).max(1.5));
                    results += &format!(",{}", digits(milliseconds(latency)));
                }
                None => failed += &format!("M{x} {}v5", BASE + 1.0),
            }
        }
        let description = match (samples.len(), latencies().min()) {
            (0, _) => "No results yet".into(),
            (count, None) => format!("Last {count} results: all failed"),
            (count, Some(fastest)) => format!(
                "Last {count} results: {}; {} to {}",
                match count - latencies().count() {
                    0 => "none failed".to_owned(),
                    some => format!("{some} failed"),
                },
                latency(milliseconds(fastest)),
                latency(milliseconds(slowest)),
            ),
        };
        Self {
            answered,
            failed,
            description,
            highest: (latencies().next()).map(|_| latency(milliseconds(slowest))),
            oldest: samples.first().map(|sample| age(now, sample.at())),
            results,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn bars_show_the_newest_results_at_the_right_end_and_failures_below_the_line() {
        let mut ring = Ring::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let bars = Bars::new(&ring, at(0));
        assert_eq!(bars.description, "No results yet");
        assert_eq!(
            (bars.highest, bars.oldest, &*bars.results),
            (None, None, "0")
        );
        for (second, milliseconds) in [(0, 1000), (60, 10), (120, 20)] {
            let latency = Duration::from_millis(milliseconds);
            ring.push(Sample::new(at(1000 + second), Some(latency)));
        }
        ring.push(Sample::new(at(1180), None));
        let bars = Bars::new(&ring, at(1190));
        assert_eq!(bars.answered, "M226 20v-20.0M230 20v-1.5M234 20v-1.5");
        assert_eq!(bars.failed, "M238 21v5");
        assert_eq!(
            bars.description,
            "Last 4 results: 1 failed; 10.0 ms to 1000 ms"
        );
        assert_eq!(bars.highest.as_deref(), Some("1000 ms"));
        assert_eq!(bars.oldest.as_deref(), Some("3 min"));
        assert_eq!(bars.results, "1180 180,1000 120,10.0 60,20.0 0");
        for _ in 0..2 * RESULTS {
            ring.push(Sample::new(at(1180), None));
        }
        let bars = Bars::new(&ring, at(1190));
        assert_eq!(bars.answered, "");
        assert_eq!(bars.failed.matches('M').count(), RESULTS);
        assert_eq!(bars.description, "Last 60 results: all failed");
        assert_eq!(bars.highest, None);
    }
}
