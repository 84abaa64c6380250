//! `GET /metrics`: for Prometheus.

use actix_web::{HttpResponse, http::StatusCode, web};

use crate::{metrics::OPENMETRICS, problem::Problem, service::Service};

/// What the service counts, in the format of OpenMetrics 1.0
#[utoipa::path(get, operation_id = "metrics", path = "/metrics", tag = "operation", responses(
    (status = 200, description = "All metrics", body = String, content_type = OPENMETRICS),
))]
pub(super) async fn get(service: web::Data<Service>) -> Result<HttpResponse, Problem> {
    let text = service.metrics.text().map_err(|_| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics could not be written",
        )
    })?;
    Ok(HttpResponse::Ok().content_type(OPENMETRICS).body(text))
}
