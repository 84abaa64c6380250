//! Where the states of checks changed: the newest are kept, and told to whoever listens.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::Serialize;
use tokio::sync::broadcast;
use utoipa::ToSchema;

use crate::{state::State, time::rfc3339};

/// How many are kept for those who come back.
const KEPT: usize = 256;

/// A check whose state changed.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Change {
    /// The check's name.
    pub check: String,
    /// Its state before.
    pub from: State,
    /// Its state now.
    pub to: State,
    /// When the answer that decided it was asked for.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub time: SystemTime,
    /// Why it is down.
    pub error: Option<String>,
}

/// A change as it is sent.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its number, from 1.
    pub number: u64,
    /// The change as JSON.
    pub data: Arc<str>,
}

/// All changes since the service started.
#[derive(Debug)]
pub struct Changes {
    /// Tells the numbers of this process from those of an earlier one.
    run: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    newest: u64,
    events: VecDeque<Event>,
    /// Nobody can be told any more once this is gone.
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
            "the state of a check changed"
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
        // Nobody listens: that is no error.
        let _ = kept.listeners.send(event);
    }

    /// The id of an event, as in `Last-Event-ID`.
    #[must_use]
    pub fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.run)
    }

    /// What was missed after `last`, an id that this process or another gave, and what comes from now on. Nothing was missed, as far as
    /// can be said, where the id is of another process.
    #[must_use]
    pub fn listen(&self, last: Option<&str>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let seen = last
            .and_then(|id| id.split_once('-'))
            .filter(|(run, _)| run.parse() == Ok(self.run))
            .and_then(|(_, number)| number.parse::<u64>().ok());
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
