//! The page of a check: its state, its uptime and latency in several windows, and its outages.

use std::time::SystemTime;

use askama::Template;

use super::{
    SCRIPT, STYLE, age, breakable, display_time, latency, machine_time, may_be_cut, missing,
    percent, symbol, word,
};
use crate::{
    board::Status,
    history::{Outage, Summary},
    state::State,
};

/// The horizontal distance between bars.
const STEP: u32 = 4;
/// The height of the charts.
const HEIGHT: f64 = 100.0;
/// The minimum height of a bar, so that it can be seen.
const MIN_BAR: f64 = 2.0;

/// The results of a check in a window.
#[derive(Debug)]
pub struct Window {
    /// The value of the query parameter `window`.
    pub name: &'static str,
    /// The length for people.
    pub label: &'static str,
    /// The start of the first bucket.
    pub from: SystemTime,
    /// The end.
    pub to: SystemTime,
    /// The length of a bucket in seconds.
    pub resolution_seconds: u32,
    /// When the first result was, if results do not cover the window.
    pub known_since: Option<SystemTime>,
    /// Statistics of the whole window.
    pub summary: Summary,
    /// The buckets that contain probes, oldest first.
    pub buckets: Vec<Bucket>,
}

/// The results of a part of a window.
#[derive(Debug)]
pub struct Bucket {
    /// The start.
    pub start: SystemTime,
    /// Statistics.
    pub summary: Summary,
}

/// Renders the page of the check with this status; `selected` is the index of the window that is shown as charts. Links
/// start with `base`.
///
/// # Errors
/// When the template fails, which is not expected.
pub fn render_check(
    base: &str,
    (title, environment): (&str, &str),
    status: &Status,
    windows: &[Window],
    selected: usize,
    outages: &[Outage],
    is_stored: bool,
) -> askama::Result<String> {
    CheckPage {
        style: STYLE,
        script: SCRIPT,
        base,
        title,
        environment,
        status,
        windows,
        selected,
        outages,
        is_stored,
        now: SystemTime::now(),
    }
    .render()
}

#[derive(Template)]
#[template(path = "check.html")]
struct CheckPage<'a> {
    style: &'static str,
    script: &'static str,
    base: &'a str,
    title: &'a str,
    environment: &'a str,
    status: &'a Status,
    windows: &'a [Window],
    selected: usize,
    outages: &'a [Outage],
    /// Whether outages are stored on disk.
    is_stored: bool,
    now: SystemTime,
}

impl CheckPage<'_> {
    const fn symbol(&self) -> &'static str {
        symbol(self.status.state)
    }

    const fn word(&self) -> &'static str {
        word(self.status.state)
    }

    /// The colour of the favicon.
    const fn colour(&self) -> &'static str {
        match self.status.state {
            State::Pending => "6e7781",
            State::Up => "1f883d",
            State::Degraded => "bf8700",
            State::Down => "cf222e",
        }
    }

    fn shown(&self) -> Option<&Window> {
        self.windows.get(self.selected)
    }

    fn selected_name(&self) -> &'static str {
        self.shown().map_or("24h", |window| window.name)
    }
}

/// The charts of a window, as SVG paths.
struct Plot {
    slots: u32,
    /// The highest latency.
    highest: String,
    median: String,
    slowest: String,
    answered: String,
    failed: String,
}

impl Plot {
    const fn width(&self) -> u32 {
        self.slots * STEP
    }
}

impl Window {
    fn uptime(&self) -> String {
        uptime(&self.summary)
    }

    fn percentile(&self, share: u32) -> String {
        percentile(&self.summary, share)
    }

    /// The place of a bucket in the charts. The first bucket may start within its minute, hour or day.
    fn slot(&self, bucket: &Bucket) -> u32 {
        self.period(bucket.start)
            .saturating_sub(self.period(self.from))
    }

    /// The number of the minute, hour or day that contains `time`, since the epoch.
    fn period(&self, time: SystemTime) -> u32 {
        let since = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX) / self.resolution_seconds.max(1)
    }

    const fn bucket_label(&self) -> &'static str {
        match self.resolution_seconds {
            60 => "Minute",
            3600 => "Hour",
            _ => "Day",
        }
    }

    fn bucket_name(&self, bucket: &Bucket) -> String {
        let time = display_time(&bucket.start);
        let length = if self.resolution_seconds >= 86_400 {
            "2026-12-01"
        } else {
            "2026-12-01 12:00"
        };
        time.chars().take(length.len()).collect()
    }

    fn plot(&self) -> Plot {
        let slots = self.period(self.to).saturating_sub(self.period(self.from)) + 1;
        let latencies = || self.buckets.iter().filter_map(|it| it.summary.latency_ms);
        let highest = latencies().map(|it| it.p95).fold(0.0, f64::max);
        let mut plot = Plot {
            slots,
            highest: if highest > 0.0 {
                latency(highest)
            } else {
                String::new()
            },
            median: String::new(),
            slowest: String::new(),
            answered: String::new(),
            failed: String::new(),
        };
        for bucket in &self.buckets {
            let x = self.slot(bucket).min(slots - 1) * STEP + STEP / 2;
            if let Some(latency) = bucket.summary.latency_ms {
                let up = |of: f64| (of / highest.max(1e-6) * HEIGHT).max(MIN_BAR);
                plot.median += &format!("M{x} {HEIGHT}v-{:.1}", up(latency.p50));
                plot.slowest += &format!("M{x} {HEIGHT}v-{:.1}", up(latency.p95));
            }
            if let Some(uptime) = bucket.summary.uptime {
                // A single failure is visible, too.
                let failed = if uptime < 1.0 {
                    ((1.0 - uptime) * HEIGHT).max(4.0 * MIN_BAR)
                } else {
                    0.0
                };
                if failed < HEIGHT {
                    plot.answered += &format!("M{x} {HEIGHT}V{failed:.1}");
                }
                if failed > 0.0 {
                    plot.failed += &format!("M{x} 0v{failed:.1}");
                }
            }
        }
        plot
    }
}

fn uptime(summary: &Summary) -> String {
    percent(summary).unwrap_or_else(missing)
}

fn percentile(summary: &Summary, share: u32) -> String {
    let percentiles = summary.latency_ms.map(|it| match share {
        50 => it.p50,
        95 => it.p95,
        _ => it.p99,
    });
    percentiles.map_or_else(missing, latency)
}

fn duration(outage: &Outage) -> String {
    outage
        .end
        .map_or_else(|| "ongoing".into(), |end| age(end, outage.start))
}
