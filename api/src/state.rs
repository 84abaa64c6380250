//! The state of a check.

use std::time::SystemTime;

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
    /// The configured number of consecutive probes failed.
    Down,
}

/// The state of a check as it is stored, so that a restart continues with it. Unknown fields of later versions are ignored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stored {
    state: serde_json::Value,
    /// When the check entered the state.
    pub since: SystemTime,
    /// The number of consecutive results that contradict the state.
    #[serde(default)]
    pub contradictions: u32,
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
}

impl Stored {
    /// Returns `None` for a time before the epoch, which cannot be stored.
    pub(crate) fn to_json(
        state: State,
        since: SystemTime,
        contradictions: u32,
        last: Option<StoredResult>,
    ) -> Option<String> {
        let stored = Self {
            state: serde_json::to_value(state).ok()?,
            since,
            contradictions,
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
