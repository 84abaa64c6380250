//! `GET /metrics`: the metrics, for Prometheus and compatible scrapers.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        StatusCode,
        header::{Accept, Header as _, Quality, VARY},
    },
    mime::{self, Mime},
    web,
};

use crate::{
    metrics::{OPENMETRICS, TEXT_FORMAT},
    problem::Problem,
    service::Service,
};

/// Metrics in the OpenMetrics 1.0 text format or in the Prometheus text format 0.0.4
///
/// OpenMetrics is used if `Accept` names it and does not prefer `text/plain`.
#[utoipa::path(get, operation_id = "metrics", path = "/metrics", tag = "operation", responses(
    (status = 200, description = "All metrics", content(
        (String = OPENMETRICS),
        (String = TEXT_FORMAT),
    )),
))]
pub(super) async fn get(
    service: web::Data<Service>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    // A missing or invalid header accepts everything.
    let openmetrics = Accept::parse(&request).is_ok_and(|accept| prefers_openmetrics(&accept));
    let (media_type, text) = if openmetrics {
        (OPENMETRICS, service.metrics.openmetrics())
    } else {
        (TEXT_FORMAT, service.metrics.text_format())
    };
    let text = text.map_err(|_| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "cannot render the metrics",
        )
    })?;
    Ok(HttpResponse::Ok()
        .content_type(media_type)
        .insert_header((VARY, "Accept"))
        .body(text))
}

/// Whether the client names OpenMetrics and does not prefer the text format. Wildcards mean the text format, as with the client
/// libraries of Prometheus: clients that send them often know no other.
fn prefers_openmetrics(accept: &Accept) -> bool {
    let openmetrics = accept
        .iter()
        .filter(|range| range.item.essence_str() == "application/openmetrics-text")
        .filter(|range| has_version(&range.item, "1.0.0"))
        .map(|range| range.quality)
        .max()
        .unwrap_or(Quality::ZERO);
    let text = accept
        .iter()
        .filter_map(|range| {
            let specific = match (range.item.type_(), range.item.subtype()) {
                (mime::STAR, mime::STAR) => 0,
                (mime::TEXT, mime::STAR) => 1,
                (mime::TEXT, mime::PLAIN) if has_version(&range.item, "0.0.4") => 2,
                _ => return None,
            };
            Some((specific, range.quality))
        })
        .max()
        .map_or(Quality::ZERO, |(_, quality)| quality);
    openmetrics > Quality::ZERO && openmetrics >= text
}

/// Whether the range accepts this version. Other parameters, such as `escaping` of Prometheus 3, do not restrict the format.
fn has_version(range: &Mime, version: &str) -> bool {
    range
        .get_param("version")
        .is_none_or(|wanted| wanted == version)
}
