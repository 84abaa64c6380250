//! Runs clippy.

use std::marker::PhantomData;

use generativity::Id;

use super::services::Services;
use super::workspace::{self, Hint, MESSAGES, Work};
use crate::run::execution::StepContext;
use crate::settings::cargo::{Features, Targets};
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::Failure;

/// Evidence that clippy reports no warnings for this run's sources.
#[derive(Debug)]
pub struct Linted<'run, K> {
    _run: Id<'run>,
    _kind: PhantomData<K>,
}

/// Runs `cargo clippy` on the targets and with the features of the settings; warnings are errors.
///
/// # Errors
/// When clippy reports a warning, or the code does not compile (exit code 1).
pub async fn run<'run, K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'run>,
) -> Result<Linted<'run, K>, Failure> {
    let settings = &step.run.settings;
    let services = Services::of(step).await?;
    let features = if settings.lint.all_features {
        Features::All
    } else {
        settings.cargo.features.clone()
    };
    let selection = &settings.lint.selection;
    let targets = match selection.targets() {
        Some(calls) => calls.iter().map(Targets::arguments).collect(),
        None => " --all-targets".to_owned(),
    };
    let work = Work {
        // With less priority: nothing waits for lint, and a scan waits for build.
        script: &format!(
            "using nice cargo clippy --workspace{targets} --locked{}{} {MESSAGES} -- --deny warnings",
            features.arguments(),
            selection.packages()
        ),
        env: settings.cargo.env.clone(),
        services: Some(&services),
        program: None,
        writes_out: false,
        failed: "clippy reports warnings or errors",
        hint: Hint::Text("Fix the warnings above; `cargo clippy --fix` can apply some fixes."),
    };
    workspace::run(step, source, work).await?;
    Ok(Linted {
        _run: source.run(),
        _kind: PhantomData,
    })
}
