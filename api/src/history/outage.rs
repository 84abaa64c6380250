//! An outage of a check.

use std::time::{Duration, SystemTime};

/// A period in which a check was down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When the probe started after which the check was down.
    pub start: SystemTime,
    /// When the probe started after which the check was up again; `None` if it is still down.
    pub end: Option<SystemTime>,
    /// Why that first probe failed.
    pub error: String,
}

/// `time` in whole seconds, as it is stored.
pub(super) fn seconds(time: SystemTime) -> u32 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    })
}

/// The time of [`seconds`].
pub(super) fn time(seconds: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into())
}
