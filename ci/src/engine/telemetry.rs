//! Receives the engine's OTLP logs and spans, and attributes them to steps.
//!
//! The queries of each step carry a [W3C trace context] of their own, and the engine reports its work with that trace ID.
//!
//! The OpenTelemetry crates export and do not receive: only their messages (`opentelemetry-proto`) are used here.
//!
//! [W3C trace context]: https://www.w3.org/TR/trace-context/

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use tokio::sync::Notify;

use common::failure::{Failure, OrFail};

/// The trace and span that a step's queries belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
}

impl TraceContext {
    /// The `number`-th trace context of this receiver.
    fn numbered(receiver: [u8; 8], number: u64) -> Self {
        let mut trace = [0; 16];
        trace[..8].copy_from_slice(&receiver);
        trace[8..].copy_from_slice(&number.to_be_bytes());
        let span = (u64::from_be_bytes(receiver) ^ number).to_be_bytes();
        Self { trace, span }
    }

    /// The `traceparent` header.
    #[must_use]
    pub fn header(&self) -> String {
        format!(
            "00-{}-{}-01",
            hex::encode(self.trace),
            hex::encode(self.span)
        )
    }
}

/// The calls whose output is the output of a command in a container.
const COMMANDS: [&str; 2] = ["Container.withExec", "Container.asService"];

/// Is called with each line that a step's containers print.
pub type Listener = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct Trace {
    listener: Option<Listener>,
    /// The beginning of an incomplete line, by span and stream.
    pending: HashMap<(Vec<u8>, i64), String>,
    /// The complete lines, each with its span.
    lines: Vec<(Vec<u8>, String)>,
    /// Whether a span is a command. Other calls report their result as if it were output.
    commands: HashMap<Vec<u8>, bool>,
    /// Whether the result of each container command came from the cache.
    execs: HashMap<Vec<u8>, bool>,
    /// The status messages of the commands that have exited; empty after success.
    exited: HashMap<String, String>,
}

impl Trace {
    fn write(&mut self, key: (Vec<u8>, i64), text: &str, end: bool) {
        let span = key.0.clone();
        let pending = self.pending.entry(key).or_default();
        pending.push_str(text);
        let mut lines = Vec::new();
        while let Some(end) = pending.find('\n') {
            let rest = pending.split_off(end + 1);
            lines.push(std::mem::replace(pending, rest));
        }
        if end && !pending.is_empty() {
            lines.push(std::mem::take(pending));
        }
        for line in lines {
            let line = line.trim_end_matches(['\n', '\r']);
            self.lines.push((span.clone(), line.to_owned()));
            if let Some(listener) = &self.listener
                && self.is_output(&span)
            {
                listener(line);
            }
        }
    }

    /// Whether a span's lines are the output of a command. Unknown spans count as commands, because losing output is worse.
    fn is_output(&self, span: &[u8]) -> bool {
        self.commands.get(span).copied().unwrap_or(true)
    }

    fn log(&self) -> String {
        let lines = self.lines.iter().filter(|(span, _)| self.is_output(span));
        lines.fold(String::new(), |log, (_, line)| log + line + "\n")
    }
}

#[derive(Default)]
struct Shared {
    traces: Mutex<HashMap<[u8; 16], Trace>>,
    last_trace: AtomicU64,
    changed: Notify,
}

impl Shared {
    fn traces(&self) -> MutexGuard<'_, HashMap<[u8; 16], Trace>> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An OTLP receiver on loopback. It listens until the process exits.
#[derive(Clone)]
pub struct Telemetry {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// A random ID, so that no two receivers share a trace ID.
    receiver: [u8; 8],
}

impl Telemetry {
    /// Starts the receiver on a free port.
    ///
    /// # Errors
    /// When no port can be bound on loopback.
    pub async fn start() -> Result<Self, Failure> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .or_environment("cannot listen on loopback for the engine's telemetry")?;
        let address = listener
            .local_addr()
            .or_environment("cannot listen on loopback")?;
        let mut receiver = [0; 8];
        getrandom::fill(&mut receiver).or_environment("cannot generate random numbers")?;
        let shared = Arc::new(Shared::default());
        let router = Router::new()
            .route("/v1/logs", post(logs))
            .route("/v1/traces", post(spans))
            .route("/v1/metrics", post(async || StatusCode::OK))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            shared,
            address,
            receiver,
        })
    }

    /// The base URL for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates a trace context for a step; `listener` is called with each line of its output.
    #[must_use]
    pub fn trace(&self, listener: Option<Listener>) -> TraceContext {
        let number = self.shared.last_trace.fetch_add(1, Ordering::Relaxed) + 1;
        let context = TraceContext::numbered(self.receiver, number);
        self.shared.traces().insert(
            context.trace,
            Trace {
                listener,
                ..Trace::default()
            },
        );
        context
    }

    /// The output of the step's containers so far.
    #[must_use]
    pub fn log(&self, context: TraceContext) -> String {
        self.shared
            .traces()
            .get(&context.trace)
            .map(Trace::log)
            .unwrap_or_default()
    }

    /// Whether the results of all commands of the step came from the engine's cache; false if the engine reported no command.
    #[must_use]
    pub fn cached(&self, context: TraceContext) -> bool {
        self.shared
            .traces()
            .get(&context.trace)
            .is_some_and(|trace| {
                !trace.execs.is_empty() && trace.execs.values().all(|cached| *cached)
            })
    }

    /// The engine's status message for a command that has exited; empty after success, `None` while it runs.
    #[must_use]
    pub fn exit_message(&self, context: TraceContext, command: &str) -> Option<String> {
        self.shared
            .traces()
            .get(&context.trace)
            .and_then(|trace| trace.exited.get(command).cloned())
    }

    /// Waits until no more reports arrive, but at most for `limit`: the engine sends in batches.
    pub async fn settle(&self, limit: Duration) {
        let quiet = Duration::from_millis(150);
        let all = async {
            while tokio::time::timeout(quiet, self.shared.changed.notified())
                .await
                .is_ok()
            {}
        };
        let _ = tokio::time::timeout(limit, all).await;
    }
}

