//! What long preparations say while they run. Only `report` prints it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Hears of each part of a long preparation.
pub trait Progress: Send + Sync {
    /// A part that takes more than a moment begins; `what` says how long it usually takes.
    fn begin(&self, what: &str);
    /// One line of the output of the tool that is at work.
    fn line(&self, line: &str);
    /// The part ended well.
    fn done(&self, what: &str, took: Duration);
    /// Something that the user has to know, now.
    fn notice(&self, text: &str);
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str) {}
    fn line(&self, _: &str) {}
    fn done(&self, _: &str, _: Duration) {}
    fn notice(&self, _: &str) {}
}

/// Keeps the last notice, for whoever makes something else of it.
#[derive(Debug, Default)]
pub struct LastNotice(Mutex<String>);

impl LastNotice {
    /// Its text; empty where there was none.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for LastNotice {
    fn begin(&self, _: &str) {}
    fn line(&self, _: &str) {}
    fn done(&self, _: &str, _: Duration) {}
    fn notice(&self, text: &str) {
        text.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
