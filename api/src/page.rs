//! The status page: everything that the board says, for people.

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
    history::{Ring, Sample, milliseconds},
    state::State,
};

/// The look of every page; it lies in the page, so that both are always of the same build, whatever replica answers.
pub(crate) const STYLE: &str = include_str!("../templates/style.css");
/// What keeps the status page up to date.
const SCRIPT: &str = include_str!("../templates/page.js");

/// Nothing but the page's own style and script, and requests to the service itself.
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()));
    HeaderValue::try_from(format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    ))
    .ok()
});

/// How many checks that are down the headline names.
const NAMED: usize = 5;
/// How many of the newest answers are drawn.
const DRAWN: usize = 60;
/// From one answer to the next in the drawing.
const STEP: usize = 4;
/// Where the drawing's latencies stand on; failures hang below.
const BASE: f64 = 22.0;

/// Whether whoever asks would rather read the page than the JSON, by RFC 9110; JSON wins where both are as good.
pub fn is_preferred(request: &impl HttpMessage) -> bool {
    Accept::parse(request).is_ok_and(|accept| {
        quality(&accept, &mime::TEXT_HTML_UTF_8) > quality(&accept, &mime::APPLICATION_JSON)
    })
}

/// How much `offered` is wanted: the most specific range that it is in says so.
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

/// A page as it is sent.
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

/// The status page of `board`; good as long as the board's generation stays.
///
/// # Errors
/// Never, as far as is known: it is written to memory.
pub fn render(board: &Board, title: &str, environment: &str) -> askama::Result<String> {
    let rows: Vec<Row> = board
        .statuses()
        .into_iter()
        .enumerate()
        .map(|(index, status)| Row {
            chart: board
                .with_samples(index, Chart::new)
                .unwrap_or_else(|| Chart::new(&Ring::default())),
            status,
        })
        .collect();
    Page {
        style: STYLE,
        script: SCRIPT,
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
    title: &'a str,
    environment: &'a str,
    overall: Overall,
    rows: Vec<Row>,
    now: SystemTime,
}

/// A check on the page.
struct Row {
    status: Status,
    chart: Chart,
}

/// All checks in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overall {
    /// There is none.
    Empty,
    /// None is down, but not all have answered.
    Pending,
    /// All are up.
    Well,
    /// What is down is not critical.
    Degraded,
    /// Something critical is down.
    Outage,
}

impl Overall {
    fn of(rows: &[Row]) -> Self {
        let any = |is: fn(&Status) -> bool| rows.iter().any(|row| is(&row.status));
        if rows.is_empty() {
            Self::Empty
        } else if any(|status| status.state == State::Down && status.critical) {
            Self::Outage
        } else if any(|status| status.state == State::Down) {
            Self::Degraded
        } else if any(|status| status.state == State::Pending) {
            Self::Pending
        } else {
            Self::Well
        }
    }

    const fn headline(self) -> &'static str {
        match self {
            Self::Empty => "Nothing is checked yet",
            Self::Pending => "Waiting for first answers",
            Self::Well => "All is well",
            Self::Degraded => "Degraded",
            Self::Outage => "Outage",
        }
    }

    /// Its symbol, which is the class of its colour, too.
    const fn symbol(self) -> &'static str {
        match self {
            Self::Empty | Self::Pending => "pending",
            Self::Well => "up",
            Self::Degraded => "degraded",
            Self::Outage => "down",
        }
    }

    /// The symbol's colour in the browser's tab, which may be light or dark.
    const fn colour(self) -> &'static str {
        match self {
            Self::Empty | Self::Pending => "6e7781",
            Self::Well => "1f883d",
            Self::Degraded => "bf8700",
            Self::Outage => "cf222e",
        }
    }
}

impl Page<'_> {
    /// The checks in `state`.
    fn named(&self, state: State) -> Vec<&str> {
        self.rows
            .iter()
            .filter(|row| row.status.state == state)
            .map(|row| row.status.name.as_str())
            .collect()
    }
}

impl Row {
    const fn symbol(&self) -> &'static str {
        match self.status.state {
            State::Pending => "pending",
            State::Up => "up",
            State::Down => "down",
        }
    }

    const fn word(&self) -> &'static str {
        match self.status.state {
            State::Pending => "Pending",
            State::Up => "Up",
            State::Down => "Down",
        }
    }

    fn uptime(&self) -> String {
        self.status.day.uptime.map_or_else(nothing, percent)
    }

    fn p50(&self) -> String {
        (self.status.day.latency_ms).map_or_else(nothing, |it| latency(it.p50))
    }

    fn p95(&self) -> String {
        (self.status.day.latency_ms).map_or_else(nothing, |it| latency(it.p95))
    }
}

