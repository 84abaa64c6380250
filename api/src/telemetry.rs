//! The log, as one JSON object per line on stdout, and the metrics and log lines of requests.

use std::{cell::RefCell, rc::Rc, time::Instant};

use actix_web::{
    body::BoxBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{ConnectionType, Method},
    middleware::Next,
    web,
};
use prometheus_client::metrics::histogram::Histogram;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    error::Error,
    metrics::Request,
    service::Service,
    trace::{TRACEPARENT, Trace},
};

/// Starts logging the events that `filter` enables.
///
/// # Errors
/// When logging was already started in this process.
pub fn start(filter: Targets) -> Result<(), Error> {
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true);
    Ok(tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .try_init()?)
}

/// The clients that a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// People and API clients.
    People,
    /// Container probes and scrapers, which send many requests: successful ones are logged at level `debug`.
    Probes,
}

/// Logs and counts the requests of one route on one worker.
pub(crate) struct Observer {
    service: web::Data<Service>,
    /// The template of the path; empty for requests without a route.
    route: &'static str,
    audience: Audience,
    /// The histograms that this worker has already looked up.
    histograms: RefCell<Vec<(&'static str, u16, Histogram)>>,
}

impl Observer {
    pub(crate) fn new(
        service: &web::Data<Service>,
        route: &'static str,
        audience: Audience,
    ) -> Rc<Self> {
        Rc::new(Self {
            service: service.clone(),
            route,
            audience,
            histograms: RefCell::new(Vec::new()),
        })
    }

    /// Calls `next`, counts and logs the request, and adds the trace to the response.
    pub(crate) async fn observe(
        self: Rc<Self>,
        request: ServiceRequest,
        next: Next<BoxBody>,
    ) -> Result<ServiceResponse, actix_web::Error> {
        let start = Instant::now();
        let trace = Trace::of(request.headers());
        let mut response = next.call(request).await?;
        let took = start.elapsed();
        let head = response.response_mut().head_mut();
        if let Some(traceparent) = trace.header() {
            head.headers_mut().insert(TRACEPARENT, traceparent);
        }
        if self.service.drain.has_begun() {
            head.set_connection_type(ConnectionType::Close);
        }
        let status = head.status.as_u16();
        // Without the query, which may contain private data.
        let (method, path) = (name(response.request().method()), response.request().path());
        self.count(method, status, took.as_secs_f64());
        let (request_id, ms) = (trace.id(), took.as_secs_f64() * 1e3);
        if self.audience == Audience::Probes && status < 400 {
            tracing::debug!(%request_id, method, path, status, ms, "request");
        } else {
            tracing::info!(%request_id, method, path, status, ms, "request");
        }
        Ok(response)
    }

    fn count(&self, method: &'static str, status: u16, seconds: f64) {
        let mut histograms = self.histograms.borrow_mut();
        let known = histograms
            .iter()
            .find(|(of, with, _)| *of == method && *with == status);
        if let Some((_, _, histogram)) = known {
            return histogram.observe(seconds);
        }
        let histogram = self.service.metrics.requests(&Request {
            http_request_method: method,
            http_route: self.route,
            http_response_status_code: status,
        });
        histogram.observe(seconds);
        histograms.push((method, status, histogram));
    }
}

/// The name of the method. Unknown methods become `_OTHER`, as in OpenTelemetry, to limit the number of label values.
fn name(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    KNOWN
        .into_iter()
        .find(|known| *known == method.as_str())
        .unwrap_or("_OTHER")
}
