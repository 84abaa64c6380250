//! The session with an engine: a `dagger session` process whose life, output and end are ours.
//!
//! The SDK's `connect` hides why it failed, skips its shutdown on an error and waits without a limit for a CLI whose
//! engine is gone.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dagger_sdk::DaggerConn;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::task::JoinHandle;

use super::graphql::{self, Address};
use super::telemetry::{Telemetry, TraceContext};
use common::failure::{Failure, OrFail};
use common::provision;

/// How an engine is reached.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// A session that somebody else has opened (`dagger run`): port and token.
    Session {
        /// `DAGGER_SESSION_PORT`.
        port: u16,
        /// `DAGGER_SESSION_TOKEN`.
        token: String,
    },
    /// Through Dagger's CLI.
    Cli {
        /// The CLI's file.
        cli: PathBuf,
        /// The engine's URL; without one the CLI starts an engine in a container runtime.
        runner_host: Option<String>,
        /// How long the engine may take to answer the first time.
        patience: Duration,
    },
}

/// What the clients of an open session need.
#[derive(Clone)]
pub struct Connection {
    address: Address,
    http: reqwest::Client,
}

impl Connection {
    /// The SDK's client, for the queries of one step.
    #[must_use]
    pub fn client(&self, trace: TraceContext) -> DaggerConn {
        graphql::client(&self.http, &self.address, trace)
    }
}

/// An open session.
pub struct Session {
    connection: Connection,
    child: Option<Child>,
    /// The engine's socket, where that is on this machine.
    socket: Option<PathBuf>,
    watch: Option<JoinHandle<()>>,
}

/// An engine that is well answers within milliseconds; one that is busy may take a little.
const ANSWER: Duration = Duration::from_secs(5);
/// An engine that leaves as many questions in a row without an answer is taken for lost: half a minute of silence.
const SILENT: u32 = 6;

#[derive(Deserialize)]
struct ConnectParams {
    port: u16,
    session_token: String,
}

impl Session {
    /// Opens a session; what the engine does in it is reported to `telemetry`.
    ///
    /// # Errors
    /// When the CLI does not start, or the engine does not answer in time; with what the CLI said.
    pub async fn open(endpoint: &Endpoint, telemetry: &Telemetry) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .no_proxy()
            // Its other end is on this machine. A query may be silent for as long as a build takes, and a machine that was
            // busy, paused or asleep meanwhile is no reason to give it up.
            .tcp_keepalive(None)
            .build()
            .or_environment("cannot make an HTTP client")?;
        match endpoint {
            Endpoint::Session { port, token } => Ok(Self {
                connection: Connection {
                    address: Address {
                        port: *port,
                        token: token.clone(),
                    },
                    http,
                },
                child: None,
                socket: None,
                watch: None,
            }),
            Endpoint::Cli {
                cli,
                runner_host,
                patience,
            } => {
                let mut command = provision::command(cli);
                command
                    .args(["session", "--label", "dagger.io/sdk.name:rust", "--label"])
                    .arg(format!("dagger.io/sdk.version:{}", common::pins::DAGGER))
                    // The session ends when this pipe closes: also when ci is killed.
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .env("DO_NOT_TRACK", "1")
                    .env("DAGGER_NO_NAG", "1")
                    .env("OTEL_EXPORTER_OTLP_ENDPOINT", telemetry.endpoint())
                    // Logs are sent only where they have an endpoint of their own.
                    .env(
                        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
                        format!("{}/v1/logs", telemetry.endpoint()),
                    )
                    .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
                    .env("OTEL_EXPORTER_OTLP_TRACES_LIVE", "1")
                    .env_remove("TRACEPARENT")
                    .env_remove("DAGGER_SESSION_PORT");
                match runner_host {
                    Some(host) => command.env("_EXPERIMENTAL_DAGGER_RUNNER_HOST", host),
                    None => command.env_remove("_EXPERIMENTAL_DAGGER_RUNNER_HOST"),
                };
                let mut child = command
                    .spawn()
                    .or_environment(format!("cannot start Dagger's CLI at {}", cli.display()))?;
                let said = Said::default();
                if let Some(stderr) = child.stderr.take() {
                    said.clone().listen(stderr);
                }
                let stdout = child.stdout.take();
                let first = tokio::time::timeout(*patience, first_line(stdout)).await;
                let engine = runner_host.as_deref().unwrap_or("the container runtime");
                let Ok(Some(params)) = first else {
                    let how = if first.is_err() {
                        format!("did not answer within {} s", patience.as_secs())
                    } else {
                        "could not be connected to".to_owned()
                    };
                    return Err(Failure::environment(format!("the Dagger engine at {engine} {how}"))
                        .output(said.text())
                        .hint("Run `ci doctor`. --engine chooses another engine: embedded, docker, or a URL."));
                };
                Ok(Self {
                    connection: Connection {
                        address: Address {
                            port: params.port,
                            token: params.session_token,
                        },
                        http,
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

    /// What its clients need.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Calls `lost` when an engine on this machine does not answer any more: a frozen one would hold a query for ever. One
    /// elsewhere is the CLI's to watch.
    pub fn watch(&mut self, lost: impl FnOnce() + Send + 'static) {
        let Some(socket) = self.socket.clone() else {
            return;
        };
        self.watch = Some(tokio::spawn(async move {
            let mut silent = 0;
            // Counted and not timed: whoever freezes the whole machine freezes the clock's reader, too.
            while silent < SILENT {
                tokio::time::sleep(Duration::from_secs(1)).await;
                silent = if answers(&socket).await {
                    0
                } else {
                    silent + 1
                };
            }
            lost();
        }));
    }

    /// Ends the session: politely at first, and certainly within ten seconds.
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
            // Its engine is gone; kill_on_drop ends it.
            tracing::debug!("the session did not end by itself");
        }
    }
}

/// Whether an engine answers on its socket now.
pub(super) async fn answers(socket: &Path) -> bool {
    matches!(
        tokio::time::timeout(ANSWER, ask(socket)).await,
        Ok(Ok(true))
    )
}

/// Whether something that speaks HTTP answers on the socket.
async fn ask(socket: &Path) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(socket).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
        .await?;
    let mut start = [0; 5];
    stream.read_exact(&mut start).await?;
    Ok(&start == b"HTTP/")
}

async fn first_line(
    stdout: Option<impl AsyncRead + Unpin + Send + 'static>,
) -> Option<ConnectParams> {
    let mut lines = BufReader::new(stdout?).lines();
    let params = loop {
        let line = lines.next_line().await.ok()??;
        if let Ok(params) = serde_json::from_str(&line) {
            break params;
        }
    };
    // A full pipe would stop the session.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Some(params)
}

/// The last lines of the session's standard error.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<provision::Tail>>);

impl Said {
    fn listen(self, stderr: impl AsyncRead + Unpin + Send + 'static) {
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                tracing::trace!(target: "dagger", "{line}");
                self.lock().push(&line);
            }
        });
    }

    fn text(&self) -> String {
        self.lock().text()
    }

    fn lock(&self) -> MutexGuard<'_, provision::Tail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_of_the_dead_or_of_the_silent_is_no_engine() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let limit = Duration::from_millis(200);
        assert!(tokio::time::timeout(limit, ask(&socket)).await.is_err());
        drop(listener);
        assert!(!answers(&socket).await);
    }
}
