//! crane in a container that reaches a registry: also one on this machine's loopback.

use dagger_sdk::{Container, HostServiceOpts, NetworkProtocol, PortForward};

use crate::engine::graphql::EngineError;
use crate::model::image_name::Registry;
use crate::run::execution::StepContext;
use crate::standin;
use crate::trust::kind::Kind;
use common::failure::Failure;

/// What a registry on this machine's loopback is called inside the engine's network.
const LOOPBACK_ALIAS: &str = "registry";

/// crane, ready to talk to one registry.
pub struct Crane {
    /// Its container.
    pub container: Container,
    /// What the registry is called in there.
    pub host: String,
    program: &'static str,
    insecure: bool,
}

impl Crane {
    /// The command line for `arguments`.
    #[must_use]
    pub fn arguments(&self, arguments: &[&str]) -> Vec<String> {
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

/// crane, in a container that reaches `registry`.
///
/// # Errors
/// When crane cannot be had.
pub async fn container<K: Kind>(
    step: &StepContext<'_, K>,
    registry: &Registry,
) -> Result<Crane, Failure> {
    let client = step.client();
    let image = step.run.toolbox.crane().await?;
    // The released image has a user who can read no secret, and write nowhere.
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
        let address = registry.host().trim_matches(['[', ']']).to_owned();
        let service = client.host().service_opts(
            vec![forward],
            HostServiceOpts {
                host: Some(&address),
            },
        );
        // Until the session ends. The engine lets go of a tunnel ten seconds after the command that used it, and Dagger 0.19.10 crashes
        // when the next command binds it at that moment: in core/services.go it waits for a service that cannot be waited for.
        service.start().await.map_err(|error| {
            EngineError::from(error)
                .into_environment(&format!("the engine cannot reach the registry {registry}"))
        })?;
        container = container.with_service_binding(LOOPBACK_ALIAS, service);
    }
    Ok(Crane {
        container,
        host,
        program: image.program("/ko-app/crane", standin::CRANE_PATH),
        insecure: registry.is_loopback(),
    })
}
