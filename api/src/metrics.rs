//! The metrics of the service, in the OpenMetrics text format and in the Prometheus text format.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
    time::SystemTime,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        MetricType,
        counter::ConstCounter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::{
    board::{Board, Status},
    configuration::Build,
    history::StoreState,
    state::State,
};

/// The media type of [`Metrics::openmetrics`].
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of [`Metrics::text_format`].
pub const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The upper bounds of the duration buckets in seconds: those that OpenTelemetry recommends for HTTP servers, with finer ones for
/// the typical durations of this service.
const BUCKETS: [f64; 12] = [
    0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// The labels of a request, named by the semantic conventions of OpenTelemetry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    /// The method; `_OTHER` for unknown methods.
    pub http_request_method: &'static str,
    /// The template of the path; empty for requests without a route.
    pub http_route: &'static str,
    /// The status code of the response.
    pub http_response_status_code: u16,
}

/// All metrics of the service.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Histogram, fn() -> Histogram>,
    /// The number of open event streams.
    pub streams: Gauge<i64, AtomicI64>,
    /// Whether the last reload succeeded.
    config_valid: Gauge<i64, AtomicI64>,
    /// When the configuration was loaded.
    config_loaded: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Creates the metrics; the values of checks are read from `board` on each scrape.
    #[must_use]
    pub fn new(build: &Build, board: Arc<Board>) -> Self {
        let mut registry = Registry::default();
        let requests =
            Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        registry.register_with_unit(
            "http_server_request_duration",
            "Duration of HTTP requests",
            Unit::Seconds,
            requests.clone(),
        );
        let streams = Gauge::default();
        registry.register(
            "event_streams",
            "Number of open event streams",
            streams.clone(),
        );
        registry.register(
            "build",
            "Version, commit and commit time of the running build",
            Info::new([
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("revision", build.commit.clone().unwrap_or_default()),
                ("created", build.time.clone().unwrap_or_default()),
            ]),
        );
        let config_valid = Gauge::default();
        registry.register(
            "config_last_reload_successful",
            "Whether the configuration was valid when it was last loaded",
            config_valid.clone(),
        );
        let config_loaded = Gauge::default();
        registry.register_with_unit(
            "config_last_reload_success_timestamp",
            "When a valid configuration was last loaded",
            Unit::Seconds,
            config_loaded.clone(),
        );
        registry.register_collector(Box::new(Checks(board)));
        registry.register_collector(Box::new(Process {
            started: SystemTime::now(),
        }));
        let metrics = Self {
            registry,
            requests,
            streams,
            config_valid,
            config_loaded,
        };
        metrics.reloaded(true);
        metrics
    }

    /// Records that the configuration was loaded, and whether it was valid.
    pub fn reloaded(&self, valid: bool) {
        self.config_valid.set(valid.into());
        if valid {
            self.config_loaded.set(since_epoch(SystemTime::now()));
        }
    }

    /// The duration histogram of requests with these labels.
    #[must_use]
    pub fn requests(&self, labels: &Request) -> Histogram {
        self.requests.get_or_create_owned(labels)
    }

    /// Encodes all metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// Never, because writing to a `String` does not fail.
    pub fn openmetrics(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Encodes all metrics in the Prometheus text format 0.0.4.
    ///
    /// # Errors
    /// Never, because writing to a `String` does not fail.
    pub fn text_format(&self) -> Result<String, fmt::Error> {
        to_text_format(&self.openmetrics()?)
    }
}

/// Converts the output of prometheus-client, which encodes only OpenMetrics, to the text format 0.0.4. It names a family like its
/// samples, knows fewer types, and has no units and no end marker.
fn to_text_format(openmetrics: &str) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = "";
    for line in openmetrics.lines() {
        let descriptor = |kind| line.strip_prefix(kind)?.split_once(' ');
        if let Some((_, of_family)) = descriptor("# HELP ") {
            // Written together with the type, which determines the name.
            help = of_family;
        } else if let Some((name, kind)) = descriptor("# TYPE ") {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            writeln!(text, "# HELP {name}{suffix} {help}")?;
            writeln!(text, "# TYPE {name}{suffix} {kind}")?;
        } else if !line.starts_with("# ") {
            writeln!(text, "{line}")?;
        }
    }
    Ok(text)
}

/// The metrics of checks, with the names of the Prometheus blackbox exporter where it has equivalent metrics.
#[derive(Debug)]
struct Checks(Arc<Board>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    check: String,
    kind: &'static str,
    critical: bool,
}

