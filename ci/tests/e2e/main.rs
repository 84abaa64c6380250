//! The suite that needs a machine: a real engine, a real registry, root where the embedded engine is the one.
//!
//! `LAB_CI_ENGINE` chooses the engine, as it does for `ci` itself; without it the embedded engine is brought up where there is
//! no container runtime.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod harness;
mod image;
mod installed;
mod registry;

mod caches;
mod embedded;
mod evidence;
mod faults;
mod first_start;
mod forges;
mod gates;
mod interrupts;
mod papers;
mod provisioned;
mod publishing;
mod races;
mod reproducible;
mod runs;
mod runtimes;
mod shared;
mod smoke;
mod soak;
mod sources;
mod verify;
mod whole;
mod workflow;
mod workspaces;
