//! The spans that a run sends to the user's collector.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message as _;

use crate::harness::{Ci, Project};

/// A collector on loopback.
struct Collector {
    received: Arc<Mutex<Vec<ResourceSpans>>>,
    /// Everything else that was sent to it, such as logs.
    others: Arc<Mutex<usize>>,
    url: String,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let received: Arc<Mutex<Vec<ResourceSpans>>> = Arc::default();
        let others: Arc<Mutex<usize>> = Arc::default();
        let (spans, other) = (Arc::clone(&received), Arc::clone(&others));
        let router = Router::new()
            .route(
                "/v1/traces",
                post(async move |body: Bytes| {
                    let request = ExportTraceServiceRequest::decode(body).unwrap();
                    spans.lock().unwrap().extend(request.resource_spans);
                }),
            )
            .fallback(async move || *other.lock().unwrap() += 1);
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)))
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            received,
            others,
            url,
            _runtime: runtime,
        }
    }

    /// Names the collector in every variable that an exporter reads.
    fn in_environment_of(&self, ci: Ci) -> Ci {
        ci.env("OTEL_EXPORTER_OTLP_ENDPOINT", &self.url)
            .env(
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                &format!("{}/v1/traces", self.url),
            )
            .env(
                "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
                &format!("{}/v1/logs", self.url),
            )
            .env("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &self.url)
            .env("OTEL_RESOURCE_ATTRIBUTES", "team=status")
    }
}

#[test]
fn a_collector_gets_the_spans_of_run_steps_and_container_calls() {
    let project = Project::new("spans");
    let collector = Collector::start();
    let token = "ghs_not-to-be-sent";
    // Never in the engine's cache.
    let now = jiff::Timestamp::now().as_nanosecond();
    let command = format!("[[gate]]\nname = \"login\"\nrun = \"true {token} {now}\"\n");
    project.write("ci.toml", &command);
    let run = collector
        .in_environment_of(project.ci(&["custom"]))
        .env("GITHUB_TOKEN", token)
        .run()
        .exits(0);
    assert_eq!(run.status("custom"), "passed");
    let received = collector.received.lock().unwrap();
    let text = format!("{received:?}");
    assert!(!text.contains(token), "{text}");
    // Nothing comes from the engine itself.
    assert_eq!(*collector.others.lock().unwrap(), 0);
    let mut spans = Vec::new();
    for resource in received.iter() {
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        let attribute = |name: &str| {
            let found = attributes.iter().find(|it| it.key == name)?;
            match found.value.as_ref()?.value.as_ref()? {
                Value::StringValue(text) => Some(text.as_str()),
                _ => None,
            }
        };
        assert_eq!(attribute("service.name"), Some("ci"));
        assert_eq!(attribute("team"), Some("status"));
        spans.extend(resource.scope_spans.iter().flat_map(|scope| &scope.spans));
    }
    let find = |name: &str| {
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no span {name} in {spans:#?}"))
    };
    let (run, step) = (find("run"), find("custom"));
    assert_eq!(step.parent_span_id, run.span_id);
    // Other calls are those of the run itself.
    let is_of_step =
        |span: &&&Span| span.name == "Container.withExec" && span.parent_span_id == step.span_id;
    let call = spans.iter().find(is_of_step).expect("a call of the step");
    for span in [step, call] {
        assert_eq!(span.trace_id, run.trace_id);
        assert!(run.start_time_unix_nano <= span.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= run.end_time_unix_nano);
    }
    let exec = find("resume withExec");
    assert!(exec.end_time_unix_nano > exec.start_time_unix_nano);
}

#[test]
fn a_collector_of_the_user_does_not_delay_a_run_or_lose_its_logs() {
    let project = Project::new("spans-crash");
    project.edit(
        "api/src/main.rs",
        "fn main() {\n",
        "fn main() {\n    if std::env::var_os(\"PORT\").is_some() {\n        eprintln!(\"out of order\");\n        std::process::exit(3);\n    }\n",
    );
    let collector = Collector::start();
    let begun = Instant::now();
    let run = collector
        .in_environment_of(project.ci(&["smoke"]))
        .run()
        .exits(1)
        .says("out of order");
    assert_eq!(run.status("smoke"), "failed");
    let took = run.step("smoke")["duration_ms"].as_u64().unwrap();
    assert!(
        Duration::from_millis(took) < Duration::from_secs(10),
        "{took} ms of {:?}",
        begun.elapsed()
    );
}
