//! `ci shell`: opens a shell in the container of a step.

use std::sync::Arc;

use super::run::plan::plan;
use super::run::session;
use crate::engine::choice::Choice;
use crate::engine::find;
use crate::model::step::Step;
use crate::report::Reporter;
use crate::run::stopper::Stopper;
use crate::settings::Invocation;
use crate::steps::shell::STEPS;
use crate::trust::authority::GitHub;
use common::failure::{ExitCode, Failure, OrFail};
use common::scratch;

/// Opens the shell, and returns when it ends. `early` shows what is fetched before the settings are known.
///
/// # Errors
/// When the step has no shell, the settings are invalid, or the session belongs to another process (exit code 2), the image for
/// `smoke` cannot be built (exit code 1), or the engine is unavailable (exit code 3).
pub(super) async fn run(
    invocation: &Invocation,
    step: Step,
    stopper: &Stopper,
    early: &Reporter,
) -> Result<ExitCode, Failure> {
    if !STEPS.contains(&step) {
        let names = STEPS.map(Step::name).join(", ");
        return Err(Failure::usage(format!(
            "the container of step {step} has no shell: its image contains only the program that the step runs"
        ))
        .hint(format!("Open a shell in one of these steps: {names}.")));
    }
    let mut plan = plan(
        invocation,
        &GitHub::from_env(invocation.options.release_branch.as_deref()),
        early,
    )?;
    if !plan.settings.has(step) {
        return Err(Failure::usage(format!("this project has no step {step}"))
            .hint("Add a [[gate]] with name and run to ci.toml."));
    }
    if matches!(plan.settings.engine, Choice::Auto) && find::is_in_session() {
        return Err(Failure::usage(
            "a shell cannot be opened in the session of another process (DAGGER_SESSION_PORT)",
        )
        .hint("Run `ci shell` outside of `dagger run`, or choose an engine with --engine."));
    }
    // The image for `smoke` must not replace the one of the last run.
    let folder = scratch::folder().or_environment("cannot create a directory for the image")?;
    if step == Step::Smoke {
        folder.path().clone_into(&mut plan.settings.report_dir);
    }
    let reporter = Arc::new(Reporter::in_lines(&plan.settings));
    session::run(plan, stopper, &reporter).await.result?;
    Ok(ExitCode::Success)
}
