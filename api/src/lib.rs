//! The status service of infrastructure-lab.

pub mod configuration;
pub mod error;
pub mod routes;
pub mod startup;
pub mod telemetry;

pub use configuration::Settings;
pub use error::Error;
pub use startup::Application;

/// Serves with the settings of the environment until SIGTERM or SIGINT.
///
/// # Errors
/// Where a setting is wrong, the port is taken, or the server fails.
pub async fn run() -> Result<(), Error> {
    let settings = Settings::from_env()?;
    telemetry::start(settings.log.clone())?;
    Application::build(settings)?.run_until_stopped().await
}
