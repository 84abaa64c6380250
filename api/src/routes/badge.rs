//! `GET /badge/{name}.svg`: the state or the uptime of a check as an image, for other pages.
//!
//! The image is a template of a few lines, so no badge crate is used.

use std::time::SystemTime;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETag, EntityTag, Header as _, IfNoneMatch,
        X_CONTENT_TYPE_OPTIONS,
    },
    web,
};
use askama::Template;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};

use crate::{
    board::Day,
    page::{display_time, percent},
    problem::{PROBLEM_JSON, Problem},
    service::Service,
    state::State,
};

/// The media type of SVG images.
const SVG: &str = "image/svg+xml";

/// The margin on both sides of a text, in pixels.
const MARGIN: u32 = 6;

/// How long clients and the image proxies of forges may show a badge without asking again. Without this header, the proxy of
/// GitHub keeps images for days; with `no-cache`, it requests them for every reader.
const CACHING: &str = "public, max-age=60";

/// Badge with the state or the uptime of a check
#[utoipa::path(get, path = "/badge/{name}.svg", tag = "checks",
    params(
        ("name" = String, Path, description = "Name of the check"),
        ("uptime" = Option<String>, Query, description = "If present, with any value, the badge shows the uptime of the last 24 hours, or of the time since when results are known"),
        ("If-None-Match" = Option<String>, Header, description = "Entity tags of badges that the client has"),
    ),
    responses(
        (status = 200, description = "The badge as SVG image, which may be cached for a minute", body = String, content_type = SVG,
            headers(("ETag" = String, description = "The entity tag of the image"))),
        (status = 304, description = "The client has the current badge"),
        (status = 404, description = "No check has this name", body = Problem, content_type = PROBLEM_JSON),
    ),
)]
pub(super) async fn get(
    service: web::Data<Service>,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let status = service
        .board
        .find(&name)
        .and_then(|index| service.board.status(index))
        .ok_or_else(|| Problem::no_check(&name))?;
    let with_uptime = url::form_urlencoded::parse(request.query_string().as_bytes())
        .any(|(key, _)| key == "uptime");
    let badge = if with_uptime {
        Badge::of_uptime(&status.display_name, &status.day, SystemTime::now())
    } else {
        Badge::of_state(status.display_name, status.state)
    };
    let image = badge.render()?;
    let tag = entity_tag(&image);
    if is_current(&request, &tag) {
        return Ok(HttpResponse::NotModified()
            .insert_header((CACHE_CONTROL, CACHING))
            .insert_header(ETag(tag))
            .finish());
    }
    Ok(HttpResponse::Ok()
        .content_type(SVG)
        .insert_header((CACHE_CONTROL, CACHING))
        .insert_header(ETag(tag))
        .insert_header((CONTENT_SECURITY_POLICY, "default-src 'none'"))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(image))
}

/// The entity tag of `image`: equal images have equal tags, on all replicas.
fn entity_tag(image: &str) -> EntityTag {
    let hash = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, image.as_bytes()));
    EntityTag::new_strong(hash)
}

/// Whether the client has the image with this tag, by the weak comparison that RFC 9110 requires for `If-None-Match`.
fn is_current(request: &HttpRequest, tag: &EntityTag) -> bool {
    match IfNoneMatch::parse(request) {
        Ok(IfNoneMatch::Any) => true,
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|it| it.weak_eq(tag)),
        Err(_) => false,
    }
}

#[derive(Template)]
#[template(path = "badge.svg")]
struct Badge {
    label: String,
    value: String,
    /// What only the text alternative says.
    more: String,
    /// The background of the value, dark enough for white text.
    colour: &'static str,
}

const GREEN: &str = "#1a7f37";
const AMBER: &str = "#8a5a00";
const RED: &str = "#c4202c";
const GREY: &str = "#656d76";

impl Badge {
    fn of_state(name: String, state: State) -> Self {
        let (value, colour) = match state {
            State::Up => ("up", GREEN),
            State::Degraded => ("degraded", AMBER),
            State::Down => ("down", RED),
            State::Pending => ("pending", GREY),
        };
        Self {
            label: name,
            value: value.into(),
            more: String::new(),
            colour,
        }
    }

