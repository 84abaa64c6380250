//! PostgreSQL: the server responds to a query.

mod tls;
mod url;

use std::fmt;

use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};
use tokio_postgres::{
    Client, SimpleQueryMessage, config::SslMode as Negotiation, error::SqlState,
    tls::MakeTlsConnect,
};

use self::url::{Host, Parameters, Session, SslMode};
use crate::{
    checks::{connector::Connector, driver::Driver, probe_error::ProbeError},
    secret::SecretUrl,
};

pub(in crate::checks) use self::tls::Tls;
pub(crate) use self::url::with_host;

/// A target, with the expected response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `postgresql://user[:password@]host[:port]/database`, with the parameters of libpq.
    pub url: SecretUrl,
}

impl Target {
    /// Checks the target without connecting to anything.
    ///
    /// # Errors
    /// When the target can never be probed.
    pub fn validate(&self) -> Result<(), String> {
        url::parse(self.url.expose()).map(drop)
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
    /// Creates a probe of `target`.
    pub(super) fn new(target: &Target, tls: &Tls, connector: Connector) -> Self {
        let parameters = url::parse(target.url.expose()).map_err(ProbeError);
        Self {
            server: parameters.map(|parameters| Server {
                parameters,
                tls: tls.clone(),
                connector,
            }),
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
            && kept.check(server, kept.accepted).await.is_ok()
        {
            self.kept = Some(kept);
            return Ok(());
        }
        // A lost connection is not a failure yet: servers close idle connections, restart, and become standbys.
        self.kept = Some(server.connect().await?);
        Ok(())
    }
}

/// The servers that a URL names, and the login.
struct Server {
    parameters: Parameters,
    tls: Tls,
    connector: Connector,
}

/// Why a server was not used.
struct Refusal {
    error: ProbeError,
    /// Whether the server has rejected the login, so that no other one is tried.
    is_final: bool,
    /// Whether it may accept a connection with another use of TLS.
    depends_on_tls: bool,
}

impl Refusal {
    const fn other(error: ProbeError) -> Self {
        Self {
            error,
            is_final: false,
            depends_on_tls: false,
        }
    }
}

impl Server {
    /// Connects to the first server that accepts the login, and has the requested properties.
    async fn connect(&self) -> Result<Connection, ProbeError> {
        let mut hosts: Vec<&Host> = self.parameters.hosts.iter().collect();
        if self.parameters.random {
            fastrand::shuffle(&mut hosts);
        }
        let passes = match self.parameters.session {
            Session::PreferStandby => &[Session::Standby, Session::Any][..],
            ref session => std::slice::from_ref(session),
        };
        let mut errors = Vec::new();
        for accepted in passes {
            errors.clear();
            for host in &hosts {
                let connected = self.connect_in_time(host, *accepted).await;
                let refusal = match connected {
                    Ok(connection) => return Ok(connection),
                    Err(refusal) => refusal,
                };
                if refusal.is_final || hosts.len() == 1 && passes.len() == 1 {
                    return Err(refusal.error);
                }
                errors.push(format!("{}:{}: {}", host.name, host.port, refusal.error));
            }
        }
        Err(ProbeError::without(&errors.join("; "), None))
    }

    async fn connect_in_time(&self, host: &Host, accepted: Session) -> Result<Connection, Refusal> {
        let connecting = self.connect_to(host, accepted);
        let Some(limit) = self.parameters.connect_timeout else {
            return connecting.await;
        };
        timeout(limit, connecting).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(limit);
            let text = format!("no connection within {limit}, the connect_timeout");
            Err(Refusal::other(ProbeError(text)))
        })
    }

