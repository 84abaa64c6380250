//! The pages: what they share, and one file for each.

mod bars;
mod check;
mod overview;

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
use base64::{Engine, prelude::BASE64_STANDARD};
use ring::digest::{SHA256, digest};

pub use check::{Bucket, Window, render_check};
pub use overview::{Scope, render};

use crate::{history::Summary, state::State};

/// The style sheet of every page. It is embedded, so that page and style are of the same build even with several replicas.
pub(crate) const STYLE: &str = include_str!("../templates/style.css");
/// The script that keeps the pages up to date.
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

/// The ID of the symbol of a state, which is also the CSS class of its colour.
const fn symbol(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Up => "up",
        State::Degraded => "degraded",
        State::Down => "down",
    }
}

/// The word for a state.
const fn word(state: State) -> &'static str {
    match state {
        State::Pending => "Pending",
        State::Up => "Up",
        State::Degraded => "Degraded",
        State::Down => "Down",
    }
}

/// Formats the age of `earlier` at `later` in its largest unit.
fn age(later: SystemTime, earlier: SystemTime) -> String {
    let seconds = later.duration_since(earlier).map_or(0, |age| age.as_secs());
    match seconds {
        172_800.. => format!("{} d", seconds / 86_400),
        7_200.. => format!("{} h", seconds / 3_600),
        120.. => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

/// The parts of a name or a target, between which a line may end.
fn breakable(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive([
        '/', '.', ':', '?', '&', '=', '%', '+', ',', ';', '-', '_', '@',
    ])
}

/// Whether `text` has a part that may be longer than a line, so that the page cuts it.
fn may_be_cut(text: &str) -> bool {
    const MAX: usize = 16;
    let mut parts = text.split_whitespace().flat_map(breakable);
    parts.any(|part| part.chars().count() > MAX)
}

/// The placeholder for a missing value.
fn missing() -> String {
    "–".into()
}

/// Formats milliseconds with about three digits.
fn latency(milliseconds: f64) -> String {
    match milliseconds {
        middle if middle < 10_000.0 => format!("{} ms", digits(middle)),
        long => format!("{:.1} s", long / 1e3),
    }
}

/// About three digits of `number`.
fn digits(number: f64) -> String {
    match number {
        short if short < 10.0 => format!("{short:.2}"),
        short if short < 100.0 => format!("{short:.1}"),
        long => format!("{long:.0}"),
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
}
