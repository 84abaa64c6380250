//! PostgreSQL: the server responds to a query.

use std::{borrow::Cow, fmt};

use tokio::net::TcpStream;
use tokio_postgres::{
    Client, Config,
    config::{Host, SslMode},
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    checks::{connector::Connector, driver::Driver, probe_error::ProbeError},
    secret::SecretUrl,
};

/// A target, with the expected response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `postgresql://user[:password@]host[:port]/database`.
    ///
    /// `sslmode` is `disable`, `prefer` (the default: TLS if the server supports it, with any certificate), or `require`, which
    /// verifies the certificate in the same way as `verify-full`.
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
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(formatter)
    }
}

/// The two ways to use TLS; `sslmode` in the URL selects one.
#[derive(Clone)]
pub(in crate::checks) struct Tls {
    /// Verifies the certificate of the server.
    pub(in crate::checks) verifying: MakeRustlsConnect,
    /// Accepts any certificate.
    pub(in crate::checks) opportunistic: MakeRustlsConnect,
    /// The name of every server, instead of its host.
    pub(in crate::checks) server_name: Option<Box<str>>,
}

/// Probes one target.
pub struct Probe {
    server: Result<Server, ProbeError>,
    tls: Tls,
    connector: Connector,
    kept: Option<Connection>,
}

impl Probe {
    /// Creates a probe of `target`.
    pub(super) fn new(target: &Target, tls: &Tls, connector: Connector) -> Self {
        Self {
            server: parse(&target.url).map_err(ProbeError),
            tls: tls.clone(),
            connector,
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
            && !kept.driver.is_finished()
            && kept.select(server).await.is_ok()
        {
            self.kept = Some(kept);
            return Ok(());
        }
        // A lost connection is not a failure yet: servers close idle connections, and restart.
        let connection = server.connect(&self.connector, &self.tls).await?;
        connection.select(server).await?;
        self.kept = Some(connection);
        Ok(())
    }
}

/// The address of a PostgreSQL server, and the login.
struct Server {
    host: String,
    port: u16,
    config: Box<Config>,
}

impl Server {
    async fn connect(&self, connector: &Connector, tls: &Tls) -> Result<Connection, ProbeError> {
        let stream = connector
            .connect(&self.host, self.port)
            .await
            .map_err(|error| ProbeError::of(&error, None))?;
        let name = tls.server_name.as_deref().unwrap_or(&self.host);
        let mut tls = if self.config.get_ssl_mode() == SslMode::Require {
            tls.verifying.clone()
        } else {
            tls.opportunistic.clone()
        };
        let Ok(tls) = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, name);
        let (client, connection) = self
            .config
            .connect_raw(stream, tls)
            .await
            .map_err(|error| self.probe_error(&error))?;
        let driver = Driver::start(async move {
            // The next query on this connection reports the error.
            let _ = connection.await;
        });
        Ok(Connection { client, driver })
    }

    fn probe_error(&self, error: &tokio_postgres::Error) -> ProbeError {
        let password = self.config.get_password().map(String::from_utf8_lossy);
        let secret = password.as_deref();
        match error.as_db_error() {
            Some(error) => ProbeError::without(error.message(), secret),
            None => ProbeError::of(error, secret),
        }
    }
}

struct Connection {
    client: Client,
    driver: Driver,
}

impl Connection {
    async fn select(&self, server: &Server) -> Result<(), ProbeError> {
        self.client
            .simple_query("SELECT 1")
            .await
            .map(drop)
            .map_err(|error| server.probe_error(&error))
    }
}

/// Parses a connection URL.
fn parse(url: &SecretUrl) -> Result<Server, String> {
    const EXPECTED: &str = "expected postgresql://user[:password]@host/database";
    let mut url = url.expose().clone();
    if url.query().is_some() {
        let pairs: Vec<_> = url
            .query_pairs()
            .map(|(key, value)| match (&*key, &*value) {
                // The library has only `require`, for which the verifying client is used.
                ("sslmode", "verify-ca" | "verify-full") => (key, Cow::Borrowed("require")),
                _ => (key, value),
            })
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
    if !["postgres", "postgresql"].contains(&url.scheme()) {
        return Err(EXPECTED.into());
    }
    let config: Config = url
        .as_str()
        .parse()
        .map_err(|error| ProbeError::of(&error, None).0)?;
    if config.get_user().is_none() {
        return Err(EXPECTED.into());
    }
    let [Host::Tcp(host)] = config.get_hosts() else {
        return Err("expected one host".into());
    };
    Ok(Server {
        host: host.clone(),
        port: config.get_ports().first().copied().unwrap_or(5432),
        config: Box::new(config),
    })
}
