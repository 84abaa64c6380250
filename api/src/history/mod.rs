//! What the checks said before: the newest samples in memory, and with a data directory a year of roll-ups on the disk.

mod disk;
mod ring;
mod rollup;
mod store;
mod view;

use std::time::{Duration, SystemTime};

pub use ring::{Percentiles, Ring, Summary, milliseconds};
pub use rollup::{Resolution, Rollup};
pub use store::{Store, StoreState};
pub use view::{Bucket, History, Taken};

/// What one question said, in eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Seconds since the epoch.
    seconds: u32,
    /// Microseconds, or `FAILED`.
    latency: u32,
}

/// No latency is that long: over an hour.
const FAILED: u32 = u32::MAX;

impl Sample {
    /// A question asked at `at`, and the time that the answer took; none where it failed.
    #[must_use]
    pub fn new(at: SystemTime, latency: Option<Duration>) -> Self {
        Self {
            seconds: at
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| {
                    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
                }),
            latency: latency.map_or(FAILED, |latency| {
                u32::try_from(latency.as_micros()).map_or(FAILED - 1, |it| it.min(FAILED - 1))
            }),
        }
    }

    /// When the question was asked.
    #[must_use]
    pub fn at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.seconds.into())
    }

    /// How long the answer took; none where the question failed.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        (self.latency != FAILED).then(|| Duration::from_micros(self.latency.into()))
    }
}
