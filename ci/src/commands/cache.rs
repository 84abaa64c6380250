//! `ci cache`: restores caches into the engine, or saves them, without running any step.

use std::sync::Arc;

use super::run::plan::plan;
use super::run::session;
use crate::report::Reporter;
use crate::run::stopper::Stopper;
use crate::settings::{CacheCommand, Invocation};
use crate::trust::authority::GitHub;
use common::failure::{ExitCode, Failure};

/// Runs `ci cache save` or `ci cache restore`. `early` shows what is fetched before the settings are known.
///
/// # Errors
/// When the settings are invalid (exit code 2), the engine is unavailable, or a cache cannot be restored or saved (exit code
/// 3).
pub(super) async fn run(
    invocation: &Invocation,
    command: &CacheCommand,
    stopper: &Stopper,
    early: &Reporter,
) -> Result<ExitCode, Failure> {
    let plan = plan(
        invocation,
        &GitHub::from_env(invocation.options.release_branch.as_deref()),
        early,
    )?;
    let reporter = Arc::new(Reporter::new(&plan.settings, None));
    let ended = session::run(plan, stopper, &reporter).await.result?;
    let Some(report) = ended.cache else {
        return Ok(ExitCode::Success);
    };
    reporter.cache_result(&report)?;
    match (report.failures.first(), command) {
        (Some(failure), _) => Err(Failure::environment(failure.clone())),
        (None, CacheCommand::Save { .. }) if report.read_only => {
            Err(Failure::environment(format!(
                "the cache in {} belongs to main and is read-only for this run ({})",
                report.folder, report.domain
            ))
            .hint("Save to another directory; only a push to main can write to this one."))
        }
        _ => Ok(ExitCode::Success),
    }
}
