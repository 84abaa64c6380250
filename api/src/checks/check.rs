//! A check: a target, and when and how often it is probed.

use std::{
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use super::{
    certificates::Expiry, check_probe::CheckProbe, clients::Clients, target::Target,
    tls_options::TlsOptions,
};

/// A target that is probed periodically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name, unique in a service: 1 to 63 lower-case letters, digits, `-` and `_`.
    pub name: String,
    /// The name that people see instead of `name`.
    pub display_name: Option<String>,
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
    /// How its probes use TLS.
    pub tls: TlsOptions,
    /// The group in which the status page shows it.
    pub group: Option<String>,
    /// Whether the page and the API hide the target.
    pub hide_target: bool,
}

impl Check {
    /// The name that people see.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.display_name.as_deref().unwrap_or(&self.name)
    }

    /// Creates the probe of this check. It is created once, because some kinds keep a connection between two probes.
    #[must_use]
    pub fn probe(&self, clients: &Clients) -> CheckProbe {
        CheckProbe::new(self.target.clone(), self.tls.clone(), clients.clone())
    }

    /// Why the check is degraded although the probe at `now` succeeded after `took`, with certificates that expire at `expiry`.
    pub(crate) fn warning(
        &self,
        now: SystemTime,
        took: Duration,
        expiry: Option<&Expiry>,
    ) -> Option<String> {
        let slow = self.degraded_above.filter(|limit| took > *limit);
        let slow = slow.map(|limit| {
            let limit = humantime::format_duration(limit);
            format!("slow response: {took:.2?}, more than {limit}")
        });
        let expiry = expiry.and_then(|expiry| expiry.warning(self.tls.valid_for, now));
        match (expiry, slow) {
            (Some(expiry), Some(slow)) => Some(format!("{expiry}; {slow}")),
            (one, other) => one.or(other),
        }
    }
}
