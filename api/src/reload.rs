//! Applies a changed configuration to the running service: after SIGHUP and, with `watch`, when the file has changed.

use std::time::Duration;

use actix_web::web;
use tokio::{signal::unix::Signal, time::sleep};

use crate::{
    configuration::{Problems, Settings, Source},
    schedule::Schedule,
    service::Service,
};

/// How often the file is compared with the loaded one. This finds every kind of change on every file system, unlike inotify, which
/// watches inodes and not paths, and costs one system call.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Reloads the configuration of a service.
pub(crate) struct Reload {
    pub(crate) source: Source,
    pub(crate) service: web::Data<Service>,
    pub(crate) schedule: Schedule,
    /// Whether the file is watched.
    pub(crate) watch: bool,
    /// The settings that a reload does not change, as they were at the start.
    pub(crate) fixed: Vec<(&'static str, String)>,
}

impl Reload {
    /// Reloads whenever `hangup` is received or the file has changed.
    pub(crate) async fn run(mut self, mut hangup: Signal) {
        loop {
            tokio::select! {
                Some(()) = hangup.recv() => {}
                () = self.source_changed(), if self.watch => {}
                else => return,
            }
            self.reload().await;
        }
    }

    async fn source_changed(&mut self) {
        while !self.source.has_changed() {
            sleep(WATCH_INTERVAL).await;
        }
    }

    async fn reload(&mut self) {
        let loaded = self.source.load();
        self.service.metrics.reloaded(loaded.is_ok());
        match loaded {
            Ok(settings) => self.apply(settings).await,
            Err(Problems(problems)) => {
                for problem in &problems {
                    tracing::error!(%problem, "invalid configuration");
                }
                tracing::error!(
                    problems = problems.len(),
                    "cannot reload the configuration, keeping the current one"
                );
            }
        }
    }

    async fn apply(&mut self, settings: Settings) {
        let fixed = settings.fixed();
        for (new, old) in fixed.iter().zip(&self.fixed) {
            if new != old {
                let key = new.0;
                tracing::warn!(key, "a changed setting takes effect after a restart");
            }
        }
        self.watch = settings.watch;
        // Before the board: its new generation makes renderings with the old settings invalid.
        self.service.reload(&settings);
        let (board, checks) = (self.service.board.clone(), settings.checks);
        // On another thread, because the results of new checks are read from the disk. Fails only while the runtime ends.
        if web::block(move || board.configure(checks)).await.is_ok() {
            let (started, stopped) = self.schedule.update();
            tracing::info!(started, stopped, "reloaded the configuration");
        }
    }
}
