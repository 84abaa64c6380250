//! Tests with a real engine and a real registry. Tests of the embedded engine need root.
//!
//! `LAB_CI_ENGINE` selects the engine, as for `ci` itself. The default is the embedded engine.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[expect(dead_code, reason = "the tests of `api` use all of it")]
mod browser;
mod company;
mod harness;
mod image;
mod installed;
mod registry;

mod attestations;
mod caches;
mod embedded;
mod evidence;
mod faults;
mod first_start;
mod forges;
mod gates;
mod interrupts;
mod output;
mod private;
mod provisioned;
mod publishing;
mod races;
mod reports;
mod reproducible;
mod runs;
mod runtimes;
mod shapes;
mod shapes_repository;
mod shared;
mod shell;
mod smoke;
mod soak;
mod sources;
mod spans;
mod terminal;
mod verify;
mod whole;
mod workflow;
mod workspaces;
