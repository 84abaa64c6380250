//! Errors as clients see them: problem details of RFC 9457.

use std::fmt;

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

/// The media type of [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What went wrong with a request, as RFC 9457 writes it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// The status code.
    #[schema(example = 404, minimum = 400, maximum = 599)]
    status: u16,
    /// The name of the status.
    #[schema(value_type = String, example = "Not Found")]
    title: &'static str,
    /// What is wrong with just this request, and what to do about it.
    #[schema(example = "there is no check \"cache\"")]
    detail: String,
}

impl Problem {
    /// An error of this status; `detail` is for the person who sent the request.
    #[must_use]
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error"),
            detail: detail.into(),
        }
    }

    /// The same under another title than the status's name.
    #[must_use]
    pub const fn titled(mut self, title: &'static str) -> Self {
        self.title = title;
        self
    }

    /// 404 for the name of a check that is not configured.
    #[must_use]
    pub fn no_check(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no check {name:?}"))
    }

    fn unwritten(error: &dyn fmt::Display) -> Self {
        tracing::error!(%error, "an answer could not be written");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the answer could not be written",
        )
    }
}

/// What we say of ourselves could not be written down: never seen, and said where it is.
impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Self {
        Self::unwritten(&error)
    }
}

impl From<askama::Error> for Problem {
    fn from(error: askama::Error) -> Self {
        Self::unwritten(&error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        response.content_type(PROBLEM_JSON);
        match serde_json::to_vec(self) {
            Ok(body) => response.body(body),
            Err(_) => response.finish(),
        }
    }
}
