//! Tests of the program with real servers, a real browser and a memory limit. They need root on Debian or Ubuntu.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test helpers may panic"
)]

#[path = "../../../ci/tests/e2e/browser.rs"]
mod browser;

mod clock;
mod contract;
mod dependencies;
mod events;
mod harness;
mod load;
mod page;
mod proxy;
mod soak;
mod store;

// For the browser.
use harness::installed;
