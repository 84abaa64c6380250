//! Starts the backing services of a step, such as databases and caches.

use std::time::Duration;

use dagger_sdk::{Container, ContainerAsServiceOpts, Service};

use super::environment::with_env;
use crate::engine::graphql::EngineError;
use crate::run::execution::StepContext;
use crate::trust::kind::Kind;
use common::failure::Failure;

/// The time limit for a service to pass its health check or open its port, including pulling the image and creating a database's
/// files.
const LIMIT: Duration = Duration::from_secs(180);

/// The backing services of one step.
pub struct Services {
    services: Vec<(String, Service)>,
    identity: Option<String>,
}

impl Services {
    /// The services that the settings configure for this step.
    ///
    /// # Errors
    /// When an image cannot be pulled and has no stand-in (exit code 3).
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
                // Otherwise the engine starts one service for all steps, and the smoke test sees what the tests have stored.
                .with_env_variable("LAB_CI_STEP", step.step.name())
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

    /// The exact images and settings of the services; `None` if an image has no digest, as its content can change.
    #[must_use]
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    /// Makes the services available to `container` by their names.
    #[must_use]
    pub fn bind(&self, container: &Container) -> Container {
        self.services
            .iter()
            .fold(container.clone(), |container, (name, service)| {
                container.with_service_binding(name, service.clone())
            })
    }

    /// Runs `work` while the services run, and stops waiting if one does not become ready: the engine would wait forever. A service
    /// is ready when it passes the `HEALTHCHECK` of its image, or opens its port if the image has none.
    ///
    /// # Errors
    /// When `work` fails, or a service does not start (exit code 3).
    pub async fn run_with<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            failure = self.start_failure() => Err(failure),
            done = work => done,
        }
    }

    /// Returns when a service does not start; otherwise never.
    async fn start_failure(&self) -> Failure {
        for (name, service) in &self.services {
            let hint = format!("Check the image and env of services.{name} in ci.toml.");
            match tokio::time::timeout(LIMIT, service.start()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    return match EngineError::from(error) {
                        EngineError::Exec { exit_code, output } => Failure::environment(format!(
                            "service {name} exited with code {exit_code}"
                        ))
                        .output(output),
                        other => other.into_environment(&format!("cannot start service {name}")),
                    }
                    .hint(hint);
                }
                Err(_) => {
                    return Failure::environment(format!(
                        "service {name} was not ready within {} s",
                        LIMIT.as_secs()
                    ))
                    .hint(hint);
                }
            }
        }
        std::future::pending().await
    }
}
