//! `GET /badge/{name}.svg`: the state or the uptime of a check as an image, for other pages.
//!
//! The image is a template of a few lines, so no badge crate is used.

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
    page::percent,
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
        ("uptime" = Option<String>, Query, description = "If present, with any value, the badge shows the uptime of the last 24 hours"),
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
        Badge::of_uptime(status.name, status.day.uptime)
    } else {
        Badge::of_state(status.name, status.state)
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
            State::Down => ("down", RED),
            State::Pending => ("pending", GREY),
        };
        Self {
            label: name,
            value: value.into(),
            colour,
        }
    }

    fn of_uptime(name: String, uptime: Option<f64>) -> Self {
        Self {
            label: format!("{name} 24 h"),
            value: uptime.map_or_else(|| "pending".into(), percent),
            colour: match uptime {
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
    use super::*;

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

    #[test]
    fn rounds_the_uptime_down() {
        for (uptime, value, colour) in [
            (Some(1.0), "100 %", GREEN),
            (Some(0.999_999), "99.99 %", GREEN),
            (Some(0.995), "99.50 %", AMBER),
            (Some(0.0), "0.00 %", RED),
            (None, "pending", GREY),
        ] {
            let badge = Badge::of_uptime("redis".into(), uptime);
            assert_eq!((&*badge.value, badge.colour), (value, colour));
        }
    }
}
