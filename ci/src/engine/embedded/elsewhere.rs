//! The embedded engine on a system that cannot have one.

use super::state::{DownReport, Pruned, Running, Status};
use common::failure::Failure;
use common::progress::Progress;
use common::provision::Consent;

fn only_linux() -> Failure {
    Failure::environment("the embedded engine runs on Linux only").hint(
        "Start a container runtime (Docker, Podman, nerdctl); or name an engine elsewhere with --engine URL; or run ci as \
         root on a Linux host.",
    )
}

/// Starts the embedded engine, or finds the one that is running.
///
/// # Errors
/// Always: this is not Linux.
pub async fn up(_: Consent<'_>, _: &dyn Progress) -> Result<Running, Failure> {
    Err(only_linux())
}

/// Ends the embedded engine.
///
/// # Errors
/// Always: this is not Linux.
pub async fn down(_: &dyn Progress) -> Result<DownReport, Failure> {
    Err(only_linux())
}

/// Frees what can be made again.
///
/// # Errors
/// Always: this is not Linux.
pub async fn prune(_: &dyn Progress) -> Result<Pruned, Failure> {
    Err(only_linux())
}

/// What there is of the embedded engine on this machine.
///
/// # Errors
/// Always: this is not Linux.
pub async fn status() -> Result<Status, Failure> {
    Err(only_linux())
}
