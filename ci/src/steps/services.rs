//! Starts the backing services of a step, such as databases and caches.

use std::time::Duration;

use dagger_sdk::{Container, ContainerAsServiceOpts, Service};

use super::environment::with_env;
use crate::engine::graphql::EngineError;
use crate::model::config_file::FILE;
use crate::run::execution::StepContext;
use crate::settings::tables::Backing;
use crate::trust::kind::Kind;
use common::failure::{Failure, OrFail};

/// The time limit for a service to pass its health check or open its port, including pulling the image and creating a database's
/// files.
const LIMIT: Duration = Duration::from_secs(180);

/// Forwards a port of `localhost` to a service, without the lock of the volume.
const FORWARD: &str = r#"socat TCP-LISTEN:@port@,bind=127.0.0.1,fork,reuseaddr TCP:@name@:@port@ 2>/dev/null 9>&- &
for try in $(seq 100); do
  ! grep -q "0100007F:$(printf %04X @port@) 00000000:0000 0A" /proc/net/tcp || break
  sleep 0.05
done
"#;

/// Prepares a service.
const SET_UP: &str = r#"echo "setup of service @name@"
sh -c @command@ || { code=$?; echo "@failed@@name@"; exit "$code"; }
"#;

/// The line that tells that the setup of a service failed; its name follows.
const SETUP_FAILED: &str = "the setup failed of service ";

/// The backing services of one step.
pub struct Services {
    services: Vec<(String, Service)>,
    identity: Option<String>,
    script: String,
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
        let mut script = String::new();
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
            script += &script_for(backing)?;
        }
        Ok(Self {
            services,
            identity,
            script,
        })
    }

    /// A shell script that makes the services ready for the step's commands, in a container that is bound to them. Empty if nothing is
    /// to be done.
    #[must_use]
    pub fn script(&self) -> &str {
        &self.script
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

fn script_for(backing: &Backing) -> Result<String, Failure> {
    let mut script = String::new();
    if backing.localhost {
        script += &FORWARD
            .replace("@port@", &backing.port.to_string())
            .replace("@name@", &backing.name);
    }
    if let Some(setup) = &backing.setup {
        let command = shlex::try_quote(setup).or_environment(format!(
            "cannot quote services.{}.setup for the shell",
            backing.name
        ))?;
        script += &SET_UP
            .replace("@name@", &backing.name)
            .replace("@failed@", SETUP_FAILED)
            .replace("@command@", &command);
    }
    Ok(script)
}

/// The service whose setup failed, by the output of a step that had no output of its own yet.
pub(super) fn failed_setup(output: &str) -> Option<&str> {
    let last = output.trim_end().lines().next_back()?;
    last.strip_prefix(SETUP_FAILED)
}

/// The failure of a step because of the setup of a service.
pub(super) fn setup_failure(name: &str, exit_code: impl std::fmt::Display) -> Failure {
    Failure::gate(format!(
        "the setup of service {name} failed (exit code {exit_code})"
    ))
    .hint(format!(
        "Check services.{name}.setup in {FILE}; services.{name}.packages adds programs that it needs."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_line_tells_that_a_setup_failed() {
        assert_eq!(
            failed_setup("psql: error\nthe setup failed of service database\n"),
            Some("database")
        );
        assert_eq!(
            failed_setup("the setup failed of service database\ntest result: FAILED"),
            None
        );
    }
}
