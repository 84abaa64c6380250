//! `ci cache`: into the engine, or out of it, and nothing else.

use std::sync::Arc;

use super::run::plan::plan;
use super::run::session;
use crate::report::Reporter;
use crate::run::stopper::Stopper;
use crate::settings::{CacheCommand, Invocation};
use crate::trust::authority::GitHub;
use common::failure::{ExitCode, Failure};

/// Does what `ci cache` was told to.
///
/// # Errors
/// Those of the plan and of the engine, and what could not be carried (exit 3).
pub async fn run(
    invocation: &Invocation,
    command: &CacheCommand,
    stopper: &Stopper,
) -> Result<ExitCode, Failure> {
    let plan = plan(invocation, &GitHub::from_env())?;
    let reporter = Arc::new(Reporter::new(&plan.settings, None));
    let ended = session::run(plan, stopper, &reporter).await.result?;
    let Some(report) = ended.cache else {
        return Ok(ExitCode::Success);
    };
    reporter.carried(&report)?;
    match (report.failures.first(), command) {
        (Some(failure), _) => Err(Failure::environment(failure.clone())),
        (None, CacheCommand::Save { .. }) if report.read_only => {
            Err(Failure::environment(format!(
                "the cache in {} is main's, and is not written by this run, which is {}'s",
                report.folder, report.domain
            ))
            .hint("Only a push to main writes it; save into a folder of your own."))
        }
        _ => Ok(ExitCode::Success),
    }
}
