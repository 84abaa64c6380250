//! Progress of long-running preparations. Only the `report` module prints it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Receives the progress of a long-running preparation.
pub trait Progress: Send + Sync {
    /// Called when a part begins. `what` describes it and states its usual duration.
    fn begin(&self, what: &str);
    /// Called for each line of output of the current tool.
    fn line(&self, line: &str);
    /// Called when the part has succeeded.
    fn done(&self, what: &str, took: Duration);
    /// Called when the part has ended without success, and something else is tried.
    fn gave_up(&self, what: &str);
    /// Called with a message that the user should see immediately.
    fn notice(&self, text: &str);
}

/// Discards all progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn gave_up(&self, _: &str) {}
    fn begin(&self, _: &str) {}
    fn line(&self, _: &str) {}
    fn done(&self, _: &str, _: Duration) {}
    fn notice(&self, _: &str) {}
}

/// Keeps only the last notice, for callers that report it in another way.
#[derive(Debug, Default)]
pub struct LastNotice(Mutex<String>);

impl LastNotice {
    /// Returns the last notice, or an empty string if there was none.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for LastNotice {
    fn gave_up(&self, _: &str) {}
    fn begin(&self, _: &str) {}
    fn line(&self, _: &str) {}
    fn done(&self, _: &str, _: Duration) {}
    fn notice(&self, text: &str) {
        text.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
