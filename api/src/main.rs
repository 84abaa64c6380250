//! The `api` program: do what the command line says, and say with the exit code how it ended.

use std::process::ExitCode;

fn main() -> ExitCode {
    api::cli::main(std::env::args_os())
}
