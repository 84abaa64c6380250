//! The GraphQL client below the SDK. It attributes each query to a step.
//!
//! The SDK's own client (0.21.8) sends no trace context, uses the proxy of the environment even for this machine, and creates a
//! connection pool for each step. The SDK also still panics if an object that is passed as an argument to another one cannot be
//! evaluated, for example a directory that is mounted into a container.

use std::sync::Arc;

use async_trait::async_trait;
use dagger_sdk::core::gql_client::{GraphQLErrorMessage, GraphQlExtension};
use dagger_sdk::core::graphql_client::{GraphQLClient, GraphQLError};
use dagger_sdk::errors::DaggerError;
use dagger_sdk::{DaggerConn, Query};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::telemetry::{Telemetry, TraceContext};
use common::failure::Failure;

#[derive(Clone, Debug)]
pub(super) struct Address {
    pub port: u16,
    pub token: String,
}

/// Creates an SDK client whose queries carry `trace` as their W3C trace context.
pub(super) fn client(
    http: &reqwest::Client,
    address: &Address,
    telemetry: &Telemetry,
    trace: TraceContext,
) -> DaggerConn {
    Query {
        proc: None,
        selection: Default::default(),
        graphql_client: Arc::new(Client {
            http: http.clone(),
            address: address.clone(),
            telemetry: telemetry.clone(),
            trace,
        }),
    }
}

struct Client {
    http: reqwest::Client,
    address: Address,
    telemetry: Telemetry,
    trace: TraceContext,
}

#[derive(Deserialize)]
struct Response {
    data: Option<serde_json::Value>,
    #[serde(default)]
    errors: Vec<serde_json::Value>,
}

tokio::task_local! {
    /// Receives the error on which the SDK would panic.
    static PANICKING: mpsc::Sender<GraphQLError>;
}

/// Runs `work`, and returns an error if a query fails on which the SDK would panic.
///
/// # Errors
/// Those of `work`, or the error of that query.
pub(crate) async fn catch_query_panics<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let (sender, mut errors) = mpsc::channel(1);
    tokio::select! {
        result = PANICKING.scope(sender, work) => result,
        Some(error) = errors.recv() => {
            Err(EngineError::from(DaggerError::Query(error)).into_environment("a query failed"))
        }
    }
}

#[async_trait]
impl GraphQLClient for Client {
    async fn query(&self, query: &str) -> Result<Option<serde_json::Value>, GraphQLError> {
        let result = self.send(query).await;
        // The SDK queries the ID of an object that is passed as an argument, and unwraps the result.
        match (result, PANICKING.try_with(mpsc::Sender::clone)) {
            (Err(error), Ok(errors)) if is_id_query(query) => {
                // Only the first error is reported.
                let _ = errors.try_send(error);
                // The receiver drops this future.
                std::future::pending().await
            }
            (result, _) => result,
        }
    }
}

fn is_id_query(query: &str) -> bool {
    query.trim_end_matches('}').ends_with("{id")
}

impl Client {
    async fn send(&self, query: &str) -> Result<Option<serde_json::Value>, GraphQLError> {
        let http_error = |error: reqwest::Error| {
            GraphQLError::HttpError(format!("{:#}", eyre::Report::new(error.without_url())))
        };
        let response = self
            .http
            .post(format!("http://127.0.0.1:{}/query", self.address.port))
            .basic_auth(&self.address.token, Some(""))
            .header("traceparent", self.trace.header())
            .json(&serde_json::json!({ "query": query }))
            .send()
            .await
            .map_err(http_error)?;
        let status = response.status();
        self.telemetry.expect_reports(self.trace);
        let body = response.bytes().await.map_err(http_error)?;
        let answer: Response = serde_json::from_slice(&body).map_err(|_| {
            GraphQLError::HttpError(format!(
                "the session returned {status}: {}",
                String::from_utf8_lossy(&body).trim()
            ))
        })?;
        if answer.errors.is_empty() {
            return Ok(answer.data);
        }
        Err(decode(answer.errors))
    }
}

fn decode(errors: Vec<serde_json::Value>) -> GraphQLError {
    let message = errors
        .iter()
        .map(|error| error["message"].as_str().unwrap_or("unknown error"))
        .collect::<Vec<_>>()
        .join("; ");
    match serde_json::from_value::<Vec<GraphQLErrorMessage>>(errors.into()) {
        Ok(fields) => GraphQLError::DomainError { message, fields },
        // Extensions that the SDK does not know.
        Err(_) => GraphQLError::HttpError(message),
    }
}