impl Collector for Checks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let statuses: Vec<(CheckLabels, Status)> = self
            .0
            .statuses()
            .into_iter()
            .map(|status| {
                let labels = CheckLabels {
                    check: status.name.clone(),
                    kind: status.kind,
                    critical: status.critical,
                };
                (labels, status)
            })
            .collect();
        let flag = |is: bool| f64::from(u8::from(is));
        let store = self.0.store_state();
        if store != StoreState::Memory {
            let on_disk = encoder.encode_descriptor(
                "history_on_disk",
                "Whether the history can be written to disk",
                None,
                MetricType::Gauge,
            )?;
            ConstGauge::new(u32::from(store == StoreState::Disk)).encode(on_disk)?;
        }
        let mut gauge =
            |name, help, unit: Option<&Unit>, value: &dyn Fn(&Status) -> Option<f64>| {
                let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
                for (labels, status) in &statuses {
                    if let Some(value) = value(status) {
                        ConstGauge::new(value).encode(family.encode_family(labels)?)?;
                    }
                }
                Ok::<_, fmt::Error>(())
            };
        gauge(
            "check_up",
            "Whether the check is up or degraded, after its thresholds; absent while the state is pending",
            None,
            &|status| (status.state != State::Pending).then(|| flag(status.state != State::Down)),
        )?;
        gauge(
            "check_degraded",
            "Whether the check is degraded: up, but slow, or with a certificate that expires soon",
            None,
            &|status| {
                (status.state != State::Pending).then(|| flag(status.state == State::Degraded))
            },
        )?;
        gauge(
            "probe_success",
            "Whether the last probe succeeded",
            None,
            &|status| status.last.as_ref().map(|last| flag(last.error.is_none())),
        )?;
        gauge(
            "probe_duration",
            "Duration of the last probe",
            Some(&Unit::Seconds),
            &|status| status.last.as_ref().map(|last| last.latency_ms / 1e3),
        )?;
        gauge(
            "probe_ssl_earliest_cert_expiry",
            "When the chain of certificates of the target expires, in seconds since the epoch",
            None,
            &|status| {
                let expiry = status
                    .certificate_expiry?
                    .duration_since(SystemTime::UNIX_EPOCH);
                expiry.ok().map(|since| since.as_secs_f64())
            },
        )?;
        let mut info = encoder.encode_descriptor(
            "check",
            "Name of the check for people",
            None,
            MetricType::Info,
        )?;
        for (labels, status) in &statuses {
            Info::new([("display_name", status.display_name.clone())])
                .encode(info.encode_family(labels)?)?;
        }
        let mut counter = |name, help, value: &dyn Fn(&Status) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, status) in &statuses {
                ConstCounter::new(value(status)).encode(family.encode_family(labels)?)?;
            }
            Ok::<_, fmt::Error>(())
        };
        counter("probes", "Number of probes", &|status| status.probes)?;
        counter("probe_failures", "Number of failed probes", &|status| {
            status.failures
        })
    }
}

/// The process metrics that Prometheus client libraries define.
#[derive(Debug)]
struct Process {
    started: SystemTime,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let start = encoder.encode_descriptor(
            "process_start_time",
            "Start time of the process since the epoch",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        ConstGauge::new(since_epoch(self.started)).encode(start)?;
        #[cfg(target_os = "linux")]
        encode_proc_metrics(&mut encoder)?;
        Ok(())
    }
}

fn since_epoch(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// Encodes the metrics from `/proc`, if it is available.
#[cfg(target_os = "linux")]
#[expect(clippy::cast_precision_loss, reason = "far less than 2^52")]
fn encode_proc_metrics(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    use procfs::{WithCurrentSystemInfo as _, process::Process};

    let Ok((process, stat)) = Process::myself().and_then(|process| {
        let stat = process.stat()?;
        Ok((process, stat))
    }) else {
        return Ok(());
    };
    let memory = encoder.encode_descriptor(
        "process_resident_memory",
        "Resident memory",
        Some(&Unit::Bytes),
        MetricType::Gauge,
    )?;
    ConstGauge::new(stat.rss_bytes().get() as f64).encode(memory)?;
    if let Ok(open) = process.fd_count() {
        let files = encoder.encode_descriptor(
            "process_open_fds",
            "Number of open file descriptors",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(open as f64).encode(files)?;
    }
    let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    let cpu = encoder.encode_descriptor(
        "process_cpu",
        "User and system CPU time",
        Some(&Unit::Seconds),
        MetricType::Counter,
    )?;
    ConstCounter::new(seconds).encode(cpu)
}
