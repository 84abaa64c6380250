//! PostgreSQL: that it answers a query.

use std::{borrow::Cow, fmt};

use tokio::net::TcpStream;
use tokio_postgres::{
    Client, Config,
    config::{Host, SslMode},
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tcp;
use crate::{
    checks::{driver::Driver, trouble::Trouble},
    secret::SecretUrl,
};

/// What is asked, and what is expected.
#[derive(Clone, Debug)]
pub struct Target {
    /// `postgresql://user[:password@]host[:port]/database`.
    ///
    /// `sslmode` is `disable`, `prefer` (TLS where the server has it, with any certificate; the default), or `require`: TLS with a
    /// certificate that is verified, as with `verify-full`.
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

/// The two ways to use TLS; `sslmode` in the URL selects one.
#[derive(Clone)]
pub(in crate::checks) struct Tls {
    /// Verifies the certificate of the server.
    pub(in crate::checks) verifying: MakeRustlsConnect,
    /// Accepts any certificate.
    pub(in crate::checks) opportunistic: MakeRustlsConnect,
}

/// Asks one target.
pub struct Probe {
    server: Result<Server, Trouble>,
    tls: Tls,
    kept: Option<Connection>,
}

impl Probe {
    /// Creates a probe of `target`.
    pub(super) fn new(target: &Target, tls: &Tls) -> Self {
        Self {
            server: parse(&target.url).map_err(Trouble),
            tls: tls.clone(),
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
            && !kept.driver.is_finished()
            && kept.select(server).await.is_ok()
        {
            self.kept = Some(kept);
            return Ok(());
        }
        // That one connection was lost says little: idle ones are closed, and servers restarted.
        let connection = server.connect(&self.tls).await?;
        connection.select(server).await?;
        self.kept = Some(connection);
        Ok(())
    }
}

/// Where a PostgreSQL is, and how to log in.
struct Server {
    host: String,
    port: u16,
    config: Box<Config>,
}

impl Server {
    async fn connect(&self, tls: &Tls) -> Result<Connection, Trouble> {
        let stream = tcp::connect(&self.host, self.port)
            .await
            .map_err(|error| Trouble::of(&error, None))?;
        let mut tls = if self.config.get_ssl_mode() == SslMode::Require {
            tls.verifying.clone()
        } else {
            tls.opportunistic.clone()
        };
        let Ok(tls) = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, &self.host);
        let (client, connection) = self
            .config
            .connect_raw(stream, tls)
            .await
            .map_err(|error| self.trouble(&error))?;
        let driver = Driver::start(async move {
            // Whoever asks next hears of it.
            let _ = connection.await;
        });
        Ok(Connection { client, driver })
    }

    fn trouble(&self, error: &tokio_postgres::Error) -> Trouble {
        let password = self.config.get_password().map(String::from_utf8_lossy);
        let secret = password.as_deref();
        match error.as_db_error() {
            Some(said) => Trouble::without(said.message(), secret),
            None => Trouble::of(error, secret),
        }
    }
}

struct Connection {
    client: Client,
    driver: Driver,
}

impl Connection {
    async fn select(&self, server: &Server) -> Result<(), Trouble> {
        self.client
            .simple_query("SELECT 1")
            .await
            .map(drop)
            .map_err(|error| server.trouble(&error))
    }
}

/// Takes a URL apart.
fn parse(url: &SecretUrl) -> Result<Server, String> {
    const EXPECTED: &str = "expected postgresql://user[:password]@host/database";
    let mut url = url.expose().clone();
    if url.query().is_some() {
        let pairs: Vec<_> = url
            .query_pairs()
            .map(|(key, value)| match (&*key, &*value) {
                // The library knows one word for TLS that is verified.
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
        .map_err(|error| Trouble::of(&error, None).0)?;
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
