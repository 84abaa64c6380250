//! The subcommands, one a file.

mod cache;
mod doctor;
mod engine;
mod graph;
mod init;
mod run;
mod verify;

use crate::model::step::Step;
use crate::report::{self, Reporter};
use crate::run::stopper::Stopper;
use crate::settings::{Command, Invocation};
use common::failure::{ExitCode, Failure};

/// Does what the command line says.
///
/// # Errors
/// Those of the command.
pub async fn dispatch(invocation: Invocation) -> Result<ExitCode, Failure> {
    let stopper = Stopper::default();
    stopper.stop_on_signals()?;
    let reporter = Reporter::plain(invocation.options.quiet, invocation.options.verbose > 0);
    let steps = match &invocation.command {
        Command::Graph => {
            report::data(&graph::draw(invocation.drawing()?));
            return Ok(ExitCode::Success);
        }
        Command::Init => return init::run(&invocation, &reporter),
        Command::Doctor => return stopper.unless_stopped(doctor::run(&invocation)).await,
        Command::Verify { image } => {
            return stopper
                .unless_stopped(verify::run(image, &invocation, &reporter))
                .await;
        }
        Command::Engine { command } => {
            return stopper
                .unless_stopped(engine::run(
                    *command,
                    invocation.options.format.as_deref(),
                    &reporter,
                ))
                .await;
        }
        Command::Cache { command } => return cache::run(&invocation, command, &stopper).await,
        Command::Run | Command::Publish => Step::ALL.to_vec(),
        Command::Test => Step::with_needs(&[Step::Test]),
        Command::Fmt { .. } => Step::with_needs(&[Step::Fmt]),
        Command::Lint => Step::with_needs(&[Step::Lint]),
        Command::Build { .. } => Step::with_needs(&[Step::Build]),
        Command::Scan => Step::with_needs(&[Step::Scan]),
        Command::Smoke => Step::with_needs(&[Step::Smoke]),
    };
    run::run(&invocation, steps, &stopper).await
}
