//! Error responses: problem details of [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457).

use std::fmt;

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

/// The media type of [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Problem details of RFC 9457.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// The HTTP status code.
    #[schema(example = 404, minimum = 400, maximum = 599)]
    status: u16,
    /// The name of the status code, or a short description of the problem.
    #[schema(value_type = String, example = "Not Found")]
    title: &'static str,
    /// A description of the error in this request.
    #[schema(example = "there is no check named \"cache\"")]
    detail: String,
}

impl Problem {
    /// Creates a problem with this status; `detail` describes the error in the request.
    #[must_use]
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error"),
            detail: detail.into(),
        }
    }

    /// Replaces the title, which is the name of the status code by default.
    #[must_use]
    pub const fn titled(mut self, title: &'static str) -> Self {
        self.title = title;
        self
    }

    /// Creates a 404 for a check that is not configured.
    #[must_use]
    pub fn no_check(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("there is no check named {name:?}"),
        )
    }

    fn not_rendered(error: &dyn fmt::Display) -> Self {
        tracing::error!(%error, "cannot render a response");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "cannot render the response",
        )
    }
}

impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Self {
        Self::not_rendered(&error)
    }
}

impl From<askama::Error> for Problem {
    fn from(error: askama::Error) -> Self {
        Self::not_rendered(&error)
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
