//! The subcommands, one per file.

mod accept;
mod cache;
mod completions;
mod doctor;
mod engine;
mod graph;
mod init;
mod run;
mod shell;
mod verify;
mod version;

pub(crate) use self::version::version;
use crate::report::Reporter;
use crate::run::stopper::Stopper;
use crate::settings::{Command, Invocation};
use common::failure::{ExitCode, Failure};

/// Runs the command.
///
/// # Errors
/// When the command fails.
pub async fn dispatch(invocation: Invocation) -> Result<ExitCode, Failure> {
    let stopper = Stopper::default();
    stopper.stop_on_signals()?;
    let reporter = Reporter::plain(invocation.options.quiet, invocation.options.verbose > 0);
    match &invocation.command {
        Command::Graph => graph::run(&invocation),
        Command::Init { print } => init::run(&invocation, *print, &reporter),
        Command::Doctor => stopper.unless_stopped(doctor::run(&invocation)).await,
        Command::Completions { shell } => Ok(completions::completions(*shell)),
        Command::Man { command } => completions::man(command.as_deref()),
        Command::Verify { image } => {
            stopper
                .unless_stopped(verify::run(image, &invocation, &reporter))
                .await
        }
        Command::Engine { command } => {
            let format = invocation.options.format.as_deref();
            stopper
                .unless_stopped(engine::run(*command, format, &reporter))
                .await
        }
        Command::Shell { step } => shell::run(&invocation, *step, &stopper, &reporter).await,
        Command::Cache { command } => cache::run(&invocation, command, &stopper, &reporter).await,
        Command::Scan(options) => match options.acceptance() {
            Some(acceptance) => accept::run(&acceptance, &invocation, &reporter),
            None => Ok(run::run(&invocation, &stopper).await),
        },
        // The whole pipeline or one of its steps.
        _ => Ok(run::run(&invocation, &stopper).await),
    }
}
