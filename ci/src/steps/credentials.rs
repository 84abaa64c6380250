//! Gives cargo's containers the credentials of private dependencies, as secrets of the engine: they are in no image, layer, cache
//! or key.

use dagger_sdk::{Container, DaggerConn};
use secrecy::ExposeSecret as _;

use crate::run::context::RunContext;
use crate::settings::access::Secret;
use crate::trust::kind::Kind;

/// The file of git-credential-store in the containers.
const STORE: &str = "/run/secrets/git-credentials";
/// The settings of git. The program has its whole path, because `build.commit` puts another `git` first. It only reads the store,
/// which git would otherwise write after each use.
const SETTINGS: &str = r#"[credential]
	helper = "!answer() { [ \"$1\" != get ] || /usr/bin/git credential-store --file @store@ get; }; answer"
"#;
/// The [credential providers](https://doc.rust-lang.org/cargo/reference/registry-authentication.html) of cargo.
const PROVIDERS: &str = "CARGO_REGISTRY_GLOBAL_CREDENTIAL_PROVIDERS";
/// The socket of the SSH agent in the containers.
const AGENT: &str = "/run/ssh-agent.sock";

/// Adds the credentials that the settings name.
#[must_use]
pub(super) fn with_credentials<K: Kind>(
    client: &DaggerConn,
    run: &RunContext<K>,
    container: Container,
) -> Container {
    let access = &run.settings.access;
    let mut container = container;
    for Secret { name, value } in &access.secrets {
        let secret = run.secret(client, name, value.expose_secret());
        container = container.with_secret_variable(name, secret);
        if name.starts_with("CARGO_REGISTRIES_") && name.ends_with("_TOKEN") {
            // Without a provider, cargo does not send tokens to a registry that wants them for downloads.
            container = container.with_env_variable(PROVIDERS, "cargo:token");
        }
    }
    if let Some(store) = &access.git_credentials {
        let secret = run.secret(client, "git-credentials", store.expose_secret());
        container = container
            .with_mounted_secret(STORE, secret)
            .with_new_file("/etc/gitconfig", SETTINGS.replace("@store@", STORE));
    }
    if access.fetches_with_git() {
        container = container.with_env_variable("CARGO_NET_GIT_FETCH_WITH_CLI", "true");
    }
    if let Some(socket) = &access.ssh_agent {
        let socket = client.host().unix_socket(socket.display().to_string());
        container = container
            .with_unix_socket(AGENT, socket)
            .with_env_variable("SSH_AUTH_SOCK", AGENT);
    }
    container
}
