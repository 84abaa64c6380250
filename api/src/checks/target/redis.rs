//! Redis: the server responds to `PING`.

use std::fmt;

use ::redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, aio::MultiplexedConnection, cmd,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::tls;
use crate::{
    checks::{connector::Connector, driver::Driver, probe_error::ProbeError},
    secret::SecretUrl,
};

/// The URL schemes.
const PLAIN: &str = "redis";
const TLS: &str = "rediss";

/// A target, with the expected response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS.
    pub url: SecretUrl,
}

impl Target {
    /// Checks the target without connecting to anything.
    ///
    /// # Errors
    /// When the target can never be probed.
    pub fn validate(&self) -> Result<(), String> {
        parse(&self.url).map(drop)
    }

    /// What is expected for TLS.
    pub(super) fn missing_tls(&self) -> Option<&'static str> {
        (self.url.expose().scheme() != TLS).then_some("expected a rediss URL")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(formatter)
    }
}

/// Probes one target.
pub struct Probe {
    server: Result<Server, ProbeError>,
    kept: Option<Connection>,
}

impl Probe {
    /// Creates a probe of `target`, which uses `tls` if its URL has the scheme `rediss`.
    #[must_use]
    pub(crate) fn new(target: &Target, tls: &tls::Client) -> Self {
        Self {
            server: Server::new(target, tls).map_err(ProbeError),
            kept: None,
        }
    }

    /// Probes the target once.
    ///
    /// # Errors
    /// When the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        let server = self.server.as_ref().map_err(Clone::clone)?;
        // Taken out, so that a connection with a late response is dropped if this future is dropped.
        if let Some(kept) = self.kept.take()
            && !kept.is_lost()
            && kept.ping(server).await.is_ok()
        {
            self.kept = Some(kept);
            return Ok(());
        }
        // A lost connection is not a failure yet: servers close idle connections, and restart.
        let connection = server.connect().await?;
        connection.ping(server).await?;
        self.kept = Some(connection);
        Ok(())
    }
}

/// The address of a Redis server, and the login.
pub(crate) struct Server {
    host: String,
    port: u16,
    tls: Option<tls::Client>,
    connector: Connector,
    login: RedisConnectionInfo,
}

impl Server {
    /// The server that `target` names; `tls` is used if its URL has the scheme `rediss`.
    pub(crate) fn new(target: &Target, tls: &tls::Client) -> Result<Self, String> {
        let (host, port, login) = parse(&target.url)?;
        let encrypted = target.url.expose().scheme() == TLS;
        Ok(Self {
            host,
            port,
            tls: encrypted.then(|| tls.clone()),
            connector: tls.connector.clone(),
            login,
        })
    }

    /// Opens a connection and logs in.
    pub(crate) async fn connect(&self) -> Result<Connection, ProbeError> {
        let (host, port) = (&self.host, self.port);
        match &self.tls {
            Some(client) => match tls::connect(client, host, port).await {
                Ok(stream) => self.log_in(stream).await,
                Err(error) => Err(ProbeError::of(&error, None)),
            },
            None => match self.connector.connect(host, port).await {
                Ok(stream) => self.log_in(stream).await,
                Err(error) => Err(ProbeError::of(&error, None)),
            },
        }
    }

    async fn log_in(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Connection, ProbeError> {
        // The caller sets the time limit.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (commands, driver) =
            MultiplexedConnection::new_with_config(&self.login, stream, config)
                .await
                .map_err(|error| self.probe_error(&error))?;
        Ok(Connection {
            commands,
            driver: Driver::start(driver),
        })
    }

    /// Converts an error without secrets: old servers quote commands that they do not know, including the password.
    fn probe_error(&self, error: &RedisError) -> ProbeError {
        if error.kind() == ErrorKind::AuthenticationFailed {
            return ProbeError("the user or the password is wrong".into());
        }
        let text = match (error.code(), error.detail()) {
            (Some(code), Some(detail)) => format!("{code} {detail}"),
            _ => error.to_string(),
        };
        let text = text.split(", with args").next().unwrap_or_default();
        ProbeError::without(text, self.login.password())
    }
}

/// Parses a connection URL.
fn parse(url: &SecretUrl) -> Result<(String, u16, RedisConnectionInfo), String> {
    const EXPECTED: &str = "expected redis://host or rediss://host";
    let mut url = url.expose().clone();
    if ![PLAIN, TLS].contains(&url.scheme()) {
        return Err(EXPECTED.into());
    }
    // The crate accepts `rediss` only with its own TLS feature.
    let _ = url.set_scheme(PLAIN);
    let info = url
        .into_connection_info()
        .map_err(|error| error.to_string())?;
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => {
            // Proxies and old servers reject the optional command that tells the name of the library, or close the connection.
            let login = info.redis_settings().clone().set_skip_set_lib_name();
            Ok((host.clone(), *port, login))
        }
        _ => Err(EXPECTED.into()),
    }
}

/// A connection that sends concurrent commands without waiting for earlier responses.
pub(crate) struct Connection {
    commands: MultiplexedConnection,
    driver: Driver,
}

impl Connection {
    /// Whether the connection is known to be lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.driver.is_finished()
    }

    /// Sends `command` and returns the response.
    pub(crate) async fn query<T: FromRedisValue>(
        &self,
        server: &Server,
        command: &Cmd,
    ) -> Result<T, ProbeError> {
        command
            .query_async(&mut self.commands.clone())
            .await
            .map_err(|error| server.probe_error(&error))
    }

    async fn ping(&self, server: &Server) -> Result<(), ProbeError> {
        match self.query::<String>(server, &cmd("PING")).await?.as_str() {
            "PONG" => Ok(()),
            _ => Err(ProbeError("the response to PING is not PONG".into())),
        }
    }
}
