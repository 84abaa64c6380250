//! The `api` program: read the settings, serve, and say with the exit code how it ended.

use std::process::ExitCode;

#[actix_web::main]
async fn main() -> ExitCode {
    match api::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
