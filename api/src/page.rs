//! The status page.

use std::{fmt, sync::LazyLock, time::SystemTime};

use actix_web::{
    HttpMessage, HttpResponse,
    body::MessageBody,
    http::header::{
        self, Accept, CACHE_CONTROL, CONTENT_SECURITY_POLICY, Header, HeaderValue, Quality,
        REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
    },
    mime::{self, Mime},
};
use askama::Template;
use base64::{Engine, prelude::BASE64_STANDARD};
use ring::digest::{SHA256, digest};

use crate::{
    board::{Board, Status},
    history::{Ring, Sample, Summary, milliseconds},
    state::State,
};

/// The style sheet of every page. It is embedded, so that page and style are of the same build even with several replicas.
pub(crate) const STYLE: &str = include_str!("../templates/style.css");
/// The script that keeps the status page up to date.
const SCRIPT: &str = include_str!("../templates/page.js");

/// The script of the shared worker that holds the event stream of all tabs.
pub(crate) const STREAM: &str = include_str!("../templates/stream.js");

/// Allows only the embedded style and script, and requests to the service itself.
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()));
    HeaderValue::try_from(format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; worker-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    ))
    .ok()
});

/// The maximum number of down checks that the headline names.
const MAX_NAMED: usize = 5;
/// The number of results in a chart.
const CHART_RESULTS: usize = 60;
/// The horizontal distance between results in a chart.
const STEP: usize = 4;
/// The vertical position of the base line: latencies are above it, failures below.
const BASE: f64 = 22.0;

/// Whether the `Accept` header prefers HTML over JSON, as specified by RFC 9110. If both are equal, JSON is preferred.
pub fn is_preferred(request: &impl HttpMessage) -> bool {
    Accept::parse(request).is_ok_and(|accept| {
        quality(&accept, &mime::TEXT_HTML_UTF_8) > quality(&accept, &mime::APPLICATION_JSON)
    })
}

/// The quality of `offered`, which the most specific matching range determines.
fn quality(accept: &Accept, offered: &Mime) -> Quality {
    accept
        .iter()
        .filter_map(|range| {
            let wanted = &range.item;
            let specific = match (wanted.type_(), wanted.subtype()) {
                (mime::STAR, mime::STAR) => 0,
                (kind, mime::STAR) if kind == offered.type_() => 1,
                (kind, subtype) if kind == offered.type_() && subtype == offered.subtype() => {
                    2 + wanted.params().count()
                }
                _ => return None,
            };
            wanted
                .params()
                .all(|(name, value)| offered.get_param(name) == Some(value))
                .then_some((specific, range.quality))
        })
        .max()
        .map_or(Quality::ZERO, |(_, quality)| quality)
}

/// Creates the response for a page.
pub fn response(page: impl MessageBody + 'static) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response
        .content_type(header::ContentType::html())
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((VARY, "Accept"))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((REFERRER_POLICY, "no-referrer"));
    if let Some(policy) = &*POLICY {
        response.insert_header((CONTENT_SECURITY_POLICY, policy.clone()));
    }
    response.body(page)
}

/// Renders the status page of `board`, which is valid until the generation of the board changes. Links start with `base`.
///
/// # Errors
/// When the template fails, which is not expected.
pub fn render(board: &Board, base: &str, title: &str, environment: &str) -> askama::Result<String> {
    let rows: Vec<Row> = board
        .statuses()
        .into_iter()
        .map(|status| Row {
            chart: board
                .with_samples(status.index, Chart::new)
                .unwrap_or_else(|| Chart::new(&Ring::default())),
            status,
        })
        .collect();
    Page {
        style: STYLE,
        script: SCRIPT,
        base,
        title,
        environment,
        overall: Overall::of(&rows),
        rows,
        now: SystemTime::now(),
    }
    .render()
}

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    style: &'static str,
    script: &'static str,
    base: &'a str,
    title: &'a str,
    environment: &'a str,
    overall: Overall,
    rows: Vec<Row>,
    now: SystemTime,
}

/// A check in the table of the page.
struct Row {
    status: Status,
    chart: Chart,
}

/// The overall state of all checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overall {
    /// No checks are configured.
    Empty,
    /// No check is down or degraded, but some have no result yet.
    Pending,
    /// All checks are up.
    Operational,
    /// Some checks are down or degraded, but no critical one is down.
    Degraded,
    /// A critical check is down.
    Outage,
}

