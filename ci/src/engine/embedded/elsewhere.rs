//! The embedded engine on systems other than Linux, which do not support it.

use super::state::{DownReport, Pruned, Running, Status};
use common::failure::Failure;
use common::progress::Progress;
use common::provision::Consent;

fn only_linux() -> Failure {
    Failure::environment("the embedded engine runs on Linux only").hint(
        "Start a container runtime (Docker, Podman, nerdctl), choose a remote engine with --engine URL, or run ci as root on a \
         Linux host.",
    )
}

pub async fn up(_: Consent<'_>, _: &dyn Progress) -> Result<Running, Failure> {
    Err(only_linux())
}

pub async fn down(_: &dyn Progress) -> Result<DownReport, Failure> {
    Err(only_linux())
}

pub async fn prune(_: &dyn Progress) -> Result<Pruned, Failure> {
    Err(only_linux())
}

pub async fn status() -> Result<Status, Failure> {
    Err(only_linux())
}

pub async fn is_running() -> bool {
    false
}
