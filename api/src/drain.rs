//! The shutdown state: from the first signal on, the service reports that it is not ready.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// The shutdown state of the service.
#[derive(Debug)]
pub struct Drain {
    /// Atomic, because every request reads it.
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
    /// Begins the shutdown: from now on the service is not ready, and closes each connection after the next response.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Whether the shutdown has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Ends the event streams, which would otherwise stay open.
    pub fn end_streams(&self) {
        self.streams.send_replace(true);
    }

    /// A value that becomes true when event streams must end.
    #[must_use]
    pub fn streams_end(&self) -> watch::Receiver<bool> {
        self.streams.subscribe()
    }
}
