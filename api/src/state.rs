//! The state of a check, and when it changes.

use std::{num::NonZeroU32, time::SystemTime};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The state of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// There are not enough results yet.
    Pending,
    /// The target responds as expected.
    Up,
    /// The target responds as expected, but slowly, or its certificate expires soon. Counts as up in uptimes.
    Degraded,
    /// The configured number of consecutive probes failed.
    Down,
}

/// The state of a check as it is stored, so that a restart continues with it. Unknown fields of later versions are ignored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stored {
    state: serde_json::Value,
    /// When the check entered the state.
    pub since: SystemTime,
    /// The last results in a row.
    #[serde(default)]
    pub streaks: Streaks,
    /// The last result.
    #[serde(default)]
    pub last: Option<StoredResult>,
}

/// The result of a probe as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredResult {
    pub time: SystemTime,
    pub latency_ms: f64,
    pub error: Option<String>,
    #[serde(default)]
    pub warning: Option<String>,
}

impl Stored {
    /// Returns `None` for a time before the epoch, which cannot be stored.
    pub(crate) fn to_json(
        state: State,
        since: SystemTime,
        streaks: Streaks,
        last: Option<StoredResult>,
    ) -> Option<String> {
        let stored = Self {
            state: serde_json::to_value(state).ok()?,
            since,
            streaks,
            last,
        };
        serde_json::to_string(&stored).ok()
    }

    /// The state. One that only a later version has is replaced by what the last result shows.
    pub(crate) fn state(&self) -> State {
        State::deserialize(&self.state).unwrap_or_else(|_| {
            let failed = self.last.as_ref().is_some_and(|last| last.error.is_some());
            if failed { State::Down } else { State::Up }
        })
    }
}

/// How many of the last results in a row were of each kind.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Streaks {
    failed: u32,
    failed_or_degraded: u32,
    succeeded: u32,
    succeeded_without_warning: u32,
}

impl Streaks {
    /// Adds the newest result: `Up`, `Degraded` or `Down`.
    pub(crate) const fn add(&mut self, result: State) {
        let failed = matches!(result, State::Down);
        let plain = matches!(result, State::Up);
        self.failed = longer(self.failed, failed);
        self.failed_or_degraded = longer(self.failed_or_degraded, !plain);
        self.succeeded = longer(self.succeeded, !failed);
        self.succeeded_without_warning = longer(self.succeeded_without_warning, plain);
    }

    /// Continues `earlier`, which these `results` followed: a streak that began before all of them is as much longer.
    pub(crate) const fn follow(&mut self, earlier: Self, results: u64) {
        const fn joined(streak: u32, earlier: u32, results: u64) -> u32 {
            if streak as u64 == results {
                streak.saturating_add(earlier)
            } else {
                streak
            }
        }
        self.failed = joined(self.failed, earlier.failed, results);
        self.failed_or_degraded =
            joined(self.failed_or_degraded, earlier.failed_or_degraded, results);
        self.succeeded = joined(self.succeeded, earlier.succeeded, results);
        self.succeeded_without_warning = joined(
            self.succeeded_without_warning,
            earlier.succeeded_without_warning,
            results,
        );
    }

    /// The state that follows `state`: it gets worse after `failures` consecutive results, and better after `successes`.
    pub(crate) const fn next(
        &self,
        state: State,
        failures: NonZeroU32,
        successes: NonZeroU32,
    ) -> State {
        if self.failed >= failures.get() {
            return State::Down;
        }
        match state {
            // The first success counts at once, because there is no earlier state to flap from.
            State::Pending if self.succeeded_without_warning > 0 => State::Up,
            State::Pending if self.succeeded > 0 => State::Degraded,
            State::Up if self.failed_or_degraded >= failures.get() => State::Degraded,
            State::Degraded | State::Down if self.succeeded_without_warning >= successes.get() => {
                State::Up
            }
            State::Down if self.succeeded >= successes.get() => State::Degraded,
            _ => state,
        }
    }
}

const fn longer(streak: u32, continues: bool) -> u32 {
    if continues {
        streak.saturating_add(1)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The states after each of these results: `+` is a success, `~` a success with a warning, `-` a failure.
    fn states(failures: u32, successes: u32, results: &str) -> String {
        let (mut state, mut streaks) = (State::Pending, Streaks::default());
        let [failures, successes] = [failures, successes].map(|it| NonZeroU32::new(it).unwrap());
        results
            .chars()
            .map(|result| {
                streaks.add(match result {
                    '+' => State::Up,
                    '~' => State::Degraded,
                    _ => State::Down,
                });
                state = streaks.next(state, failures, successes);
                match state {
                    State::Pending => 'p',
                    State::Up => 'u',
                    State::Degraded => 'g',
                    State::Down => 'd',
                }
            })
            .collect()
    }

    #[test]
    fn state_changes_only_after_the_configured_number_of_consecutive_results() {
        for (failures, successes, results, expected) in [
            (1, 1, "+-+-", "udud"),
            (1, 1, "~+~-~-+", "gugdgdu"),
            (3, 2, "+--+---+-++", "uuuuuuddddu"),
            // The first success counts at once, the first failure does not.
            (3, 2, "--+", "ppu"),
            (3, 2, "---+-++", "ppddddu"),
            (3, 2, "-~++", "pggu"),
            // One slow response changes nothing.
            (3, 2, "+~+~~+~~~+~++", "uuuuuuuuggggu"),
            // Failures and warnings together mean that the check is at least degraded.
            (3, 2, "+-~---", "uuuggd"),
            (3, 2, "+~---", "uuugd"),
            // A warning does not keep a check down.
            (3, 2, "---~+++", "ppddguu"),
            (3, 2, "---~~++", "ppddggu"),
        ] {
            assert_eq!(
                states(failures, successes, results),
                expected,
                "{failures} {successes} {results}"
            );
        }
    }
}
