//! The session with an engine: a `dagger session` process that this module starts, monitors and stops.
//!
//! The SDK's `connect` hides the cause of a failure, skips its shutdown on an error and waits without a limit for a CLI that has
//! lost its engine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dagger_sdk::DaggerConn;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Child;
use tokio::task::JoinHandle;

use super::graphql::{self, Address};
use super::http::on_loopback;
use super::telemetry::{Telemetry, TraceContext};
use super::version::unsupported;
use common::failure::{Failure, OrFail};
use common::provision;

/// How to connect to an engine.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// A session that another process has opened (`dagger run`).
    Session {
        /// From `DAGGER_SESSION_PORT`.
        port: u16,
        /// From `DAGGER_SESSION_TOKEN`.
        token: String,
    },
    /// A new session that Dagger's CLI opens.
    Cli {
        /// The path of the CLI.
        cli: PathBuf,
        /// The engine's URL. Without one, the CLI starts an engine in a container runtime.
        runner_host: Option<String>,
        /// The CLI's `XDG_CONFIG_HOME`, instead of the user's.
        config_home: Option<PathBuf>,
        /// How long the engine may take until its first answer.
        patience: Duration,
    },
}

/// The address of an open session, from which clients are created.
#[derive(Clone)]
pub struct Connection {
    address: Address,
    http: reqwest::Client,
    telemetry: Telemetry,
}

impl Connection {
    /// Creates an SDK client for the queries of one step.
    #[must_use]
    pub fn client(&self, trace: TraceContext) -> DaggerConn {
        graphql::client(&self.http, &self.address, &self.telemetry, trace)
    }
}

/// An open session.
pub struct Session {
    connection: Connection,
    child: Option<Child>,
    /// The engine's socket, if the engine runs on this machine.
    socket: Option<PathBuf>,
    watch: Option<JoinHandle<()>>,
}

/// A healthy engine answers within milliseconds, a busy one may take longer.
const ANSWER: Duration = Duration::from_secs(5);
/// The engine counts as lost after so many failed probes in a row, which take half a minute.
const MAX_FAILED_PROBES: u32 = 6;

#[derive(Deserialize)]
struct ConnectParams {
    port: u16,
    session_token: String,
}

impl Session {
    /// Opens a session whose engine reports to `telemetry`.
    ///
    /// # Errors
    /// When the CLI does not start or the engine does not answer in time; the failure carries the end of the CLI's output.
    pub async fn open(endpoint: &Endpoint, telemetry: &Telemetry) -> Result<Self, Failure> {
        let http = on_loopback()
            // The server is on this machine. A query is silent for as long as a build takes, and must survive a machine that was
            // suspended meanwhile.
            .tcp_keepalive(None)
            .build()
            .or_environment("cannot create an HTTP client")?;
        match endpoint {
            Endpoint::Session { port, token } => {
                TcpStream::connect(("127.0.0.1", *port))
                    .await
                    .or_environment(format!(
                        "no session listens on port {port}, which DAGGER_SESSION_PORT names"
                    ))
                    .map_err(|failure| {
                        failure.hint("Unset DAGGER_SESSION_PORT and DAGGER_SESSION_TOKEN if they are left from a `dagger run` that has ended.")
                    })?;
                Ok(Self {
                    connection: Connection {
                        address: Address {
                            port: *port,
                            token: token.clone(),
                        },
                        http,
                        telemetry: telemetry.clone(),
                    },
                    child: None,
                    socket: None,
                    watch: None,
                })
            }
            Endpoint::Cli {
                cli,
                runner_host,
                config_home,
                patience,
            } => {
                let mut command = provision::command(cli);
                command
                    .args(["session", "--label", "dagger.io/sdk.name:rust", "--label"])
                    .arg(format!("dagger.io/sdk.version:{}", common::pins::DAGGER))
                    // The session ends when this pipe closes, even if ci is killed.
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .env("DO_NOT_TRACK", "1")
                    .env("DAGGER_NO_NAG", "1");
                // Those of the user would send the engine's reports elsewhere.
                for (name, _) in std::env::vars_os() {
                    if name.as_encoded_bytes().starts_with(b"OTEL_") {
                        command.env_remove(name);
                    }
                }
                command
                    .env("OTEL_EXPORTER_OTLP_ENDPOINT", telemetry.endpoint())
                    // The CLI sends logs only if they have an endpoint of their own.
                    .env(
                        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
                        format!("{}/v1/logs", telemetry.endpoint()),
                    )
                    .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
                    .env("OTEL_EXPORTER_OTLP_TRACES_LIVE", "1")
                    .env_remove("TRACEPARENT")
                    .env_remove("DAGGER_SESSION_PORT");
                if let Some(home) = config_home {
                    command.env("XDG_CONFIG_HOME", home);
                }
                match runner_host {
                    Some(host) => command.env("_EXPERIMENTAL_DAGGER_RUNNER_HOST", host),
                    None => command.env_remove("_EXPERIMENTAL_DAGGER_RUNNER_HOST"),
                };
                let mut child = command
                    .spawn()
                    .or_environment(format!("cannot start Dagger's CLI at {}", cli.display()))?;
                let tail = StderrTail::default();
                if let Some(stderr) = child.stderr.take() {
                    tail.clone().collect(stderr);
                }
                let stdout = child.stdout.take();
                let params = tokio::time::timeout(*patience, read_params(stdout)).await;
                let engine = runner_host.as_deref().unwrap_or("the container runtime");
                let Ok(Some(params)) = params else {
                    if let Some(version) = refused_version(&tail.text()) {
                        return Err(unsupported(engine, &version));
                    }
                    let message = if params.is_err() {
                        let limit = patience.as_secs();
                        format!("the Dagger engine at {engine} did not answer within {limit} s")
                    } else {
                        format!("cannot connect to the Dagger engine at {engine}")
                    };
                    return Err(Failure::environment(message)
                        .output(tail.text())
                        .hint("Run `ci doctor`, or choose another engine with --engine: embedded, docker, or a URL."));
                };
                telemetry.connect();
                Ok(Self {
                    connection: Connection {
                        address: Address {
                            port: params.port,
                            token: params.session_token,
                        },
                        http,
                        telemetry: telemetry.clone(),
                    },
                    child: Some(child),
                    socket: runner_host
                        .as_deref()
                        .and_then(|host| host.strip_prefix("unix://"))
                        .map(PathBuf::from),
                    watch: None,
                })
            }
        }
    }

