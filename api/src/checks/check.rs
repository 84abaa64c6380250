//! A check: a target, and when and how often it is probed.

use std::{num::NonZeroU32, time::Duration};

use super::target::Target;

/// A target that is probed periodically.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name, unique in a service: 1 to 63 lower-case letters, digits, `-` and `_`.
    pub name: String,
    /// What is probed.
    pub target: Target,
    /// Whether the service reports an outage while this check is down; otherwise it reports a degradation. `/health` responds
    /// with 200 in both cases.
    pub critical: bool,
    /// The time from the start of one probe to the start of the next.
    pub interval: Duration,
    /// By how much the interval varies at random, so that many checks do not probe in step; less than the interval.
    pub jitter: Duration,
    /// How long a probe may take before it counts as failed.
    pub timeout: Duration,
    /// How many failures in a row make it `down`.
    pub failures: NonZeroU32,
    /// How many successes in a row make it `up` again.
    pub successes: NonZeroU32,
    /// The check is degraded if a successful probe takes longer than this.
    pub degraded_above: Option<Duration>,
}

impl Check {
    /// Why the check is degraded although a probe succeeded after `took`.
    pub(crate) fn warning(&self, took: Duration) -> Option<String> {
        let limit = self.degraded_above.filter(|limit| took > *limit)?;
        Some(format!(
            "slow response: {took:.2?}, more than {}",
            humantime::format_duration(limit)
        ))
    }
}
