//! Tests of the service over HTTP on a free port, and of the program as a process.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test helpers may panic"
)]

mod addresses;
mod certificates;
mod cli;
mod configuration;
mod day;
mod degraded;
mod edge;
mod events;
mod history;
mod http;
mod page;
mod postgres;
mod probes;
mod process;
mod redirects;
mod reload;
mod resolution;
mod restart;
mod routes;

/// An HTTP client. When built together with `ci`, reqwest needs a TLS provider, even though these tests do not use TLS.
fn client() -> reqwest::Client {
    // Fails if another test has already installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}