    fn of_uptime(name: &str, day: &Day, now: SystemTime) -> Self {
        let period = day
            .known_since
            .and_then(|since| now.duration_since(since).ok())
            .map_or_else(
                || "24 h".into(),
                |known| match known.as_secs() / 60 {
                    minutes @ ..60 => format!("{} min", minutes.max(1)),
                    minutes => format!("{} h", minutes / 60),
                },
            );
        let more = day
            .known_since
            .map(|since| format!(", known since {}", display_time(&since)));
        Self {
            label: format!("{name} {period}"),
            value: percent(&day.summary).unwrap_or_else(|| "pending".into()),
            more: more.unwrap_or_default(),
            colour: match day.summary.uptime {
                None => GREY,
                Some(uptime) if uptime >= 0.999 => GREEN,
                Some(uptime) if uptime >= 0.99 => AMBER,
                Some(_) => RED,
            },
        }
    }

    fn left(&self) -> u32 {
        width(&self.label) + 2 * MARGIN
    }

    fn right(&self) -> u32 {
        width(&self.value) + 2 * MARGIN
    }

    fn width(&self) -> u32 {
        self.left() + self.right()
    }
}

/// The approximate width of `text` in 11 px Verdana. `textLength` adjusts other fonts to this width.
fn width(text: &str) -> u32 {
    let tenths: u32 = text
        .chars()
        .map(|letter| match letter {
            'f' | 'i' | 'j' | 'l' | 't' | 'I' | 'J' | ' ' | '.' | ',' | ':' | ';' | '|' | '\''
            | '!' => 40,
            'r' | '-' | '(' | ')' | '/' | '[' | ']' => 50,
            'm' | 'w' | 'M' | 'W' | '%' | '@' => 108,
            'a'..='z' | '0'..='9' | '_' => 69,
            ' '..='~' => 80,
            _ => 110,
        })
        .sum();
    tenths.div_ceil(10)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::history::Summary;

    #[test]
    fn width_depends_on_the_text_and_markup_is_escaped() {
        let badge = |name: &str| Badge::of_state(name.into(), State::Up);
        assert!(badge("redis").width() < badge("redis-of-the-shop").width());
        let hostile = badge("\"/><script>alert(1)</script>&").render().unwrap();
        assert!(!hostile.contains("<script"), "{hostile}");
        // Quotes in attributes are escaped, too.
        assert!(
            hostile.contains(r#"aria-label="&#34;/&#62;&#60;script"#),
            "{hostile}"
        );
    }

    fn day(samples: u64, failures: u64, known_since: Option<SystemTime>) -> Day {
        Day {
            summary: Summary {
                samples,
                failures,
                #[expect(clippy::cast_precision_loss, reason = "small")]
                uptime: (samples > 0).then(|| (samples - failures) as f64 / samples as f64),
                latency_ms: None,
            },
            known_since,
        }
    }

    #[test]
    fn rounds_the_uptime_down() {
        for (samples, failures, value, colour) in [
            (1, 0, "100 %", GREEN),
            (1_000_000, 1, "99.99 %", GREEN),
            (200, 1, "99.50 %", AMBER),
            (1000, 1, "99.90 %", GREEN),
            (100, 43, "57.00 %", RED),
            (3, 1, "66.66 %", RED),
            (7, 7, "0.00 %", RED),
            (0, 0, "pending", GREY),
        ] {
            let badge = Badge::of_uptime("redis", &day(samples, failures, None), SystemTime::now());
            assert_eq!((&*badge.value, badge.colour), (value, colour));
            assert_eq!((&*badge.label, &*badge.more), ("redis 24 h", ""));
        }
        // Every share of up to 500 probes, in hundredths of a percent.
        for samples in 1..=500_u64 {
            for failures in 0..=samples {
                let shown = percent(&day(samples, failures, None).summary).unwrap();
                let digits: String = shown.chars().filter(char::is_ascii_digit).collect();
                let hundredths: u64 = digits.parse().unwrap();
                let hundredths = if shown == "100 %" { 10_000 } else { hundredths };
                assert!(hundredths * samples <= (samples - failures) * 10_000);
                assert!((hundredths + 1) * samples > (samples - failures) * 10_000);
            }
        }
    }

    #[test]
    fn names_the_time_that_is_known() {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for (seconds, label) in [
            (0, "redis 1 min"),
            (59, "redis 1 min"),
            (119, "redis 1 min"),
            (120, "redis 2 min"),
            (3599, "redis 59 min"),
            (3600, "redis 1 h"),
            (23 * 3600 + 3599, "redis 23 h"),
        ] {
            let now = since + Duration::from_secs(seconds);
            let badge = Badge::of_uptime("redis", &day(4, 2, Some(since)), now);
            assert_eq!(badge.label, label);
            let image = badge.render().unwrap();
            let text = format!("{label}: 50.00 %, known since 2027-01-15 08:00:00 UTC");
            assert!(image.contains(&format!("aria-label=\"{text}\"")), "{image}");
            assert!(image.contains(&format!("<title>{text}</title>")), "{image}");
        }
    }
}
