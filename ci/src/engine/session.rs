//! The session with an engine: a `dagger session` process whose life, output and end are ours.
//!
//! The SDK's `connect` hides why it failed, skips its shutdown on an error and waits without a limit for a CLI whose
//! engine is gone.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dagger_sdk::DaggerConn;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;

use super::graphql::{self, Address};
use super::telemetry::{Telemetry, TraceContext};
use crate::failure::{Failure, OrFail};
use crate::provision;

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

/// An open session.
pub struct Session {
    address: Address,
    http: reqwest::Client,
    child: Option<Child>,
}

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
            .build()
            .or_environment("cannot make an HTTP client")?;
        match endpoint {
            Endpoint::Session { port, token } => Ok(Self {
                address: Address {
                    port: *port,
                    token: token.clone(),
                },
                http,
                child: None,
            }),
            Endpoint::Cli {
                cli,
                runner_host,
                patience,
            } => {
                let mut command = provision::command(cli);
                command
                    .args(["session", "--label", "dagger.io/sdk.name:rust", "--label"])
                    .arg(format!("dagger.io/sdk.version:{}", crate::pins::DAGGER))
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
                    address: Address {
                        port: params.port,
                        token: params.session_token,
                    },
                    http,
                    child: Some(child),
                })
            }
        }
    }

    /// The SDK's client, for the queries of one step.
    #[must_use]
    pub fn client(&self, trace: TraceContext) -> DaggerConn {
        graphql::client(&self.http, &self.address, trace)
    }

    /// Ends the session: politely at first, and certainly within ten seconds.
    pub async fn close(mut self) {
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
