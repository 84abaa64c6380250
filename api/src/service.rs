//! The state that all requests share.

use std::sync::{Arc, OnceLock};

use actix_web::web::Bytes;
use tokio::sync::Semaphore;

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
    /// The title of the status page.
    pub title: String,
    /// The name of the environment that the service runs in.
    pub environment: String,
    /// The build that the image contains.
    pub build: Build,
    /// The checks with their results.
    pub board: Arc<Board>,
    /// The Redis that stores the counter of `GET /hits`.
    pub redis: Option<redis::Target>,
    /// The TLS configuration and the HTTP client of probes.
    pub clients: Clients,
    /// The metrics of the service.
    pub metrics: Metrics,
    /// The shutdown state.
    pub drain: Drain,
    /// One permit per event stream.
    pub streams: Arc<Semaphore>,
}

impl Service {
    /// Creates the state for `settings`, and opens the history.
    ///
    /// # Errors
    /// When the directory of the history is locked by another process or not writable.
    pub fn new(settings: Settings, clients: Clients) -> Result<Self, Error> {
        let mut board = Board::new(settings.checks);
        if let Some(directory) = settings.data {
            let names = board.checks().map(|check| check.name.clone()).collect();
            board = board.with_store(Store::open(&directory, names)?);
        }
        let board = Arc::new(board);
        Ok(Self {
            base_path: settings.base_path,
            openapi: OnceLock::new(),
            title: settings.title,
            environment: settings.environment,
            metrics: Metrics::new(&settings.build, board.clone()),
            build: settings.build,
            redis: settings.redis.map(|url| redis::Target { url }),
            clients,
            board,
            drain: Drain::default(),
            streams: Arc::new(Semaphore::new(settings.streams.min(Semaphore::MAX_PERMITS))),
        })
    }
}
