//! The GraphQL client below the SDK: it says which step a query belongs to, and loses nothing of an error.
//!
//! The SDK's own ends every query after 1,000 s and cannot read the extensions of an error, which is where the engine
//! says with what exit code and output a command failed. And it panics over an error where one object is the argument of
//! another, as a folder is of a container.

use std::sync::Arc;

use async_trait::async_trait;
use dagger_sdk::core::graphql_client::{GraphQLClient, GraphQLError};
use dagger_sdk::errors::DaggerError;
use dagger_sdk::{DaggerConn, Query};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::telemetry::TraceContext;
use common::failure::Failure;

/// Where the session listens.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub port: u16,
    pub token: String,
}

/// A client of the SDK whose queries carry `trace` as their W3C trace context.
pub(super) fn client(http: &reqwest::Client, address: &Address, trace: TraceContext) -> DaggerConn {
    Query {
        proc: None,
        selection: Default::default(),
        graphql_client: Arc::new(Client {
            http: http.clone(),
            address: address.clone(),
            trace,
        }),
    }
}

struct Client {
    http: reqwest::Client,
    address: Address,
    trace: TraceContext,
}

#[derive(Deserialize)]
struct Answer {
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
    /// Takes the error that the SDK would panic over.
    static BROKEN: mpsc::Sender<GraphQLError>;
}

/// `work`, unless the engine fails at something where the SDK would panic.
///
/// # Errors
/// Those of `work`; or what the engine said.
pub async fn unbroken<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let (sender, mut broken) = mpsc::channel(1);
    tokio::select! {
        result = BROKEN.scope(sender, work) => result,
        Some(error) = broken.recv() => {
            Err(EngineError::from(DaggerError::Query(error)).into_environment("cannot go on"))
        }
    }
}

#[async_trait]
impl GraphQLClient for Client {
    async fn query(&self, query: &str) -> Result<Option<serde_json::Value>, GraphQLError> {
        let answer = self.ask(query).await;
        // For the id of what it is to hand over as an argument, and unwraps the answer.
        match (answer, BROKEN.try_with(mpsc::Sender::clone)) {
            (Err(error), Ok(broken)) if asks_for_an_id(query) => {
                // The first error counts.
                let _ = broken.try_send(error);
                // Whoever listens drops this future.
                std::future::pending().await
            }
            (answer, _) => answer,
        }
    }
}

fn asks_for_an_id(query: &str) -> bool {
    query.trim_end_matches('}').ends_with("{id")
}

impl Client {
    async fn ask(&self, query: &str) -> Result<Option<serde_json::Value>, GraphQLError> {
        let lost = |error: reqwest::Error| {
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
            .map_err(lost)?;
        let status = response.status();
        let body = response.bytes().await.map_err(lost)?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| {
            GraphQLError::HttpError(format!(
                "the session answered {status}: {}",
                String::from_utf8_lossy(&body).trim()
            ))
        })?;
        if answer.errors.is_empty() {
            return Ok(answer.data);
        }
        // The SDK's error types hold a text and nothing else; [`EngineError`] reads this one back.
        Err(GraphQLError::HttpError(
            serde_json::to_string(&answer.errors).unwrap_or_default(),
        ))
    }
}

/// What the engine said went wrong.
#[derive(Debug)]
pub enum EngineError {
    /// A command in a container ended with another code than 0.
    Exec {
        /// The code it ended with.
        exit_code: i64,
        /// What it wrote, standard output first.
        output: String,
    },
    /// The engine could not do what it was asked to.
    Query(String),
}

impl From<DaggerError> for EngineError {
    fn from(error: DaggerError) -> Self {
        let text = match &error {
            DaggerError::Query(GraphQLError::HttpError(text)) => text,
            _ => return Self::Query(format!("{:#}", eyre::Report::new(error))),
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
    /// A failure of the engine or of what lies around it, whatever it was that failed.
    #[must_use]
    pub fn into_environment(self, doing: &str) -> Failure {
        match self {
            Self::Exec { exit_code, output } => {
                Failure::environment(format!("{doing}: the command ended with exit code {exit_code}")).output(output)
            }
            Self::Query(text) if text.contains("no space left on device") => {
                Failure::environment(format!("{doing}: the engine's disk is full: {text}"))
                    .hint("Free some space; `ci engine prune` frees what can be made again.")
            }
            Self::Query(text) => Failure::environment(format!("{doing}: the engine said: {text}"))
                .hint("Run `ci doctor`; where the engine is gone, `ci engine down` and another run start it anew."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_error_keeps_its_exit_code_and_output() {
        let text = r#"[{"message":"exit code: 3","extensions":{"_type":"EXEC_ERROR","cmd":["sh"],"exitCode":3,"stdout":"out\n","stderr":"err\n"}}]"#;
        let error = EngineError::from(DaggerError::Query(GraphQLError::HttpError(text.into())));
        assert!(
            matches!(error, EngineError::Exec { exit_code: 3, output } if output == "out\nerr")
        );
    }

    #[test]
    fn only_a_query_for_an_id_is_one() {
        assert!(asks_for_an_id("query{host{directory(path:\"/x\"){id}}}"));
        assert!(!asks_for_an_id(
            "query{container{withNewFile(contents:\"{id}\"){exitCode}}}"
        ));
    }

    #[test]
    fn any_other_error_keeps_its_words() {
        for text in [
            "connection refused",
            r#"[{"message":"connection refused"}]"#,
        ] {
            let error = EngineError::from(DaggerError::Query(GraphQLError::HttpError(text.into())));
            assert!(matches!(error, EngineError::Query(text) if text == "connection refused"));
        }
    }
}
