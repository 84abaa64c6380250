//! The state that all requests share.

use std::{
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_web::web::Bytes;

use crate::{
    board::Board,
    checks::{Clients, redis},
    configuration::{Build, Settings},
    drain::Drain,
    error::Error,
    history::Store,
    metrics::Metrics,
};

/// The state that all requests share, on all workers.
#[derive(Debug)]
pub struct Service {
    /// The path below which a reverse proxy shows the service; empty without one. Every link starts with it.
    pub base_path: String,
    /// The OpenAPI document as JSON, once it was requested.
    pub openapi: OnceLock<Bytes>,
    live: RwLock<Arc<Live>>,
    /// The build that the image contains.
    pub build: Build,
    /// The checks with their results.
    pub board: Arc<Board>,
    /// The TLS configuration and the HTTP client of probes.
    pub clients: Clients,
    /// The metrics of the service.
    pub metrics: Metrics,
    /// The shutdown state.
    pub drain: Drain,
    /// The number of open event streams, and its limit.
    pub streams: Arc<Streams>,
}

/// The settings that a reload changes.
#[derive(Debug)]
pub struct Live {
    /// The title of the status page.
    pub title: String,
    /// The name of the environment that the service runs in.
    pub environment: String,
    /// The Redis that stores the counter of `GET /hits`.
    pub redis: Option<redis::Target>,
    /// How long the service keeps serving after SIGTERM.
    pub drain: Duration,
}

impl Live {
    fn of(settings: &Settings) -> Self {
        Self {
            title: settings.title.clone(),
            environment: settings.environment.clone(),
            redis: settings.redis.clone().map(|url| redis::Target { url }),
            drain: settings.drain,
        }
    }
}

/// Limits the number of open event streams. Not a semaphore, because the limit can change while streams are open.
#[derive(Debug)]
pub struct Streams {
    open: AtomicUsize,
    limit: AtomicUsize,
}

impl Streams {
    /// Counts a stream as open until the result is dropped; `None` if too many are open.
    pub(crate) fn open(self: &Arc<Self>) -> Option<OpenStream> {
        let limit = self.limit.load(Ordering::Relaxed);
        let counted = self
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < limit).then_some(open + 1)
            });
        counted.ok().map(|_| OpenStream(self.clone()))
    }
}

/// An open event stream.
#[derive(Debug)]
pub(crate) struct OpenStream(Arc<Streams>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service {
    /// Creates the state for `settings`, and opens the history.
    ///
    /// # Errors
    /// When the directory of the history is locked by another process or not writable.
    pub fn new(settings: Settings, clients: Clients) -> Result<Self, Error> {
        let live = Arc::new(Live::of(&settings));
        let mut board = Board::new(settings.checks);
        if let Some(directory) = settings.data {
            let checks = board.checks().into_iter();
            let names = checks.map(|(_, check)| check.name.clone()).collect();
            board = board.with_store(Store::open(&directory, names)?);
        }
        let board = Arc::new(board);
        Ok(Self {
            base_path: settings.base_path,
            openapi: OnceLock::new(),
            live: RwLock::new(live),
            metrics: Metrics::new(&settings.build, board.clone()),
            build: settings.build,
            clients,
            board,
            drain: Drain::default(),
            streams: Arc::new(Streams {
                open: AtomicUsize::new(0),
                limit: AtomicUsize::new(settings.streams),
            }),
        })
    }

    /// The settings that a reload changes. They stay the same as long as the result is used.
    #[must_use]
    pub fn live(&self) -> Arc<Live> {
        self.live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Applies `settings`, except for the checks and for settings that take effect only at the start.
    pub(crate) fn reload(&self, settings: &Settings) {
        let limit = &self.streams.limit;
        limit.store(settings.streams, Ordering::Relaxed);
        let live = Arc::new(Live::of(settings));
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = live;
    }
}
