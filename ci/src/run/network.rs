//! The way of the containers to the network: a company's proxy and its CA certificates.

use dagger_sdk::{Container, DaggerConn, DirectoryWithNewFileOpts, Secret};

use super::context::RunContext;
use crate::settings::access::Proxy;
use crate::trust::kind::Kind;

/// The directory of the file with CA certificates in the containers.
const FOLDER: &str = "/run/ci-network";
/// The file with CA certificates.
const CERTIFICATES: &str = "ca-certificates.pem";
/// The variables that name this file to OpenSSL, rustls and Go, to cargo, to git and to curl.
const VARIABLES: [&str; 4] = [
    "SSL_CERT_FILE",
    "CARGO_HTTP_CAINFO",
    "GIT_SSL_CAINFO",
    "CURL_CA_BUNDLE",
];

impl<K: Kind> RunContext<K> {
    /// Gives `container` the proxy and the CA certificates of the settings.
    #[must_use]
    pub fn connected(&self, client: &DaggerConn, container: Container) -> Container {
        let network = &self.settings.access.network;
        let mut container = container;
        for proxy in &network.proxies {
            container = self.with_proxy(client, container, proxy);
        }
        if let Some(hosts) = &network.direct {
            container = with_both(container, "NO_PROXY", |container, name| {
                container.with_env_variable(name, hosts)
            });
        }
        if let Some(certificates) = &network.certificates {
            let options = DirectoryWithNewFileOpts {
                permissions: Some(0o644),
            };
            let folder = client
                .directory()
                .with_new_file_opts(CERTIFICATES, certificates, options);
            container = container.with_mounted_directory(FOLDER, folder);
            for name in VARIABLES {
                container = container.with_env_variable(name, format!("{FOLDER}/{CERTIFICATES}"));
            }
        }
        container
    }

    /// A secret of the engine, which identifies it by its name and this repository, not by its value.
    #[must_use]
    pub fn secret(&self, client: &DaggerConn, name: &str, value: &str) -> Secret {
        client.set_secret(format!("{}/{name}", self.settings.repository), value)
    }

    fn with_proxy(&self, client: &DaggerConn, container: Container, proxy: &Proxy) -> Container {
        let url = proxy.url.as_str().trim_end_matches('/');
        if !proxy.is_secret() {
            return with_both(container, proxy.variable, |container, name| {
                container.with_env_variable(name, url)
            });
        }
        let secret = self.secret(client, proxy.variable, url);
        with_both(container, proxy.variable, |container, name| {
            container.with_secret_variable(name, secret.clone())
        })
    }
}

/// Sets a variable in upper and in lower case: programs differ in which of them they read.
fn with_both(
    container: Container,
    name: &str,
    set: impl Fn(Container, &str) -> Container,
) -> Container {
    set(set(container, name), &name.to_lowercase())
}
