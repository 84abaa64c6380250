//! The real program on a real machine: real servers, a real browser, a memory limit. Needs root on Debian or Ubuntu.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail by panicking, too"
)]

mod browser;
mod contract;
mod dependencies;
mod events;
mod harness;
mod load;
mod soak;
mod store;
