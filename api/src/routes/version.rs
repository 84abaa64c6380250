//! `GET /version`: which build this is.

use actix_web::web;
use serde::Serialize;
use utoipa::ToSchema;

use crate::service::Service;

/// Which build this is.
#[derive(Serialize, ToSchema)]
pub(super) struct Version {
    /// The version of the service.
    #[schema(value_type = String, example = "0.1.0")]
    version: &'static str,
    /// The commit, as the image says it; none outside of an image.
    commit: Option<String>,
    /// When the commit was made, as the image says it.
    #[schema(format = DateTime)]
    build_time: Option<String>,
    /// The compiler that the workspace names.
    #[schema(value_type = String, example = "1.95")]
    toolchain: &'static str,
}

/// Which build this is
#[utoipa::path(get, operation_id = "version", path = "/version", tag = "operation", responses(
    (status = 200, description = "The build", body = Version),
))]
pub(super) async fn get(service: web::Data<Service>) -> web::Json<Version> {
    web::Json(Version {
        version: env!("CARGO_PKG_VERSION"),
        commit: service.build.commit.clone(),
        build_time: service.build.time.clone(),
        toolchain: env!("CARGO_PKG_RUST_VERSION"),
    })
}