/// The newest answers as a drawing.
struct Chart {
    /// One stroke up for each answer as expected, as high as it was slow.
    answered: String,
    /// One stroke down for each failure.
    failed: String,
    /// The same in words.
    words: String,
}

impl Chart {
    fn new(ring: &Ring) -> Self {
        let samples: Vec<Sample> = ring.since(SystemTime::UNIX_EPOCH).collect();
        let samples = samples.split_at(samples.len().saturating_sub(DRAWN)).1;
        let latencies = || samples.iter().filter_map(Sample::latency);
        let slowest = latencies().max().unwrap_or_default();
        let (mut answered, mut failed) = (String::new(), String::new());
        for (place, sample) in samples.iter().enumerate() {
            // The newest stands at the right end.
            let x = (DRAWN - samples.len() + place) * STEP + STEP / 2;
            match sample.latency() {
                Some(latency) => {
                    let share = latency.as_secs_f64() / slowest.as_secs_f64().max(1e-6);
                    answered += &format!("M{x} {BASE}v-{:.1}", (share * BASE).max(1.5));
                }
                None => failed += &format!("M{x} {}v6", BASE + 2.0),
            }
        }
        let words = match (samples.len(), latencies().min()) {
            (0, _) => "No answers yet".into(),
            (count, None) => format!("Newest {count} answers: all failed"),
            (count, Some(fastest)) => format!(
                "Newest {count} answers: {}; {} to {}",
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
            words,
        }
    }
}

/// A share as it is shown; less than all is never shown as all.
pub(crate) fn percent(share: f64) -> String {
    let shown = (share * 1e4).floor() / 1e2;
    if share >= 1.0 {
        "100 %".into()
    } else {
        format!("{shown:.2} %")
    }
}

/// A figure that nobody knows.
fn nothing() -> String {
    "–".into()
}

/// Milliseconds as they are shown: three digits or so.
fn latency(milliseconds: f64) -> String {
    match milliseconds {
        short if short < 10.0 => format!("{short:.2} ms"),
        short if short < 100.0 => format!("{short:.1} ms"),
        middle if middle < 10_000.0 => format!("{middle:.0} ms"),
        long => format!("{:.1} s", long / 1e3),
    }
}

/// A time for programs.
fn machine(time: &SystemTime) -> impl fmt::Display {
    humantime::format_rfc3339_seconds(*time)
}

/// A time for people.
fn clock(time: &SystemTime) -> String {
    machine(time)
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
    fn browsers_get_the_page_and_all_others_the_greeting() {
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
            // The more specific range says it, wherever it stands and whatever others say.
            ("text/*, text/html;q=0.1, application/json;q=0.2", false),
            ("*/*, application/json;q=0.1", true),
            ("text/html;q=0", false),
            // HTML of another kind than ours.
            ("text/html;level=1", false),
            ("nonsense", false),
            ("text/html;q=high", false),
        ] {
            let request = TestRequest::default()
                .insert_header((ACCEPT, accept))
                .to_http_request();
            assert_eq!(is_preferred(&request), page, "{accept}");
        }
        let nothing = TestRequest::default().to_http_request();
        assert!(!is_preferred(&nothing));
        let two_lines = TestRequest::default()
            .append_header((ACCEPT, "application/json;q=0.1"))
            .append_header((ACCEPT, "text/html"))
            .to_http_request();
        assert!(is_preferred(&two_lines));
    }

    #[test]
    fn a_drawing_has_the_newest_answers_at_its_right_end_and_failures_below_its_line() {
        let mut ring = Ring::default();
        assert_eq!(Chart::new(&ring).words, "No answers yet");
        let at = SystemTime::UNIX_EPOCH;
        for milliseconds in [1000, 10, 20] {
            ring.push(Sample::new(at, Some(Duration::from_millis(milliseconds))));
        }
        ring.push(Sample::new(at, None));
        let chart = Chart::new(&ring);
        assert_eq!(chart.answered, "M226 22v-22.0M230 22v-1.5M234 22v-1.5");
        assert_eq!(chart.failed, "M238 24v6");
        assert_eq!(
            chart.words,
            "Newest 4 answers: 1 failed; 10.0 ms to 1000 ms"
        );
        for _ in 0..2 * DRAWN {
            ring.push(Sample::new(at, None));
        }
        let chart = Chart::new(&ring);
        assert_eq!(chart.answered, "");
        assert_eq!(chart.failed.matches('M').count(), DRAWN);
        assert_eq!(chart.words, "Newest 60 answers: all failed");
    }
}