impl Overall {
    fn of(rows: &[Row]) -> Self {
        let any = |is: fn(&Status) -> bool| rows.iter().any(|row| is(&row.status));
        if rows.is_empty() {
            Self::Empty
        } else if any(|status| status.state == State::Down && status.critical) {
            Self::Outage
        } else if any(|status| matches!(status.state, State::Down | State::Degraded)) {
            Self::Degraded
        } else if any(|status| status.state == State::Pending) {
            Self::Pending
        } else {
            Self::Operational
        }
    }

    const fn headline(self) -> &'static str {
        match self {
            Self::Empty => "No checks configured",
            Self::Pending => "Waiting for first results",
            Self::Operational => "All systems operational",
            Self::Degraded => "Degraded",
            Self::Outage => "Outage",
        }
    }

    /// The ID of the symbol, which is also the CSS class of the colour.
    const fn symbol(self) -> &'static str {
        match self {
            Self::Empty | Self::Pending => "pending",
            Self::Operational => "up",
            Self::Degraded => "degraded",
            Self::Outage => "down",
        }
    }

    /// The colour of the favicon, which is readable on light and dark browser tabs.
    const fn colour(self) -> &'static str {
        match self {
            Self::Empty | Self::Pending => "6e7781",
            Self::Operational => "1f883d",
            Self::Degraded => "bf8700",
            Self::Outage => "cf222e",
        }
    }
}

impl Page<'_> {
    /// The checks in `state`.
    fn checks_in(&self, state: State) -> Vec<&Status> {
        self.rows
            .iter()
            .map(|row| &row.status)
            .filter(|status| status.state == state)
            .collect()
    }
}

impl Row {
    const fn symbol(&self) -> &'static str {
        match self.status.state {
            State::Pending => "pending",
            State::Up => "up",
            State::Degraded => "degraded",
            State::Down => "down",
        }
    }

    const fn word(&self) -> &'static str {
        match self.status.state {
            State::Pending => "Pending",
            State::Up => "Up",
            State::Degraded => "Degraded",
            State::Down => "Down",
        }
    }

    fn uptime(&self) -> String {
        percent(&self.status.day.summary).unwrap_or_else(missing)
    }

    fn p50(&self) -> String {
        (self.status.day.summary.latency_ms).map_or_else(missing, |it| latency(it.p50))
    }

    fn p95(&self) -> String {
        (self.status.day.summary.latency_ms).map_or_else(missing, |it| latency(it.p95))
    }
}

/// A chart of the last results, as SVG paths.
struct Chart {
    /// One upward line per successful probe, with a height in proportion to the latency.
    answered: String,
    /// One downward line per failure.
    failed: String,
    /// The text alternative.
    description: String,
}

impl Chart {
    fn new(ring: &Ring) -> Self {
        let samples: Vec<Sample> = ring.since(SystemTime::UNIX_EPOCH).collect();
        let samples = samples
            .split_at(samples.len().saturating_sub(CHART_RESULTS))
            .1;
        let latencies = || samples.iter().filter_map(Sample::latency);
        let slowest = latencies().max().unwrap_or_default();
        let (mut answered, mut failed) = (String::new(), String::new());
        for (place, sample) in samples.iter().enumerate() {
            // The newest result is at the right end.
            let x = (CHART_RESULTS - samples.len() + place) * STEP + STEP / 2;
            match sample.latency() {
                Some(latency) => {
                    let share = latency.as_secs_f64() / slowest.as_secs_f64().max(1e-6);
                    answered += &format!("M{x} {BASE}v-{:.1}", (share * BASE).max(1.5));
                }
                None => failed += &format!("M{x} {}v6", BASE + 2.0),
            }
        }
        let description = match (samples.len(), latencies().min()) {
            (0, _) => "No results yet".into(),
            (count, None) => format!("Last {count} results: all failed"),
            (count, Some(fastest)) => format!(
                "Last {count} results: {}; {} to {}",
                match count - latencies().count() {
                    0 => "none failed".to_owned(),
                    some => format!("{some} failed"),
                },
                latency(milliseconds(fastest)),
                latency(milliseconds(slowest)),
            ),
        };
        Self {
            answered,
            failed,
            description,
        }
    }
}