    async fn connect_to(&self, host: &Host, accepted: Session) -> Result<Connection, Refusal> {
        let uses: &[Negotiation] = match self.parameters.ssl_mode {
            SslMode::Disable => &[Negotiation::Disable],
            SslMode::Allow => &[Negotiation::Disable, Negotiation::Require],
            // A certificate that is not trusted must not be a reason to do without TLS.
            SslMode::Prefer if self.tls.always_verify => &[Negotiation::Prefer],
            SslMode::Prefer => &[Negotiation::Prefer, Negotiation::Disable],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Negotiation::Require],
        };
        let mut first: Option<Refusal> = None;
        for negotiation in uses {
            match self.log_in(host, *negotiation, accepted).await {
                Ok(connection) => {
                    let checked = connection.check(self, accepted).await;
                    return checked.map(|()| connection).map_err(Refusal::other);
                }
                Err(refusal) => {
                    let again = refusal.depends_on_tls;
                    first = first.or(Some(refusal));
                    if !again {
                        break;
                    }
                }
            }
        }
        Err(first.unwrap_or_else(|| Refusal::other(ProbeError("no connection".into()))))
    }

    async fn log_in(
        &self,
        host: &Host,
        negotiation: Negotiation,
        accepted: Session,
    ) -> Result<Connection, Refusal> {
        let address = host.address.as_ref().unwrap_or(&host.name);
        let stream = self.connector.connect(address, host.port).await;
        let failed = |error| Refusal::other(ProbeError::of(&error, None));
        let stream = stream.map_err(failed)?;
        self.set_options(&stream).map_err(failed)?;
        let tls = self.tls.connector(&self.parameters);
        let mut tls = tls.map_err(|reason| Refusal::other(ProbeError(reason)))?;
        let name = self.tls.server_name.as_deref().unwrap_or(&host.name);
        let Ok(tls) = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, name);
        let mut config = self.parameters.config.clone();
        config.ssl_mode(negotiation);
        let connecting = config.connect_raw(stream, tls).await;
        let (client, connection) = connecting.map_err(|error| self.refusal(&error))?;
        let driver = Driver::start(async move {
            // The next query on this connection reports the error.
            let _ = connection.await;
        });
        Ok(Connection {
            client,
            driver,
            accepted,
        })
    }

    fn set_options(&self, stream: &TcpStream) -> std::io::Result<()> {
        let socket = SockRef::from(stream);
        if let Some(keepalive) = &self.parameters.keepalive {
            socket.set_keepalive(true)?;
            socket.set_tcp_keepalive(keepalive)?;
        }
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(self.parameters.user_timeout)?;
        Ok(())
    }

    fn refusal(&self, error: &tokio_postgres::Error) -> Refusal {
        let code = error.code();
        // Such as an entry `hostssl` in pg_hba.conf.
        let by_rule = code == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        Refusal {
            error: self.probe_error(error),
            is_final: code.is_some_and(|code| *code != SqlState::CANNOT_CONNECT_NOW),
            depends_on_tls: by_rule || code.is_none(),
        }
    }

    fn probe_error(&self, error: &tokio_postgres::Error) -> ProbeError {
        let password = self.parameters.config.get_password();
        let password = password.map(String::from_utf8_lossy);
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
    /// The properties that the server had.
    accepted: Session,
}

impl Connection {
    /// Checks that the server responds, and has the requested properties.
    async fn check(&self, server: &Server, accepted: Session) -> Result<(), ProbeError> {
        let (query, expected, otherwise) = match accepted {
            Session::Any | Session::PreferStandby => ("SELECT 1", None, ""),
            Session::ReadWrite => (READ_ONLY, Some("off"), "the session is read-only"),
            Session::ReadOnly => (READ_ONLY, Some("on"), "the session is not read-only"),
            Session::Primary => (IN_RECOVERY, Some("f"), "the server is in hot standby mode"),
            Session::Standby => (
                IN_RECOVERY,
                Some("t"),
                "the server is not in hot standby mode",
            ),
        };
        let messages = self.client.simple_query(query).await;
        let messages = messages.map_err(|error| server.probe_error(&error))?;
        let value = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        match expected {
            Some(expected) if value != Some(expected) => Err(ProbeError(otherwise.into())),
            _ => Ok(()),
        }
    }
}

/// Whether a session can write.
const READ_ONLY: &str = "SHOW transaction_read_only";

/// Whether a server is a standby.
const IN_RECOVERY: &str = "SELECT pg_catalog.pg_is_in_recovery()";
