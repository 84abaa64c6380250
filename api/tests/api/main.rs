//! The real service on a free port, asked over HTTP, and the real program as a process.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail by panicking, too"
)]

mod process;
mod routes;
