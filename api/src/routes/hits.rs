//! `GET /hits`: a counter in Redis.

use actix_web::{http::StatusCode, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    hits::{Hits, Missing},
    problem::{PROBLEM_JSON, Problem},
};

/// The response of `GET /hits`.
#[derive(Serialize, ToSchema)]
pub(super) struct Count {
    /// A fixed message.
    #[schema(value_type = String, example = "Redis is working")]
    message: &'static str,
    /// The number of hits on all replicas.
    #[schema(example = 42)]
    hits: i64,
}

/// Count the request in Redis
#[utoipa::path(get, operation_id = "hits", path = "/hits", tag = "status", responses(
    (status = 200, description = "The count", body = Count),
    (status = 503, description = "Redis does not respond within 250 ms, or is not configured", body = Problem, content_type = PROBLEM_JSON),
))]
pub(super) async fn get(hits: web::Data<Hits>) -> Result<web::Json<Count>, Problem> {
    let lost = Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        // Clients rely on this text.
        "Redis connection failed",
    );
    match hits.count().await {
        Ok(hits) => Ok(web::Json(Count {
            message: "Redis is working",
            hits,
        })),
        Err(Missing::Unconfigured) => Err(lost.titled("No Redis is configured")),
        Err(Missing::Lost(error)) => {
            tracing::warn!(%error, "cannot count a hit");
            Err(lost)
        }
    }
}
