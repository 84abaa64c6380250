//! Understands the output of the steps' commands: cargo's messages and progress, libtest's results, rustfmt's diffs.
//!
//! Tests are read from libtest's stable text. nextest would bring the output and the time of each test, but no registry has it
//! as a trusted binary. Each new toolchain image would first have to compile its 332 crates, which takes five minutes on two
//! cores, and each test would run in a process of its own, which changes what the tests of other people's services share.

mod cargo;
mod gates;
mod libtest;
mod lines;
mod paths;
mod reader;
mod rustfmt;

pub(crate) use self::cargo::failed_build_script;
pub(crate) use self::lines::{Piece, Splitter};
pub(crate) use self::paths::SOURCES;
pub(crate) use self::reader::{Found, IDLE, Reader, WAITING};
