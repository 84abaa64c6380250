//! Stops a run early: on a signal, a time limit, a failure or the loss of the engine.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use crate::engine::graphql::catch_query_panics;
use common::failure::{ExitCode, Failure, OrFail};

/// Why a run stops early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGINT, SIGTERM or SIGHUP.
    Signal,
    /// The time limit of the run.
    TimeLimit,
    /// `--fail-fast`, after the first failure.
    FailFast,
    /// The engine stopped answering.
    EngineLost,
}

/// Stops a run early. Only the first reason counts.
#[derive(Clone, Debug, Default)]
pub struct Stopper {
    token: CancellationToken,
    reason: Arc<OnceLock<Stop>>,
}

impl Stopper {
    /// Cancels all work of the run.
    pub fn stop(&self, reason: Stop) {
        // Later reasons are ignored.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Runs `work`, unless the run is stopped first.
    ///
    /// # Errors
    /// Those of `work`, or when the run is stopped: cancelled (exit code 130), out of time (124) or without its engine (3).
    pub async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.token
            .run_until_cancelled(catch_query_panics(work))
            .await
            .unwrap_or_else(|| Err(self.failure()))
    }

    /// Why the run was stopped, if it was.
    #[must_use]
    pub fn reason(&self) -> Option<Stop> {
        self.reason.get().copied()
    }

    /// Stops the run on SIGINT, SIGTERM and SIGHUP from now on.
    ///
    /// # Errors
    /// When no signal handler can be installed (exit code 3).
    pub fn stop_on_signals(&self) -> Result<(), Failure> {
        let stopper = self.clone();
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let mut terminate =
                signal(SignalKind::terminate()).or_environment("cannot listen for signals")?;
            let mut interrupt =
                signal(SignalKind::interrupt()).or_environment("cannot listen for signals")?;
            // Listening would undo `nohup`, which ignores this signal of a closed terminal.
            let mut hangup = (!is_ignored(SignalKind::hangup()))
                .then(|| signal(SignalKind::hangup()))
                .transpose()
                .or_environment("cannot listen for signals")?;
            tokio::spawn(async move {
                let hung_up = async {
                    match &mut hangup {
                        Some(hangup) => hangup.recv().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hung_up => {}
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
                    .hint("Raise it with --timeout, or run `ci doctor` to find the cause.")
            }
            Some(Stop::EngineLost) => {
                Failure::environment("the engine does not answer any more").hint(
                    "If it is the embedded engine, stop it with `ci engine down`; the next run starts a new one.",
                )
            }
            Some(Stop::FailFast) => {
                Failure::cancelled().hint("Another step failed first. Omit --fail-fast to run all steps.")
            }
            _ => Failure::cancelled(),
        }
    }
}

/// Whether this process ignores the signal, according to Linux; `false` elsewhere.
#[cfg(unix)]
fn is_ignored(signal: tokio::signal::unix::SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default();
    let bit = signal.as_raw_value() - 1;
    mask >> bit & 1 == 1
}
