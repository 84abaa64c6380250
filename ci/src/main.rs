//! The pipeline program; `pipeline.rs` has the pipeline.

use common::failure::ExitCode;

fn main() -> ExitCode {
    ci::app::main(std::env::args_os())
}
