//! The real service on a free port, asked over HTTP, and the real program as a process.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail by panicking, too"
)]

mod cli;
mod configuration;
mod edge;
mod events;
mod history;
mod page;
mod probes;
mod process;
mod routes;

/// A client of the service. Built together with `ci`, reqwest has TLS whose provider has to be named, though nothing here uses it.
fn client() -> reqwest::Client {
    // Another test may have named it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}
