//! The counter of `GET /hits`, which Redis keeps.

use std::{sync::Arc, time::Duration};

use ::redis::cmd;
use rustls::ClientConfig;
use tokio::{sync::Mutex, time::timeout};

use crate::checks::{
    Trouble,
    redis::{Connection, Server, Target},
};

/// The key of the counter.
const KEY: &str = "hits";

/// For all that Redis has to do for one request, a connection too: the answer has to be there within 250 ms, on a busy machine too.
const LIMIT: Duration = Duration::from_millis(150);

/// The counter. Each worker has its own connection, which lives on the worker's runtime.
pub struct Hits(Option<Counter>);

struct Counter {
    server: Result<Server, Trouble>,
    kept: Mutex<Option<Arc<Connection>>>,
}

/// Why there is no count.
#[derive(Debug, PartialEq, Eq)]
pub enum Missing {
    /// No Redis is configured.
    Unconfigured,
    /// Redis does not answer, or not as expected.
    Lost(Trouble),
}

impl Hits {
    /// The counter in the Redis `target`, if there is one; `tls` is used if its URL asks for TLS.
    #[must_use]
    pub fn new(target: Option<&Target>, tls: &Arc<ClientConfig>) -> Self {
        Self(target.map(|target| Counter {
            server: Server::new(target, tls).map_err(Trouble),
            kept: Mutex::default(),
        }))
    }

    /// Counts one hit, and gives their number. Never counts twice: what may have arrived is not sent again.
    ///
    /// # Errors
    /// Where Redis does not answer in time.
    pub async fn count(&self) -> Result<i64, Missing> {
        let counter = self.0.as_ref().ok_or(Missing::Unconfigured)?;
        let answer = timeout(LIMIT, counter.count())
            .await
            .unwrap_or_else(|_| Err(Trouble("no answer in time".into())));
        if answer.is_err()
            // Where somebody has it, nothing is kept: a new one is being made.
            && let Ok(mut kept) = counter.kept.try_lock()
        {
            *kept = None;
        }
        answer.map_err(Missing::Lost)
    }
}

impl Counter {
    async fn count(&self) -> Result<i64, Trouble> {
        let server = self.server.as_ref().map_err(Clone::clone)?;
        self.connection(server)
            .await?
            .ask(server, cmd("INCR").arg(KEY))
            .await
    }

    async fn connection(&self, server: &Server) -> Result<Arc<Connection>, Trouble> {
        let mut kept = self.kept.lock().await;
        if let Some(connection) = kept.as_ref().filter(|kept| !kept.is_lost()) {
            return Ok(connection.clone());
        }
        *kept = None;
        let connection = Arc::new(server.connect().await?);
        *kept = Some(connection.clone());
        Ok(connection)
    }
}
