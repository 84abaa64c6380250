//! The background task of a connection that a probe keeps open.

use tokio::task::JoinHandle;

/// The task that sends and receives on a connection; dropping the driver aborts the task.
pub(super) struct Driver(JoinHandle<()>);

impl Driver {
    /// Spawns `driver` on the current runtime.
    pub(super) fn start(driver: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(driver))
    }

    /// Whether the task has ended, which means that the connection is lost.
    pub(super) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
