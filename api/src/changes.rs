//! The log of state changes: keeps the newest changes and sends them to listeners.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::Serialize;
use tokio::sync::broadcast;
use utoipa::ToSchema;

use crate::{state::State, time::rfc3339};

/// The number of changes that are kept for clients that reconnect.
const KEPT: usize = 256;

/// A change of the state of a check.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Change {
    /// The name of the check.
    pub check: String,
    /// The name of the check for people.
    pub display_name: String,
    /// The previous state.
    pub from: State,
    /// The new state.
    pub to: State,
    /// When the probe started that caused the change.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub time: SystemTime,
    /// Why the last probe failed; `null` if it succeeded.
    pub error: Option<String>,
    /// Why the check is degraded although the last probe succeeded; `null` if there is no reason.
    pub warning: Option<String>,
}

/// A change in serialized form.
#[derive(Clone, Debug)]
pub struct Event {
    /// The sequence number within this process, starting at 1.
    pub number: u64,
    /// The change as JSON.
    pub data: Arc<str>,
}

/// All changes since the service started.
#[derive(Debug)]
pub struct Changes {
    /// The start of this process, to tell its sequence numbers from those of an earlier process.
    run: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    newest: u64,
    events: VecDeque<Event>,
    listeners: broadcast::Sender<Event>,
}

impl Changes {
    pub(crate) fn new(started: SystemTime) -> Self {
        let run = started
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Self {
            run,
            kept: Mutex::new(Kept {
                newest: 0,
                events: VecDeque::new(),
                listeners: broadcast::channel(KEPT).0,
            }),
        }
    }

    pub(crate) fn add(&self, change: &Change) {
        tracing::info!(
            check = change.check,
            from = ?change.from,
            to = ?change.to,
            error = change.error,
            warning = change.warning,
            "check state changed"
        );
        let Ok(data) = serde_json::to_string(change) else {
            return;
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.newest += 1;
        let event = Event {
            number: kept.newest,
            data: data.into(),
        };
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(event.clone());
        // Fails if there are no listeners, which is not an error.
        let _ = kept.listeners.send(event);
    }

    /// The ID of an event, as in `Last-Event-ID`.
    #[must_use]
    pub fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.run)
    }

    /// The number in an ID of [`Self::id`]; `None` for an ID of another process.
    #[must_use]
    pub fn number(&self, id: &str) -> Option<u64> {
        let (run, number) = id.split_once('-')?;
        (run.parse() == Ok(self.run)).then(|| number.parse().ok())?
    }

    /// Returns the events after the event with the ID `last`, and a receiver of future events. An ID of another process counts as
    /// no ID: there are no missed events then.
    #[must_use]
    pub fn listen(&self, last: Option<&str>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let seen = last.and_then(|id| self.number(id));
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = seen.map_or_else(Vec::new, |seen| {
            kept.events
                .iter()
                .filter(|event| event.number > seen)
                .cloned()
                .collect()
        });
        (missed, kept.listeners.subscribe())
    }
}
