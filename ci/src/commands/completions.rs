//! `ci completions` and `ci man`: the command line for shells and for `man`, from its definition.

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::report;
use crate::settings::Cli;
use common::failure::{ExitCode, Failure, OrFail};

/// Prints the completions of a shell.
pub(super) fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ci", &mut script);
    report::data(&String::from_utf8_lossy(&script));
    ExitCode::Success
}

/// Prints the manual page of `ci`, or of one of its commands.
///
/// # Errors
/// When there is no such command (exit code 2).
pub(super) fn man(command: Option<&str>) -> Result<ExitCode, Failure> {
    let mut cli = Cli::command();
    // So that commands have the options of all commands.
    cli.build();
    let page = match command {
        None => cli,
        Some(name) => cli.find_subcommand(name).cloned().ok_or_else(|| {
            Failure::usage(format!("`{name}` is not a command"))
                .hint("Run `ci --help` for the list of commands.")
        })?,
    };
    let mut text = Vec::new();
    Man::new(page)
        .render(&mut text)
        .or_environment("cannot write the manual page")?;
    report::data(&String::from_utf8_lossy(&text));
    Ok(ExitCode::Success)
}
