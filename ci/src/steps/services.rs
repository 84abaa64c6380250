//! The services that a step's containers have beside them: databases, caches.

use std::time::Duration;

use dagger_sdk::{Container, ContainerAsServiceOpts, Service};

use super::environment::with_env;
use crate::engine::graphql::EngineError;
use crate::run::execution::StepContext;
use crate::trust::kind::Kind;
use common::failure::Failure;

/// How long a service may take until its port is open: pulled and unpacked, a database makes its files first.
const LIMIT: Duration = Duration::from_secs(180);

/// The backing services of one step.
pub struct Services {
    services: Vec<(String, Service)>,
    /// What they are, exactly; nothing where the name of an image does not say it.
    identity: Option<String>,
}

impl Services {
    /// Those that the settings name for this step.
    ///
    /// # Errors
    /// When an image cannot be had and there is no stand-in for it.
    pub async fn of<K: Kind>(step: &StepContext<'_, K>) -> Result<Self, Failure> {
        let client = step.client();
        let mut services = Vec::new();
        let mut identity = Some(String::new());
        for backing in &step.run.settings.services {
            if !backing.steps.contains(&step.step) {
                continue;
            }
            let image = backing.image.whole();
            let server = step.run.toolbox.backing(client, &image).await?;
            let digest = match &server {
                None => backing.image.digest(),
                Some(server) => Some(&*server.image.digest),
            };
            let what = digest.map(|it| (&backing.name, &image, it, backing.port, &backing.env));
            identity = identity
                .zip(what)
                .map(|(known, what)| format!("{known}{what:?}\n"));
            let (container, command) = match server {
                None => (client.container().from(&image), None),
                Some(server) => (server.image.container(client), Some(vec![server.command])),
            };
            let service = with_env(&container, &backing.env)
                .with_exposed_port(backing.port as isize)
                .as_service_opts(ContainerAsServiceOpts {
                    use_entrypoint: command.is_none().then_some(true),
                    args: command
                        .as_ref()
                        .map(|it| it.iter().map(String::as_str).collect()),
                    expand: None,
                    experimental_privileged_nesting: None,
                    insecure_root_capabilities: None,
                    no_init: None,
                });
            services.push((backing.name.clone(), service));
        }
        Ok(Self { services, identity })
    }

    /// What they are, exactly. Nothing where the name of an image has no digest: tomorrow it may be another one.
    #[must_use]
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    /// `container`, which reaches each of them by its name.
    #[must_use]
    pub fn bind(&self, container: &Container) -> Container {
        self.services
            .iter()
            .fold(container.clone(), |container, (name, service)| {
                container.with_service_binding(name, service.clone())
            })
    }

    /// `work`, while they run. The engine would wait without an end for one that does not open its port.
    ///
    /// # Errors
    /// Those of `work`, or that a service does not come up (exit 3).
    pub async fn beside<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            failure = self.broken() => Err(failure),
            done = work => done,
        }
    }

    /// Ends when one of them does not come up.
    async fn broken(&self) -> Failure {
        for (name, service) in &self.services {
            let hint =
                format!("services.{name} in ci.toml says what is started, and its env with what.");
            match tokio::time::timeout(LIMIT, service.start()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    return match EngineError::from(error) {
                        EngineError::Exec { exit_code, output } => Failure::environment(format!(
                            "the service {name} ended with exit code {exit_code}"
                        ))
                        .output(output),
                        other => other.into_environment(&format!("starting the service {name}")),
                    }
                    .hint(hint);
                }
                Err(_) => {
                    return Failure::environment(format!(
                        "the service {name} did not open its port within {} s",
                        LIMIT.as_secs()
                    ))
                    .hint(hint);
                }
            }
        }
        std::future::pending().await
    }
}
