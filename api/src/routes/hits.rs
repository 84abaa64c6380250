//! `GET /hits`: a counter that Redis keeps.

use actix_web::{http::StatusCode, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    hits::{Hits, Missing},
    problem::{PROBLEM_JSON, Problem},
};

/// What `GET /hits` answers.
#[derive(Serialize, ToSchema)]
pub(super) struct Count {
    /// That Redis works.
    #[schema(value_type = String, example = "Redis is working")]
    message: &'static str,
    /// How often it was asked, on all replicas together.
    #[schema(example = 42)]
    hits: i64,
}

/// Counts the request in Redis
#[utoipa::path(get, operation_id = "hits", path = "/hits", tag = "status", responses(
    (status = 200, description = "The count", body = Count),
    (status = 503, description = "Redis does not answer within 250 ms, or none is configured", body = Problem, content_type = PROBLEM_JSON),
))]
pub(super) async fn get(hits: web::Data<Hits>) -> Result<web::Json<Count>, Problem> {
    let lost = Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        // What clients look for.
        "Redis connection failed",
    );
    match hits.count().await {
        Ok(hits) => Ok(web::Json(Count {
            message: "Redis is working",
            hits,
        })),
        Err(Missing::Unconfigured) => Err(lost.titled("No Redis is configured")),
        Err(Missing::Lost(trouble)) => {
            tracing::warn!(error = %trouble, "a hit was not counted");
            Err(lost)
        }
    }
}
