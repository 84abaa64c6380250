//! HTTP to this machine.

use reqwest::{Certificate, Client, ClientBuilder};

/// Builds a client for plain HTTP to this machine: without a proxy, and without the CA certificates of the system, whose parsing
/// costs as much as the whole session's queries.
pub(crate) fn on_loopback() -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .tls_certs_only(Vec::<Certificate>::new())
}
