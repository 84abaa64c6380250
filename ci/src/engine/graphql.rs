//! The GraphQL client below the SDK. It attributes each query to a step and preserves the details of errors.
//!
//! The SDK's own client ends every query after 1,000 s and drops the extensions of an error, which carry the exit code and the
//! output of a failed command. It also panics if an object that is passed as an argument to another one cannot be evaluated, for
//! example a directory that is mounted into a container.

use std::sync::Arc;

use async_trait::async_trait;
use dagger_sdk::core::graphql_client::{GraphQLClient, GraphQLError};
use dagger_sdk::errors::DaggerError;
use dagger_sdk::{DaggerConn, Query};
use serde::{Deserialize, Serialize};
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
    errors: Vec<QueryError>,
}

#[derive(Debug, Deserialize, Serialize)]
struct QueryError {
    message: String,
    #[serde(default)]
    extensions: Option<Extensions>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Extensions {
    #[serde(rename = "_type")]
    kind: String,
    cmd: Vec<String>,
    #[serde(rename = "exitCode")]
    exit_code: Option<i64>,
    stdout: String,
    stderr: String,
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
        // The SDK's error types hold only a string; [`EngineError`] parses this one.
        Err(GraphQLError::HttpError(
            serde_json::to_string(&answer.errors).unwrap_or_default(),
        ))
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
        let DaggerError::Query(GraphQLError::HttpError(text)) = &error else {
            return Self::Query(format!("{:#}", eyre::Report::new(error)));
        };
        let Ok(errors) = serde_json::from_str::<Vec<QueryError>>(text) else {
            return Self::Query(text.clone());
        };
        for error in &errors {
            if let Some(Extensions {
                exit_code: Some(code),
                stdout,
                stderr,
                ..
            }) = &error.extensions
            {
                let output = [stdout.trim_end(), stderr.trim_end()]
                    .into_iter()
                    .filter(|text| !text.is_empty())
                    .collect::<Vec<_>>()
                    .join("\n");
                return Self::Exec {
                    exit_code: *code,
                    output,
                };
            }
        }
        Self::Query(
            errors
                .into_iter()
                .map(|error| error.message)
                .collect::<Vec<_>>()
                .join("; "),
        )
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
    use super::*;

    #[test]
    fn exec_error_keeps_exit_code_and_output() {
        let text = r#"[{"message":"exit code: 3","extensions":{"_type":"EXEC_ERROR","cmd":["sh"],"exitCode":3,"stdout":"out\n","stderr":"err\n"}}]"#;
        let error = EngineError::from(DaggerError::Query(GraphQLError::HttpError(text.into())));
        assert!(
            matches!(error, EngineError::Exec { exit_code: 3, output } if output == "out\nerr")
        );
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
        for text in [
            "connection refused",
            r#"[{"message":"connection refused"}]"#,
        ] {
            let error = EngineError::from(DaggerError::Query(GraphQLError::HttpError(text.into())));
            assert!(matches!(error, EngineError::Query(text) if text == "connection refused"));
        }
    }
}
