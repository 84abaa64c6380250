//! `ci shell` in an open session.

use generativity::make_guard;

use crate::model::step::Step;
use crate::report;
use crate::run::execution::Run;
use crate::source::checkout::Checkout;
use crate::source::snapshot::Snapshot;
use crate::source::sources::Source;
use crate::steps::build;
use crate::steps::shell::Shell;
use crate::trust::kind::Kind;
use common::failure::Failure;

/// Starts the shell of `step`, and connects the terminal to it until it ends.
///
/// # Errors
/// When the image for `smoke` cannot be built (exit code 1), or the shell cannot be started (exit code 3).
pub(super) async fn open<K: Kind>(
    run: &Run<K>,
    step: Step,
    checkout: Checkout,
    snapshot: Snapshot,
) -> Result<(), Failure> {
    make_guard!(this_run);
    make_guard!(this_image);
    let source = Source::new(this_run, checkout, snapshot);
    let context = run.detached(step);
    let shell = if step == Step::Smoke {
        let image = run
            .step(Step::Build, Some((&source, this_image)), build::run)
            .await
            .ok_or_else(|| Failure::gate("there is no image to start, because the build failed"))?;
        Shell::beside(&context, (&source, &image)).await?
    } else {
        let last_run = report::last_end(&run.context.settings.report_dir, step);
        Shell::of(&context, &source, last_run).await?
    };
    // Their lines must not appear in the shell.
    run.show_all().await;
    let ended = report::attach(shell.port(), shell.token()).await;
    shell.close().await;
    ended
}
