//! The pipeline program. See `pipeline.rs` for what it does.

use common::failure::ExitCode;

fn main() -> ExitCode {
    ci::app::main(std::env::args_os())
}
