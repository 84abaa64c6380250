//! The status service of infrastructure-lab.

pub mod board;
pub mod changes;
pub mod checks;
pub mod cli;
pub mod configuration;
pub mod connections;
pub mod drain;
pub mod error;
pub mod history;
pub mod hits;
pub mod memory;
pub mod metrics;
pub mod page;
pub mod problem;
pub mod rendered;
pub mod routes;
pub mod secret;
pub mod service;
pub mod startup;
pub mod telemetry;
pub mod trace;

pub use configuration::Settings;
pub use error::Error;
pub use startup::Application;

use std::sync::Arc;

use actix_web::rt::System;

/// So many names are looked up at once; more threads would be more memory than many checks are worth.
const BLOCKING_THREADS: usize = 16;

/// Serves with `settings` until SIGTERM or SIGINT.
///
/// # Errors
/// Where the port is taken, or the server fails.
pub fn run(settings: Settings) -> Result<(), Error> {
    telemetry::start(settings.log.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map(Arc::new)
        .map_err(Error::Runtime)?;
    let ended = System::with_tokio_rt(|| runtime.clone())
        .block_on(async { Application::build(settings)?.run_until_stopped().await });
    // Dropped, it would wait for the look-up of a name whose server is silent.
    if let Some(runtime) = Arc::into_inner(runtime) {
        runtime.shutdown_background();
    }
    ended
}