/// Formats the uptime as percentage. Rounds down, so that less than 100 % is never shown as 100 %. Returns `None` if there were no
/// probes.
pub(crate) fn percent(summary: &Summary) -> Option<String> {
    let answers = summary.samples.checked_sub(summary.failures)?;
    // In whole numbers, because 0.57 × 10,000 is less than 5,700.
    let hundredths = (answers * 10_000).checked_div(summary.samples)?;
    Some(match hundredths {
        10_000 => "100 %".into(),
        _ => format!("{}.{:02} %", hundredths / 100, hundredths % 100),
    })
}

/// The placeholder for a missing value.
fn missing() -> String {
    "–".into()
}

/// Formats milliseconds with about three digits.
fn latency(milliseconds: f64) -> String {
    match milliseconds {
        short if short < 10.0 => format!("{short:.2} ms"),
        short if short < 100.0 => format!("{short:.1} ms"),
        middle if middle < 10_000.0 => format!("{middle:.0} ms"),
        long => format!("{:.1} s", long / 1e3),
    }
}

/// Formats a time for the `datetime` attribute.
fn machine_time(time: &SystemTime) -> impl fmt::Display {
    humantime::format_rfc3339_seconds(*time)
}

/// Formats a time for display.
pub(crate) fn display_time(time: &SystemTime) -> String {
    machine_time(time)
        .to_string()
        .replace('T', " ")
        .replace('Z', " UTC")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use actix_web::{http::header::ACCEPT, test::TestRequest};

    use super::*;

    #[test]
    fn prefers_the_page_only_for_browsers() {
        for (accept, page) in [
            // Chromium, Firefox, Safari.
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
                true,
            ),
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                true,
            ),
            ("TEXT/HTML", true),
            ("text/*", true),
            ("text/html;charset=utf-8", true),
            ("text/html;q=0.5, application/json;q=0.4", true),
            ("text/html, application/json;q=0", true),
            // curl and other programs.
            ("*/*", false),
            ("", false),
            ("application/json", false),
            ("application/*, text/*", false),
            ("text/html, application/json", false),
            ("text/html;q=0.4, application/json;q=0.5", false),
            ("text/html;q=0.4, */*;q=0.5", false),
            // The most specific range decides, regardless of the order and of other ranges.
            ("text/*, text/html;q=0.1, application/json;q=0.2", false),
            ("*/*, application/json;q=0.1", true),
            ("text/html;q=0", false),
            // A parameter that the page does not have.
            ("text/html;level=1", false),
            ("nonsense", false),
            ("text/html;q=high", false),
        ] {
            let request = TestRequest::default()
                .insert_header((ACCEPT, accept))
                .to_http_request();
            assert_eq!(is_preferred(&request), page, "{accept}");
        }
        let without_accept = TestRequest::default().to_http_request();
        assert!(!is_preferred(&without_accept));
        let two_lines = TestRequest::default()
            .append_header((ACCEPT, "application/json;q=0.1"))
            .append_header((ACCEPT, "text/html"))
            .to_http_request();
        assert!(is_preferred(&two_lines));
    }

    #[test]
    fn chart_shows_the_newest_results_at_the_right_end_and_failures_below_the_line() {
        let mut ring = Ring::default();
        assert_eq!(Chart::new(&ring).description, "No results yet");
        let at = SystemTime::UNIX_EPOCH;
        for milliseconds in [1000, 10, 20] {
            ring.push(Sample::new(at, Some(Duration::from_millis(milliseconds))));
        }
        ring.push(Sample::new(at, None));
        let chart = Chart::new(&ring);
        assert_eq!(chart.answered, "M226 22v-22.0M230 22v-1.5M234 22v-1.5");
        assert_eq!(chart.failed, "M238 24v6");
        assert_eq!(
            chart.description,
            "Last 4 results: 1 failed; 10.0 ms to 1000 ms"
        );
        for _ in 0..2 * CHART_RESULTS {
            ring.push(Sample::new(at, None));
        }
        let chart = Chart::new(&ring);
        assert_eq!(chart.answered, "");
        assert_eq!(chart.failed.matches('M').count(), CHART_RESULTS);
        assert_eq!(chart.description, "Last 60 results: all failed");
    }
}