/// An error that the engine returned.
#[derive(Debug)]
pub(crate) enum EngineError {
    /// A command in a container exited with a code other than 0.
    Exec {
        exit_code: i64,
        /// Standard output, followed by standard error.
        output: String,
    },
    /// Any other failed query.
    Query(String),
}

impl From<DaggerError> for EngineError {
    fn from(error: DaggerError) -> Self {
        let (message, fields) = match error {
            DaggerError::Query(GraphQLError::DomainError { message, fields }) => (message, fields),
            DaggerError::Query(GraphQLError::HttpError(message)) => (message, Vec::new()),
            other => return Self::Query(format!("{:#}", eyre::Report::new(other))),
        };
        let exec = fields
            .into_iter()
            .find_map(|error| match error.extensions? {
                GraphQlExtension::ExecError {
                    exit_code,
                    stdout,
                    stderr,
                    ..
                    // A negative code stands for a command that the engine could not start.
                } if exit_code >= 0 => Some((exit_code, stdout, stderr)),
                GraphQlExtension::ExecError { .. } | GraphQlExtension::Other => None,
            });
        match exec {
            Some((exit_code, stdout, stderr)) => Self::Exec {
                exit_code: exit_code.into(),
                output: [stdout.trim_end(), stderr.trim_end()]
                    .into_iter()
                    .filter(|text| !text.is_empty())
                    .collect::<Vec<_>>()
                    .join("\n"),
            },
            None => Self::Query(message),
        }
    }
}

impl EngineError {
    /// Converts any engine error to a failure with exit code 3. `doing` is the start of the message: `cannot pull X`.
    #[must_use]
    pub(crate) fn into_environment(self, doing: &str) -> Failure {
        match self {
            Self::Exec { exit_code, output } => {
                Failure::environment(format!("{doing}: the command exited with code {exit_code}")).output(output)
            }
            Self::Query(text) if text.contains("no space left on device") => {
                Failure::environment(format!("{doing}: the engine's disk is full: {text}"))
                    .hint("Free some disk space, for example with `ci engine prune`.")
            }
            Self::Query(text) => Failure::environment(format!("{doing}: engine error: {text}"))
                .hint("Run `ci doctor`. If the engine has died, run `ci engine down` and start again."),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decoded(errors: serde_json::Value) -> EngineError {
        let errors = errors.as_array().cloned().unwrap_or_default();
        EngineError::from(DaggerError::Query(decode(errors)))
    }

    #[test]
    fn exec_error_keeps_exit_code_and_output() {
        let error = decoded(json!([{
            "message": "exit code: 3",
            "path": ["container", 0],
            "extensions": {
                "_type": "EXEC_ERROR", "cmd": ["sh"], "exitCode": 3, "stdout": "out\n", "stderr": "err\n",
            },
        }]));
        assert!(
            matches!(error, EngineError::Exec { exit_code: 3, output } if output == "out\nerr")
        );
    }

    #[test]
    fn a_command_that_did_not_start_is_an_error_of_the_engine() {
        let error = decoded(json!([{
            "message": "failed to mount /run/agent.sock",
            "path": ["container", 0],
            "extensions": {
                "_type": "EXEC_ERROR", "cmd": ["sh"], "exitCode": -1, "stdout": "", "stderr": "",
            },
        }]));
        assert!(matches!(error, EngineError::Query(text) if text.contains("/run/agent.sock")));
    }

    #[test]
    fn recognizes_id_queries() {
        assert!(is_id_query("query{host{directory(path:\"/x\"){id}}}"));
        assert!(!is_id_query(
            "query{container{withNewFile(contents:\"{id}\"){exitCode}}}"
        ));
    }

    #[test]
    fn other_errors_keep_their_message() {
        for errors in [
            json!([{"message": "connection refused"}]),
            json!([{"message": "connection refused", "extensions": {"_type": "NEW"}}]),
            json!([{"message": "connection refused", "extensions": {"code": 7}}]),
        ] {
            let error = decoded(errors);
            assert!(matches!(error, EngineError::Query(text) if text == "connection refused"));
        }
        let error = GraphQLError::HttpError("connection refused".to_owned());
        let error = EngineError::from(DaggerError::Query(error));
        assert!(matches!(error, EngineError::Query(text) if text == "connection refused"));
    }
}