async fn logs(State(shared): State<Arc<Shared>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportLogsServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let records = request
        .resource_logs
        .into_iter()
        .flat_map(|resource| resource.scope_logs)
        .flat_map(|scope| scope.log_records);
    let mut traces = shared.traces();
    for record in records {
        let Some(trace) = <[u8; 16]>::try_from(record.trace_id.as_slice())
            .ok()
            .and_then(|id| traces.get_mut(&id))
        else {
            continue;
        };
        // Only the output of commands has a stream; the engine's own messages have none.
        let Some(Value::IntValue(stream)) = attribute(&record.attributes, "stdio.stream") else {
            continue;
        };
        let stream = *stream;
        let end = matches!(
            attribute(&record.attributes, "stdio.eof"),
            Some(Value::BoolValue(true))
        );
        let text = match record.body {
            Some(AnyValue {
                value: Some(Value::StringValue(text)),
            }) => text,
            Some(AnyValue {
                value: Some(Value::BytesValue(bytes)),
            }) => String::from_utf8_lossy(&bytes).into_owned(),
            _ => String::new(),
        };
        trace.write((record.span_id, stream), &text, end);
    }
    drop(traces);
    shared.changed.notify_one();
    StatusCode::OK
}

async fn spans(State(shared): State<Arc<Shared>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let spans = request
        .resource_spans
        .into_iter()
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans);
    let mut traces = shared.traces();
    for span in spans {
        let Some(trace) = <[u8; 16]>::try_from(span.trace_id.as_slice())
            .ok()
            .and_then(|id| traces.get_mut(&id))
        else {
            continue;
        };
        trace
            .commands
            .insert(span.span_id.clone(), COMMANDS.contains(&&*span.name));
        // The engine sends a span twice: at its start and at its end.
        if let (Some(command), 1..) = (span.name.strip_prefix("exec "), span.end_time_unix_nano) {
            let message = span.status.map(|status| status.message);
            trace
                .exited
                .insert(command.to_owned(), message.unwrap_or_default());
        }
        // The call returns immediately; the span with an effect ID covers the work itself.
        if span.name.ends_with("Container.withExec")
            && attribute(&span.attributes, "dagger.io/effect.id").is_some()
        {
            let cached = matches!(
                attribute(&span.attributes, "dagger.io/dag.cached"),
                Some(Value::BoolValue(true))
            );
            let known = trace.execs.entry(span.span_id).or_default();
            *known |= cached;
        }
    }
    drop(traces);
    shared.changed.notify_one();
    StatusCode::OK
}

fn attribute<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a Value> {
    attributes
        .iter()
        .find(|attribute| attribute.key == name)
        .and_then(|attribute| attribute.value.as_ref()?.value.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_lines_by_stream() {
        let mut trace = Trace::default();
        trace.write((vec![1], 1), "one ", false);
        trace.write((vec![1], 2), "other\n", false);
        trace.write((vec![1], 1), "line\ntwo", false);
        trace.write((vec![1], 1), "", true);
        assert_eq!(trace.log(), "other\none line\ntwo\n");
    }

    #[test]
    fn result_of_a_call_is_not_output() {
        let mut trace = Trace::default();
        trace.write((vec![1], 1), "of a command\n", false);
        trace.write((vec![2], 1), "of a call\n", false);
        trace.write((vec![3], 1), "of an unknown span\n", false);
        trace.commands.extend([(vec![1], true), (vec![2], false)]);
        assert_eq!(trace.log(), "of a command\nof an unknown span\n");
    }

    #[test]
    fn trace_ids_are_unique() {
        let header = TraceContext::numbered([7; 8], 1).header();
        assert_eq!(header.len(), 55);
        assert_ne!(header, TraceContext::numbered([7; 8], 2).header());
        assert_ne!(header, TraceContext::numbered([8; 8], 1).header());
    }
}
