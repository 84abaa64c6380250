//! What all requests share.

use std::sync::Arc;

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

/// What all requests share, on all workers.
#[derive(Debug)]
pub struct Service {
    /// The title of the page.
    pub title: String,
    /// The name of the environment.
    pub environment: String,
    /// What the image says of itself.
    pub build: Build,
    /// What is known of the checks.
    pub board: Arc<Board>,
    /// The Redis that counts the hits.
    pub redis: Option<redis::Target>,
    /// What asks dependencies.
    pub clients: Clients,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether the service is about to end.
    pub drain: Drain,
    /// One permit for each event stream.
    pub streams: Arc<Semaphore>,
}

impl Service {
    /// A service of these settings that nobody has asked anything.
    ///
    /// # Errors
    /// Where the directory of the history is held by another process or cannot be written.
    pub fn new(settings: Settings, clients: Clients) -> Result<Self, Error> {
        let mut board = Board::new(settings.checks);
        if let Some(directory) = settings.data {
            let names = board.checks().map(|check| check.name.clone()).collect();
            board = board.with_store(Store::open(&directory, names)?);
        }
        let board = Arc::new(board);
        Ok(Self {
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
