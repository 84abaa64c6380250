//! How a run is ended before its end: by a signal, a limit, a failure or an engine that is gone.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use crate::engine::graphql::unbroken;
use common::failure::{ExitCode, Failure, OrFail};

/// Why a run is being ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGINT or SIGTERM.
    Signal,
    /// The time limit.
    TimeLimit,
    /// `--fail-fast`, after the first failure.
    FailFast,
    /// The engine does not answer any more.
    EngineLost,
}

/// Ends a run before its end; the first reason counts.
#[derive(Clone, Debug, Default)]
pub struct Stopper {
    token: CancellationToken,
    reason: Arc<OnceLock<Stop>>,
}

impl Stopper {
    /// Asks everything to end.
    pub fn stop(&self, reason: Stop) {
        // A second reason comes too late.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// `work`, unless the run is stopped first.
    ///
    /// # Errors
    /// Those of `work`; or that it was cancelled (exit 130) or took too long (exit 124).
    pub async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.token
            .run_until_cancelled(unbroken(work))
            .await
            .unwrap_or_else(|| Err(self.failure()))
    }

    /// Why it was asked to end, if it was.
    #[must_use]
    pub fn reason(&self) -> Option<Stop> {
        self.reason.get().copied()
    }

    /// Ends the run on SIGINT and SIGTERM, from now on.
    ///
    /// # Errors
    /// When this process cannot listen for signals (exit 3).
    pub fn stop_on_signals(&self) -> Result<(), Failure> {
        let stopper = self.clone();
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let mut terminate =
                signal(SignalKind::terminate()).or_environment("cannot listen for signals")?;
            let mut interrupt =
                signal(SignalKind::interrupt()).or_environment("cannot listen for signals")?;
            tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stopper.stop(Stop::Signal);
            });
        }
        #[cfg(not(unix))]
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stopper.stop(Stop::Signal);
            }
        });
        Ok(())
    }

    fn failure(&self) -> Failure {
        match self.reason.get() {
            Some(Stop::TimeLimit) => {
                Failure::new(ExitCode::TimedOut, "the time limit of the run was reached")
                    .hint("--timeout sets it; `ci doctor` tells what may be slow.")
            }
            Some(Stop::EngineLost) => {
                Failure::environment("the engine does not answer any more").hint(
                    "Where it is the embedded one, `ci engine down` ends it, and the next run starts it anew.",
                )
            }
            Some(Stop::FailFast) => {
                Failure::cancelled().hint("Another step failed first, and --fail-fast was given.")
            }
            _ => Failure::cancelled(),
        }
    }
}
