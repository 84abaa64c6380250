//! `GET /hits`: a counter that Redis keeps.

use actix_web::{http::StatusCode, web};
use serde::Serialize;

use crate::{
    hits::{Hits, Missing},
    problem::Problem,
};

/// What `GET /hits` answers.
#[derive(Debug, Serialize)]
pub struct Count {
    message: &'static str,
    hits: i64,
}

/// Counts the request.
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
