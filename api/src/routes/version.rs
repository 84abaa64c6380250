//! `GET /version`: the running build.

use actix_web::web;
use serde::Serialize;
use utoipa::ToSchema;

use crate::service::Service;

/// The running build.
#[derive(Serialize, ToSchema)]
pub(super) struct Version {
    /// The version of the service.
    #[schema(value_type = String, example = "0.1.0")]
    version: &'static str,
    /// The commit, from `APP_COMMIT`; `null` outside of an image.
    commit: Option<String>,
    /// The time of the commit, from `APP_BUILD_TIME`; `null` outside of an image.
    #[schema(format = DateTime)]
    build_time: Option<String>,
    /// The Rust version that the workspace declares.
    #[schema(value_type = String, example = "1.95")]
    toolchain: &'static str,
}

/// Version of the running build
#[utoipa::path(get, operation_id = "version", path = "/version", tag = "operation", responses(
    (status = 200, description = "The running build", body = Version),
))]
pub(super) async fn get(service: web::Data<Service>) -> web::Json<Version> {
    web::Json(Version {
        version: env!("CARGO_PKG_VERSION"),
        commit: service.build.commit.clone(),
        build_time: service.build.time.clone(),
        toolchain: env!("CARGO_PKG_RUST_VERSION"),
    })
}
