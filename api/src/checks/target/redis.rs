//! Redis: that it answers `PING`.

use std::{fmt, sync::Arc};

use ::redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, aio::MultiplexedConnection, cmd,
};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{tcp, tls};
use crate::{
    checks::{driver::Driver, trouble::Trouble},
    secret::SecretUrl,
};

/// The schemes of URLs.
const PLAIN: &str = "redis";
const TLS: &str = "rediss";

/// What is asked, and what is expected.
#[derive(Clone, Debug)]
pub struct Target {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS.
    pub url: SecretUrl,
}

impl Target {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// Where it can never be asked.
    pub fn validate(&self) -> Result<(), String> {
        parse(&self.url).map(drop)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(formatter)
    }
}

/// Asks one target.
pub struct Probe {
    server: Result<Server, Trouble>,
    kept: Option<Connection>,
}

impl Probe {
    /// Creates a probe of `target`, which uses `tls` if its URL asks for TLS.
    #[must_use]
    pub fn new(target: &Target, tls: &Arc<ClientConfig>) -> Self {
        Self {
            server: Server::new(target, tls).map_err(Trouble),
            kept: None,
        }
    }

    /// Asks once.
    ///
    /// # Errors
    /// Where the target does not answer, or not as expected.
    pub async fn ask(&mut self) -> Result<(), Trouble> {
        let server = self.server.as_ref().map_err(Clone::clone)?;
        // Taken: where a time limit ends this, nobody reads the late answer.
        if let Some(kept) = self.kept.take()
            && !kept.is_lost()
            && kept.ping(server).await.is_ok()
        {
            self.kept = Some(kept);
            return Ok(());
        }
        // That one connection was lost says little: idle ones are closed, and servers restarted.
        let connection = server.connect().await?;
        connection.ping(server).await?;
        self.kept = Some(connection);
        Ok(())
    }
}

/// Where a Redis is, and how to log in.
pub(crate) struct Server {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    login: RedisConnectionInfo,
}

impl Server {
    /// The server that `target` names; `tls` is used if its URL asks for TLS.
    pub(crate) fn new(target: &Target, tls: &Arc<ClientConfig>) -> Result<Self, String> {
        let (host, port, login) = parse(&target.url)?;
        let encrypted = target.url.expose().scheme() == TLS;
        Ok(Self {
            host,
            port,
            tls: encrypted.then(|| tls.clone()),
            login,
        })
    }

    /// A new connection, logged in.
    pub(crate) async fn connect(&self) -> Result<Connection, Trouble> {
        let (host, port) = (&self.host, self.port);
        match &self.tls {
            Some(config) => match tls::connect(config, host, port).await {
                Ok(stream) => self.log_in(stream).await,
                Err(error) => Err(tls::trouble(&error)),
            },
            None => match tcp::connect(host, port).await {
                Ok(stream) => self.log_in(stream).await,
                Err(error) => Err(Trouble::of(&error, None)),
            },
        }
    }

    async fn log_in(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Connection, Trouble> {
        // The time limit is the caller's.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (commands, driver) =
            MultiplexedConnection::new_with_config(&self.login, stream, config)
                .await
                .map_err(|error| self.trouble(&error))?;
        Ok(Connection {
            commands,
            driver: Driver::start(driver),
        })
    }

    /// What went wrong; an old server repeats what it did not understand, also a password.
    fn trouble(&self, error: &RedisError) -> Trouble {
        if error.kind() == ErrorKind::AuthenticationFailed {
            return Trouble("the user or the password is wrong".into());
        }
        let text = match (error.code(), error.detail()) {
            (Some(code), Some(detail)) => format!("{code} {detail}"),
            _ => error.to_string(),
        };
        let text = text.split(", with args").next().unwrap_or_default();
        Trouble::without(text, self.login.password())
    }
}

/// Takes a URL apart.
fn parse(url: &SecretUrl) -> Result<(String, u16, RedisConnectionInfo), String> {
    const EXPECTED: &str = "expected redis://host or rediss://host";
    let mut url = url.expose().clone();
    if ![PLAIN, TLS].contains(&url.scheme()) {
        return Err(EXPECTED.into());
    }
    // The crate takes a URL with TLS only where it brings TLS of its own.
    let _ = url.set_scheme(PLAIN);
    let info = url
        .into_connection_info()
        .map_err(|error| error.to_string())?;
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => Ok((host.clone(), *port, info.redis_settings().clone())),
        _ => Err(EXPECTED.into()),
    }
}

/// A connection; all that is asked over it is sent at once.
pub(crate) struct Connection {
    commands: MultiplexedConnection,
    driver: Driver,
}

impl Connection {
    /// Whether it is known to be lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.driver.is_finished()
    }

    /// What `command` gives.
    pub(crate) async fn ask<T: FromRedisValue>(
        &self,
        server: &Server,
        command: &Cmd,
    ) -> Result<T, Trouble> {
        command
            .query_async(&mut self.commands.clone())
            .await
            .map_err(|error| server.trouble(&error))
    }

    async fn ping(&self, server: &Server) -> Result<(), Trouble> {
        match self.ask::<String>(server, &cmd("PING")).await?.as_str() {
            "PONG" => Ok(()),
            _ => Err(Trouble("the answer to PING is not PONG".into())),
        }
    }
}
