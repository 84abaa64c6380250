//! The result of one probe.

use std::time::{Duration, SystemTime};

/// The result of one probe, in eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Seconds since the epoch.
    pub(super) seconds: u32,
    /// Microseconds, or `FAILED`.
    pub(super) latency: u32,
}

/// Stands for a failure in place of a latency; latencies are capped below it, at over an hour.
pub(super) const FAILED: u32 = u32::MAX;

impl Sample {
    /// The result of a probe that started at `at`; `latency` is the duration of the probe, `None` if the probe failed.
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

    /// When the probe started, to the second.
    #[must_use]
    pub fn at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.seconds.into())
    }

    /// When the probe started, in seconds since the epoch.
    #[must_use]
    pub const fn seconds(&self) -> u32 {
        self.seconds
    }

    /// The duration of the probe; `None` if the probe failed.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        (self.latency != FAILED).then(|| Duration::from_micros(self.latency.into()))
    }
}
