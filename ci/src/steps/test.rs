//! The tests of the workspace.

use std::marker::PhantomData;

use generativity::Id;

use super::services::Services;
use super::workspace::{self, MESSAGES, Work};
use crate::run::execution::StepContext;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::Failure;

/// The tests of this run's sources passed.
#[derive(Debug)]
pub struct Tested<'run, K> {
    _run: Id<'run>,
    _kind: PhantomData<K>,
}

/// `cargo test --workspace --locked`. Suites that need an engine, a browser or servers are behind features of their own.
///
/// # Errors
/// When a test fails, or does not compile.
pub async fn run<'run, K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'run>,
) -> Result<Tested<'run, K>, Failure> {
    let services = Services::of(step).await?;
    let work = Work {
        // What the tests are is compiled first: what cargo says of that is not mixed with what they say.
        script: &format!(
            "using cargo test --workspace --locked --no-run {MESSAGES}\ncargo test --workspace --locked"
        ),
        env: step.run.settings.test_env.clone(),
        services: Some(&services),
        program: None,
        leaves: false,
        failed: "the tests failed",
        hint: "Run `cargo test --workspace --locked` for the same tests on this machine.",
    };
    workspace::run(step, source, work).await?;
    Ok(Tested {
        _run: source.run(),
        _kind: PhantomData,
    })
}
