//! The pipeline program. See `pipeline.rs` for what it does.

use ci::failure::ExitCode;

fn main() -> ExitCode {
    ci::app::main(std::env::args_os())
}
