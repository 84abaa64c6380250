//! Runs the workspace's tests.

use std::marker::PhantomData;

use generativity::Id;

use super::services::Services;
use super::workspace::{self, Hint, MESSAGES, Work};
use crate::run::execution::StepContext;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::Failure;

/// Evidence that the tests passed on this run's sources.
#[derive(Debug)]
pub struct Tested<'run, K> {
    _run: Id<'run>,
    _kind: PhantomData<K>,
}

/// Runs `cargo test --workspace --locked`. In this repository, suites that need an engine, a browser or servers are behind
/// features.
///
/// # Errors
/// When a test fails or does not compile (exit code 1), or a backing service does not start (exit code 3).
pub async fn run<'run, K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'run>,
) -> Result<Tested<'run, K>, Failure> {
    let services = Services::of(step).await?;
    let work = Work {
        // Compiled separately, because the tests' output must not be mixed with cargo's JSON messages.
        script: &format!(
            "using cargo test --workspace --locked --no-run {MESSAGES}\ncargo test --workspace --locked --no-fail-fast"
        ),
        env: step.run.settings.test_env.clone(),
        services: Some(&services),
        program: None,
        writes_out: false,
        failed: "the tests failed",
        hint: Hint::Reproduce("`cargo test --workspace --locked`"),
    };
    workspace::run(step, source, work).await?;
    Ok(Tested {
        _run: source.run(),
        _kind: PhantomData,
    })
}
