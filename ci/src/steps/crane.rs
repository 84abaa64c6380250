//! A container with crane that can reach a registry, also one on this machine's loopback interface.

use dagger_sdk::{Container, HostServiceOpts, NetworkProtocol, PortForward};

use crate::engine::graphql::EngineError;
use crate::model::image_name::Registry;
use crate::run::execution::StepContext;
use crate::standin;
use crate::trust::kind::Kind;
use common::failure::Failure;

/// The host name, in the engine's network, of a registry on this machine's loopback interface.
const LOOPBACK_ALIAS: &str = "registry";

/// crane for one registry.
pub(super) struct Crane {
    pub container: Container,
    /// The registry's host and port in the container.
    pub host: String,
    program: &'static str,
    insecure: bool,
}

impl Crane {
    /// The whole command line for crane's `arguments`.
    #[must_use]
    pub(super) fn arguments(&self, arguments: &[&str]) -> Vec<String> {
        let insecure = self.insecure.then_some("--insecure");
        [self.program]
            .iter()
            .chain(arguments)
            .copied()
            .chain(insecure)
            .map(str::to_owned)
            .collect()
    }
}

/// Creates a container with crane that can reach `registry`.
///
/// # Errors
/// When crane's image cannot be pulled, or the engine cannot reach the registry (exit code 3).
pub(super) async fn container<K: Kind>(
    step: &StepContext<'_, K>,
    registry: &Registry,
) -> Result<Crane, Failure> {
    let client = step.client();
    let image = step.run.toolbox.crane().await?;
    // The user of crane's image can neither read secrets nor write files.
    let mut container = image.container(client, None)?.with_user("0:0");
    let mut host = registry.to_string();
    if registry.is_loopback() {
        host = format!("{LOOPBACK_ALIAS}:{}", registry.port());
        let port = registry.port() as isize;
        let forward = PortForward {
            backend: port,
            frontend: port,
            protocol: NetworkProtocol::Tcp,
        };
        // The engine appends the port, so an IPv6 address keeps its brackets.
        let address = registry.host().to_owned();
        let service = client.host().service_opts(
            vec![forward],
            HostServiceOpts {
                host: Some(&address),
            },
        );
        // Keeps the tunnel open for the whole session. Otherwise the engine closes it ten seconds after each command;
        // Dagger 0.19.10 crashed if the next command bound it at that moment.
        service.start().await.map_err(|error| {
            EngineError::from(error)
                .into_environment(&format!("the engine cannot reach the registry {registry}"))
        })?;
        container = container.with_service_binding(LOOPBACK_ALIAS, service);
    } else {
        container = step.run.connected(client, container);
    }
    Ok(Crane {
        container,
        host,
        program: image.program("/ko-app/crane", standin::CRANE_PATH),
        insecure: registry.is_loopback(),
    })
}
