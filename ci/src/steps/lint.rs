//! clippy.

use std::marker::PhantomData;

use generativity::Id;

use super::workspace;
use crate::evidence::{Kind, Source};
use crate::failure::Failure;
use crate::run::StepContext;

/// clippy has nothing to say about this run's sources.
#[derive(Debug)]
pub struct Linted<'run, K> {
    _run: Id<'run>,
    _kind: PhantomData<K>,
}

/// `cargo clippy` on everything, tests and all features included; a warning is an error.
///
/// # Errors
/// When clippy warns, or the code does not compile.
pub async fn run<'run, K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'run>,
) -> Result<Linted<'run, K>, Failure> {
    let container = workspace::with_sources(step, &workspace::toolchain(step).await?, source);
    workspace::run(
        step,
        &container,
        "cargo clippy --workspace --all-targets --all-features --locked -- --deny warnings",
        "clippy found something",
        "Mend what it says; `cargo clippy --fix` does a part of it.",
    )
    .await?;
    Ok(Linted {
        _run: source.run(),
        _kind: PhantomData,
    })
}
