//! The tests of the workspace.

use std::marker::PhantomData;

use generativity::Id;

use super::services::Services;
use super::workspace;
use crate::evidence::{Kind, Source};
use crate::failure::Failure;
use crate::run::StepContext;

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
    let container = workspace::with_sources(step, &workspace::toolchain(step).await?, source);
    let container = workspace::with_env(&container, &step.run.settings.test_env);
    let container = services.bind(&container);
    services
        .beside(workspace::run(
            step,
            &container,
            "cargo test --workspace --locked",
            "the tests failed",
            "Run `cargo test --workspace --locked` for the same tests on this machine.",
        ))
        .await?;
    Ok(Tested {
        _run: source.run(),
        _kind: PhantomData,
    })
}
