//! The end of the service: from the first signal on it takes no new work, and says so.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Whether the service is about to end.
#[derive(Debug)]
pub struct Drain {
    /// Looked at by every request: no lock.
    begun: AtomicBool,
    streams: watch::Sender<bool>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            begun: AtomicBool::new(false),
            streams: watch::Sender::new(false),
        }
    }
}

impl Drain {
    /// From now on the service is not ready, and connections are closed after their next answer.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Whether it has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Ends the event streams, which would never end by themselves.
    pub fn end_streams(&self) {
        self.streams.send_replace(true);
    }

    /// Turns true when event streams have to end.
    #[must_use]
    pub fn streams_end(&self) -> watch::Receiver<bool> {
        self.streams.subscribe()
    }
}
