//! Prepares the backing services of the smoke test before the image starts.

use dagger_sdk::{Container, ContainerWithExecOpts};

use super::environment::with_env;
use super::services::{Services, setup_failure};
use super::workspace;
use crate::engine::graphql::EngineError;
use crate::model::config_file::FILE;
use crate::run::execution::StepContext;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::Failure;

/// The sources in the container of the toolchain.
const SOURCES: &str = "/sources";

/// Runs the setup of each service on the toolchain's image, and then `smoke.setup` on the built image: `container`.
///
/// # Errors
/// When a setup fails, with its output (exit code 1), or the engine fails (exit code 3).
pub(super) async fn run<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    services: &Services,
    container: &Container,
) -> Result<(), Failure> {
    let settings = &step.run.settings;
    let services_here = settings.services.iter();
    let services_here = services_here.filter(|it| it.steps.contains(&step.step));
    let to_set_up: Vec<_> = services_here
        .filter_map(|it| Some((it.name.as_str(), it.setup.as_deref()?)))
        .collect();
    if to_set_up.is_empty() && settings.smoke.setup.is_none() {
        return Ok(());
    }
    services
        .run_with(set_up(step, source, services, container, &to_set_up))
        .await
}

async fn set_up<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    services: &Services,
    container: &Container,
    to_set_up: &[(&str, &str)],
) -> Result<(), Failure> {
    let settings = &step.run.settings;
    for (name, setup) in to_set_up {
        let sources = source.for_step(step.step, &settings.paths)?;
        let directory = step.client().host();
        let directory = directory.directory(sources.path.display().to_string());
        let folder = std::path::Path::new(SOURCES).join(&settings.folder);
        let tools = workspace::toolchain(step).await?;
        let tools = workspace::with_packages_of(step, &tools)
            .with_mounted_directory(SOURCES, directory)
            .with_workdir(folder.display().to_string())
            // Each run has services of its own.
            .with_env_variable("RUN_ID", &step.run.id);
        let tools = services.bind(&with_env(&tools, &settings.smoke.env));
        let done = tools.with_exec(vec!["sh", "-c", *setup]);
        finish(step, &done, |code| setup_failure(name, code)).await?;
    }
    if let Some(arguments) = &settings.smoke.setup {
        let done = container
            .with_env_variable("RUN_ID", &step.run.id)
            .with_exec_opts(
                arguments.iter().map(String::as_str).collect(),
                ContainerWithExecOpts {
                    expand: None,
                    expect: None,
                    experimental_privileged_nesting: None,
                    insecure_root_capabilities: None,
                    no_init: None,
                    redirect_stderr: None,
                    redirect_stdin: None,
                    redirect_stdout: None,
                    stdin: None,
                    use_entrypoint: Some(true),
                },
            );
        finish(step, &done, |code| {
            let shown = arguments.join(" ");
            Failure::gate(format!(
                "the service exited with code {code} for smoke.setup `{shown}`"
            ))
            .hint(format!(
                "Check smoke.setup in {FILE}: the arguments with which the image prepares the smoke test."
            ))
        })
        .await?;
    }
    Ok(())
}

/// Waits until a command has ended, and adds its output to that of the step.
async fn finish<K: Kind>(
    step: &StepContext<'_, K>,
    done: &Container,
    failed: impl FnOnce(i64) -> Failure,
) -> Result<(), Failure> {
    match done.combined_output().await {
        Ok(output) => {
            step.add_output(&output);
            Ok(())
        }
        Err(error) => match EngineError::from(error) {
            EngineError::Exec { exit_code, output } => {
                step.add_output(&output);
                Err(failed(exit_code).output(output))
            }
            other => Err(other.into_environment("cannot run the setup of the smoke test")),
        },
    }
}
