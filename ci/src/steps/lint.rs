//! clippy.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use generativity::Id;

use super::workspace::{self, MESSAGES, Work};
use crate::run::execution::StepContext;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::Failure;

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
    let work = Work {
        script: &format!(
            "using cargo clippy --workspace --all-targets --all-features --locked {MESSAGES} -- --deny warnings"
        ),
        env: BTreeMap::new(),
        services: None,
        program: None,
        leaves: false,
        failed: "clippy found something",
        hint: "Mend what it says; `cargo clippy --fix` does a part of it.",
    };
    workspace::run(step, source, work).await?;
    Ok(Linted {
        _run: source.run(),
        _kind: PhantomData,
    })
}
