//! Receives the engine's OTLP logs and spans, and attributes them to steps.
//!
//! The queries of each step carry a [W3C trace context] of their own, and the engine reports its work with that trace ID.
//!
//! The OpenTelemetry crates export and do not receive: only their messages (`opentelemetry-proto`) are used here.
//!
//! [W3C trace context]: https://www.w3.org/TR/trace-context/

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry::trace::{Span as _, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue as Attribute, global};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::sync::Notify;

use crate::output::{Piece, Splitter};
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

/// The span of a call that runs a command.
const EXEC: &str = "Container.withExec";
/// The span of the command itself.
const RESUMED_EXEC: &str = "resume withExec";
/// The span of a GraphQL query.
const QUERY: &str = "POST /query";

/// A command has two output streams.
const STREAMS: usize = 2;

/// Is called with each piece of output of a step's containers.
pub type Listener = Arc<dyn Fn(Piece<'_>) + Send + Sync>;

#[derive(Default)]
struct Trace {
    /// The step, or what else the queries are for.
    name: &'static str,
    listener: Option<Listener>,
    /// The span of the step, in what is sent to the user's collector.
    parent: Context,
    /// The queries that the session has answered, and those whose spans have arrived. The engine reports in order, so when a
    /// query's span arrives, everything that the query caused has arrived.
    answered: u64,
    reported: u64,
    /// The output streams, by span and stream.
    streams: HashMap<(Vec<u8>, i64), Splitter>,
    /// The output streams that have begun and not ended, by span.
    open_streams: HashSet<(Vec<u8>, i64)>,
    /// The number of output streams that have ended, by span.
    closed_streams: HashMap<Vec<u8>, usize>,
    /// Whether the engine answered a call of `Container.withExec` with an earlier result, by the call's span.
    execs: HashMap<Vec<u8>, bool>,
    /// The commands that ran and have exited, each as the spans of its calls: several queries can ask for the same command, whose
    /// output then belongs to one of them.
    ran: Vec<Vec<Vec<u8>>>,
    /// The status messages of the commands that have exited; empty after success.
    exited: HashMap<String, String>,
}

impl Trace {
    fn write(&mut self, key: (Vec<u8>, i64), text: &str, end: bool) {
        let Some(listener) = &self.listener else {
            return;
        };
        let stream = self.streams.entry(key).or_default();
        stream.push(text, |piece| listener(piece));
        if end {
            stream.end(|piece| listener(piece));
        }
    }

    /// Whether everything has arrived that the engine reports about the answered queries.
    fn is_complete(&self) -> bool {
        let complete = |calls: &Vec<Vec<u8>>| {
            let closed = calls
                .iter()
                .filter_map(|call| self.closed_streams.get(call));
            let is_cached = |call| self.execs.get(call).is_some_and(|cached| *cached);
            closed.sum::<usize>() >= STREAMS || calls.iter().any(is_cached)
        };
        self.reported >= self.answered && self.ran.iter().all(complete)
    }
}

#[derive(Default)]
struct Shared {
    /// Whether the engine reports to this receiver. It does not if another process has opened the session.
    connected: AtomicBool,
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

    /// Creates a trace context for the current step, or for something else with a name; `listener` is called with each piece of its
    /// output.
    #[must_use]
    pub fn trace(&self, name: &'static str, listener: Option<Listener>) -> TraceContext {
        let number = self.shared.last_trace.fetch_add(1, Ordering::Relaxed) + 1;
        let context = TraceContext::numbered(self.receiver, number);
        self.shared.traces().insert(
            context.trace,
            Trace {
                name,
                listener,
                parent: Context::current(),
                ..Trace::default()
            },
        );
        context
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

    /// Expects the engine's reports about a query that the session has answered.
    pub(super) fn expect_reports(&self, context: TraceContext) {
        if let Some(trace) = self.shared.traces().get_mut(&context.trace) {
            trace.answered += 1;
        }
    }

    /// Declares that the engine reports to this receiver.
    pub(super) fn connect(&self) {
        self.shared.connected.store(true, Ordering::Relaxed);
    }

    /// The engine's status message for a command that has exited; empty after success, `None` while it runs.
    #[must_use]
    pub fn exit_message(&self, context: TraceContext, command: &str) -> Option<String> {
        self.shared
            .traces()
            .get(&context.trace)
            .and_then(|trace| trace.exited.get(command).cloned())
    }

    /// Whether the engine has reported everything about the queries of a step that it has answered.
    #[must_use]
    pub fn is_settled(&self, context: TraceContext) -> bool {
        self.has_reached(context, Trace::is_complete)
    }

    /// Waits for the next reports that arrive after this call.
    pub fn changed(&self) -> impl Future<Output = ()> {
        self.shared.changed.notified()
    }

    /// Waits until the engine has reported everything about the queries of a step that it has answered, but at most for `limit`.
    pub async fn settle(&self, context: TraceContext, limit: Duration) {
        let complete = self.wait_until(context, Trace::is_complete);
        if tokio::time::timeout(limit, complete).await.is_err() {
            tracing::debug!("the engine's reports were incomplete after {limit:?}");
        }
    }

    /// Waits for the rest of the output of a step's services after they were stopped, but at most for `limit`. The engine does not
    /// report the end of a service that has printed nothing, so this also waits until nothing has arrived for a moment.
    pub async fn drain(&self, context: TraceContext, limit: Duration) {
        let quiet = Duration::from_millis(150);
        let drained = async {
            self.wait_until(context, |trace| trace.open_streams.is_empty())
                .await;
            while tokio::time::timeout(quiet, self.changed()).await.is_ok() {}
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::debug!("the output of a service was incomplete after {limit:?}");
        }
    }

    async fn wait_until(&self, context: TraceContext, reached: impl Fn(&Trace) -> bool) {
        loop {
            // Before the check, so that no report between the two is missed.
            let changed = self.changed();
            if self.has_reached(context, &reached) {
                return;
            }
            changed.await;
        }
    }

    /// Whether a trace has reached a state, or cannot, because nothing is reported about it to this receiver.
    fn has_reached(&self, context: TraceContext, reached: impl Fn(&Trace) -> bool) -> bool {
        !self.shared.connected.load(Ordering::Relaxed)
            || self.shared.traces().get(&context.trace).is_none_or(reached)
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
        // Calls report their result as verbose output of their own.
        if is_true(&record.attributes, "dagger.io/logs.verbose") {
            continue;
        }
        // Only the output of commands has a stream; the engine's own messages have none.
        let Some(Value::IntValue(stream)) = attribute(&record.attributes, "stdio.stream") else {
            continue;
        };
        let stream = *stream;
        let end = is_true(&record.attributes, "stdio.eof");
        let key = (record.span_id, stream);
        if end {
            trace.open_streams.remove(&key);
            *trace.closed_streams.entry(key.0.clone()).or_default() += 1;
        } else {
            trace.open_streams.insert(key.clone());
        }
        let text = match record.body {
            Some(AnyValue {
                value: Some(Value::StringValue(text)),
            }) => text,
            Some(AnyValue {
                value: Some(Value::BytesValue(bytes)),
            }) => String::from_utf8_lossy(&bytes).into_owned(),
            _ => String::new(),
        };
        trace.write(key, &text, end);
    }
    drop(traces);
    shared.changed.notify_waiters();
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
        let trace = <[u8; 16]>::try_from(span.trace_id.as_slice())
            .ok()
            .and_then(|id| traces.get_mut(&id));
        if span.end_time_unix_nano > 0 {
            // For the profile.
            tracing::trace!(
                track = trace.as_ref().map_or("dagger", |it| it.name),
                name = span.name,
                start = span.start_time_unix_nano,
                end = span.end_time_unix_nano,
            );
        }
        let Some(trace) = trace else { continue };
        forward(&span, &trace.parent);
        // The engine sends a span twice: at its start and at its end.
        if let (Some(command), 1..) = (span.name.strip_prefix("exec "), span.end_time_unix_nano) {
            let message = span.status.map(|status| status.message);
            trace
                .exited
                .insert(command.to_owned(), message.unwrap_or_default());
        }
        let ended = span.end_time_unix_nano > 0;
        match &*span.name {
            EXEC => {
                let cached = trace.execs.entry(span.span_id).or_default();
                *cached |= is_true(&span.attributes, "dagger.io/dag.cached");
            }
            // The call itself returns immediately. This span covers the execution, and links to the span of the call.
            RESUMED_EXEC if ended => {
                let calls = span.links.into_iter().map(|link| link.span_id);
                trace.ran.push(calls.collect());
            }
            QUERY if ended => trace.reported += 1,
            _ => {}
        }
    }
    drop(traces);
    shared.changed.notify_waiters();
    StatusCode::OK
}

/// Passes a call of a container, or its command, on to the user's collector, if there is one.
fn forward(span: &Span, parent: &Context) {
    // The engine answers some calls at once, and does their work in a span of its own.
    let is_call = ["Container.", "resume ", "exec "]
        .iter()
        .any(|start| span.name.starts_with(start));
    if span.end_time_unix_nano == 0 || !is_call || !parent.has_active_span() {
        return;
    }
    let time = |nanoseconds| std::time::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
    let cached = is_true(&span.attributes, "dagger.io/dag.cached");
    let tracer = global::tracer("dagger");
    let mut copy = tracer
        .span_builder(span.name.clone())
        .with_start_time(time(span.start_time_unix_nano))
        .with_attributes([Attribute::new("cached", cached)])
        .start_with_context(&tracer, parent);
    if let Some(status) = span.status.as_ref().filter(|it| !it.message.is_empty()) {
        copy.set_status(Status::error(status.message.clone()));
    }
    copy.end_with_timestamp(time(span.end_time_unix_nano));
}

fn is_true(attributes: &[KeyValue], name: &str) -> bool {
    matches!(attribute(attributes, name), Some(Value::BoolValue(true)))
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
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&lines);
        let mut trace = Trace {
            listener: Some(Arc::new(move |piece: Piece<'_>| {
                heard.lock().unwrap().push(format!("{piece:?}"));
            })),
            ..Trace::default()
        };
        trace.write((vec![1], 1), "one ", false);
        trace.write((vec![1], 2), "other\n", false);
        trace.write((vec![1], 1), "line\ntwo", false);
        trace.write((vec![1], 1), "", true);
        let expected = ["Line(\"other\")", "Line(\"one line\")", "Line(\"two\")"];
        assert_eq!(*lines.lock().unwrap(), expected);
    }

    #[test]
    fn a_command_that_two_queries_ask_for_has_its_output_once() {
        let mut trace = Trace {
            ran: vec![vec![vec![1], vec![2]]],
            ..Trace::default()
        };
        assert!(!trace.is_complete());
        trace.closed_streams.insert(vec![2], STREAMS);
        assert!(trace.is_complete());
        trace.ran.push(vec![vec![3]]);
        assert!(!trace.is_complete());
        trace.execs.insert(vec![3], true);
        assert!(trace.is_complete());
    }

    #[test]
    fn trace_ids_are_unique() {
        let header = TraceContext::numbered([7; 8], 1).header();
        assert_eq!(header.len(), 55);
        assert_ne!(header, TraceContext::numbered([7; 8], 2).header());
        assert_ne!(header, TraceContext::numbered([8; 8], 1).header());
    }
}