    /// The connection that clients of this session share.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Calls `lost` when an engine on this machine stops answering; a frozen engine would block a query forever. The CLI itself
    /// monitors remote engines.
    pub fn watch(&mut self, lost: impl FnOnce() + Send + 'static) {
        let Some(socket) = self.socket.clone() else {
            return;
        };
        self.watch = Some(tokio::spawn(async move {
            let mut failed = 0;
            // Counts probes instead of measuring time, because a suspended machine must not count as a lost engine.
            while failed < MAX_FAILED_PROBES {
                tokio::time::sleep(Duration::from_secs(1)).await;
                failed = if answers(&socket).await {
                    0
                } else {
                    failed + 1
                };
            }
            lost();
        }));
    }

    /// Closes the session, and kills its process if it does not exit within ten seconds.
    pub async fn close(mut self) {
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
        let Some(child) = &mut self.child else { return };
        drop(child.stdin.take());
        if tokio::time::timeout(Duration::from_secs(10), child.wait())
            .await
            .is_err()
        {
            // The engine is gone; kill_on_drop ends the process.
            tracing::debug!("the session did not exit by itself");
        }
    }
}

/// Whether an engine answers on the socket within [`ANSWER`].
pub(super) async fn answers(socket: &Path) -> bool {
    matches!(
        tokio::time::timeout(ANSWER, probe(socket)).await,
        Ok(Ok(true))
    )
}

/// Whether an HTTP server answers on the socket.
async fn probe(socket: &Path) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(socket).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
        .await?;
    let mut start = [0; 5];
    stream.read_exact(&mut start).await?;
    Ok(&start == b"HTTP/")
}

/// The version of the engine, if the output of Dagger's CLI says that it is too old for the CLI.
fn refused_version(output: &str) -> Option<String> {
    let (_, rest) = output.split_once("incompatible engine version v")?;
    Some(rest.split_whitespace().next()?.to_owned())
}

async fn read_params(
    stdout: Option<impl AsyncRead + Unpin + Send + 'static>,
) -> Option<ConnectParams> {
    let mut lines = BufReader::new(stdout?).lines();
    let params = loop {
        let line = lines.next_line().await.ok()??;
        if let Ok(params) = serde_json::from_str(&line) {
            break params;
        }
    };
    // A full pipe would block the session.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Some(params)
}

/// The last lines of the session's standard error.
#[derive(Clone, Default)]
struct StderrTail(Arc<Mutex<provision::Tail>>);

impl StderrTail {
    fn collect(self, stderr: impl AsyncRead + Unpin + Send + 'static) {
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                tracing::trace!(target: "dagger", "{line}");
                self.lock().push(&line);
            }
        });
    }

    /// The lines, without the colours that the CLI writes even into a file.
    fn text(&self) -> String {
        anstream::adapter::strip_str(&self.lock().text()).to_string()
    }

    fn lock(&self) -> MutexGuard<'_, provision::Tail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_version_that_the_cli_refused() {
        let output = "! start engine\nError: incompatible engine version v0.18.9\nexit";
        assert_eq!(refused_version(output).as_deref(), Some("0.18.9"));
        assert_eq!(refused_version("no such host"), None);
    }

    #[tokio::test]
    async fn dead_or_silent_socket_is_not_an_engine() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let limit = Duration::from_millis(200);
        assert!(tokio::time::timeout(limit, probe(&socket)).await.is_err());
        drop(listener);
        assert!(!answers(&socket).await);
    }
}
