//! The status service of infrastructure-lab.

pub mod board;
pub mod changes;
pub mod checks;
pub mod configuration;
pub mod drain;
pub mod error;
pub mod history;
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

/// Serves with the settings of the environment until SIGTERM or SIGINT.
///
/// # Errors
/// Where a setting is wrong, the port is taken, or the server fails.
pub async fn run() -> Result<(), Error> {
    let settings = Settings::read(|name| std::env::var_os(name))?;
    telemetry::start(settings.log.clone())?;
    Application::build(settings)?.run_until_stopped().await
}
