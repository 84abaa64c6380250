//! `GET /metrics`: the metrics, for Prometheus.

use actix_web::{HttpResponse, http::StatusCode, web};

use crate::{metrics::OPENMETRICS, problem::Problem, service::Service};

/// Metrics in the OpenMetrics 1.0 text format
#[utoipa::path(get, operation_id = "metrics", path = "/metrics", tag = "operation", responses(
    (status = 200, description = "All metrics", body = String, content_type = OPENMETRICS),
))]
pub(super) async fn get(service: web::Data<Service>) -> Result<HttpResponse, Problem> {
    let text = service.metrics.text().map_err(|_| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "cannot render the metrics",
        )
    })?;
    Ok(HttpResponse::Ok().content_type(OPENMETRICS).body(text))
}
