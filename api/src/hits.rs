//! The counter of `GET /hits`, which is stored in Redis.

use std::{sync::Arc, time::Duration};

use ::redis::cmd;
use tokio::{sync::Mutex, time::timeout};

use crate::checks::{
    ProbeError,
    redis::{Connection, Server, Target},
    tls,
};

/// The Redis key of the counter.
const KEY: &str = "hits";

/// The time limit for connecting and counting. `/hits` must respond within 250 ms, even on a busy machine.
const TIMEOUT: Duration = Duration::from_millis(150);

/// How long to wait for a connection to one address of the host before the next one is tried as well. Less than for a check, because
/// of the time limit.
const DELAY: Duration = Duration::from_millis(40);

/// The counter of one worker. Each worker has its own connection, because a connection is bound to the runtime of its worker.
pub struct Hits(Option<Counter>);

struct Counter {
    server: Result<Server, ProbeError>,
    kept: Mutex<Option<Arc<Connection>>>,
}

/// The reason that a hit was not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No Redis is configured.
    Unconfigured,
    /// Redis did not respond as expected.
    Lost(ProbeError),
}

impl Hits {
    /// The counter in the Redis `target`, if there is one.
    #[must_use]
    pub(crate) fn new(target: Option<&Target>, tls: &tls::Client) -> Self {
        let tls = tls.with_delay(DELAY);
        Self(target.map(|target| Counter {
            server: Server::new(target, &tls).map_err(ProbeError),
            kept: Mutex::default(),
        }))
    }

    /// Counts one hit and returns the total. Never retries, because the first attempt may have been counted.
    ///
    /// # Errors
    /// When Redis is not configured or does not respond in time.
    pub async fn count(&self) -> Result<i64, Missing> {
        let counter = self.0.as_ref().ok_or(Missing::Unconfigured)?;
        let result = timeout(TIMEOUT, counter.count())
            .await
            .unwrap_or_else(|_| Err(ProbeError("no response in time".into())));
        if result.is_err()
            // If the lock is held, another request is already opening a new connection.
            && let Ok(mut kept) = counter.kept.try_lock()
        {
            *kept = None;
        }
        result.map_err(Missing::Lost)
    }
}

impl Counter {
    async fn count(&self) -> Result<i64, ProbeError> {
        let server = self.server.as_ref().map_err(Clone::clone)?;
        self.connection(server)
            .await?
            .query(server, cmd("INCR").arg(KEY))
            .await
    }

    async fn connection(&self, server: &Server) -> Result<Arc<Connection>, ProbeError> {
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use futures_util::future::join_all;
    use tokio::time::Instant;

    use super::*;
    use crate::{checks::Clients, secret::SecretUrl};

    /// The clock is paused while anything happens, so that the times are exact however busy the machine is.
    #[tokio::test(start_paused = true)]
    async fn gives_up_within_250_ms_while_redis_is_silent() {
        // The system accepts connections to it, and nothing reads them.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", silent.local_addr().unwrap());
        let target = Target {
            url: SecretUrl::new(url.parse().unwrap()),
        };
        let hits = Hits::new(Some(&target), &Clients::new(None).unwrap().tls);
        for concurrent in [1, 8, 8] {
            let start = Instant::now();
            let results = join_all((0..concurrent).map(|_| hits.count())).await;
            let took = start.elapsed();
            let lost = Err(Missing::Lost(ProbeError("no response in time".into())));
            assert_eq!(results, vec![lost; concurrent]);
            assert!(
                took >= TIMEOUT && took < Duration::from_millis(250),
                "{took:?}"
            );
        }
    }
}
