//! Sends the spans of a run to the user's OpenTelemetry collector, without secrets. The `OTEL_…` variables configure this, as [their
//! specification] says.
//!
//! [their specification]: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{Status, TracerProvider as _};
use opentelemetry::{KeyValue, StringValue, Value};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter as Exporter};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::redaction::Redaction;
use crate::trust::authority::GitHub;
use common::failure::{Failure, OrFail};

/// The variables that say where the collector listens.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
/// How long the end of a run waits for the collector.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends spans until the end of the run.
pub struct Spans {
    provider: SdkTracerProvider,
}

impl Spans {
    /// Starts sending spans, if the environment names a collector.
    ///
    /// # Errors
    /// When a variable is invalid (exit code 3).
    pub fn from_env() -> Result<Option<Self>, Failure> {
        let is = |name: &str, value: &str| {
            std::env::var(name).is_ok_and(|it| it.eq_ignore_ascii_case(value))
        };
        let has = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !ENDPOINTS.iter().any(has)
            || is("OTEL_SDK_DISABLED", "true")
            || is("OTEL_TRACES_EXPORTER", "none")
        {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .build()
            .or_environment("cannot send spans to a collector")
            .map_err(|failure| {
                failure
                    .hint("Set OTEL_EXPORTER_OTLP_ENDPOINT to a URL such as http://127.0.0.1:4318.")
            })?;
        let mut resource = Resource::builder();
        if !has(&"OTEL_SERVICE_NAME") {
            resource = resource.with_service_name("ci");
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(Redacted {
                exporter,
                redaction: Arc::new(Redaction::of(GitHub::from_env(None).credential())),
            })
            .build();
        // For the spans of the engine, which have times of their own.
        opentelemetry::global::set_tracer_provider(provider.clone());
        Ok(Some(Self { provider }))
    }

    /// The layer that turns `ci`'s spans into those of OpenTelemetry.
    pub fn layer<S>(&self) -> impl Layer<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("ci"))
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|it| {
                it.is_span() && it.target().starts_with("ci::")
            }))
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// When the collector does not take the spans (exit code 3).
    pub fn end(self) -> Result<(), Failure> {
        let flushed = self.provider.force_flush();
        let ended = self.provider.shutdown_with_timeout(PATIENCE);
        flushed
            .and(ended)
            .or_environment("cannot send the spans to the collector")
            .map_err(|failure| {
                failure.hint("Set OTEL_EXPORTER_OTLP_ENDPOINT to the address at which the collector accepts OTLP over HTTP, usually on port 4318.")
            })
    }
}

/// An exporter that removes secrets from everything that it sends.
#[derive(Debug)]
struct Redacted<E> {
    exporter: E,
    redaction: Arc<Redaction>,
}

impl<E: Exporter> Exporter for Redacted<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        for span in &mut batch {
            span.name = self.redaction.apply(&span.name).into();
            if let Status::Error { description } = &mut span.status {
                *description = self.redaction.apply(description).into();
            }
            self.redact(&mut span.attributes);
            for event in &mut span.events.events {
                event.name = self.redaction.apply(&event.name).into();
                self.redact(&mut event.attributes);
            }
        }
        self.exporter.export(batch).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E> Redacted<E> {
    fn redact(&self, attributes: &mut [KeyValue]) {
        for attribute in attributes {
            if let Value::String(text) = &attribute.value {
                let text = self.redaction.apply(text.as_str());
                attribute.value = Value::String(StringValue::from(text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer as _};
    use opentelemetry_sdk::trace::InMemorySpanExporter;

    use super::*;

    #[test]
    fn spans_contain_no_secrets() {
        let sent = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(Redacted {
                exporter: sent.clone(),
                redaction: Arc::new(Redaction::new(vec!["ghs_secret".to_owned().into()])),
            })
            .build();
        let mut span = provider.tracer("ci").start("exec login ghs_secret");
        span.set_attribute(KeyValue::new("command", "login ghs_secret"));
        span.add_event("got ghs_secret", vec![KeyValue::new("token", "ghs_secret")]);
        span.set_status(Status::error("denied: ghs_secret"));
        span.end();
        let spans = sent.get_finished_spans().unwrap();
        let text = format!("{spans:?}");
        assert!(!text.contains("ghs_secret"), "{text}");
        assert_eq!(spans[0].name, "exec login ***");
        assert!(text.contains("denied: ***"), "{text}");
    }
}
