//! Notices jumps of the clock.

use std::time::{Duration, Instant, SystemTime};

/// By how much the wall clock may deviate from the monotonic clock. Adjustments of NTP without a jump are smaller.
const MAX_DRIFT: Duration = Duration::from_secs(10);

/// The wall clock, which may be wrong and jump, and the monotonic clock, read at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    pub(super) wall: SystemTime,
    pub(super) monotonic: Instant,
}

impl Clocks {
    /// Reads both clocks.
    #[must_use]
    pub fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            monotonic: Instant::now(),
        }
    }

    /// The time since `earlier`; `None` if the wall clock has jumped since then.
    #[must_use]
    pub fn since(self, earlier: Self) -> Option<Duration> {
        let elapsed = self.monotonic.saturating_duration_since(earlier.monotonic);
        let expected = earlier.wall.checked_add(elapsed)?;
        let drift = self
            .wall
            .duration_since(expected)
            .unwrap_or_else(|behind| behind.duration());
        (drift <= MAX_DRIFT).then_some(elapsed)
    }
}
