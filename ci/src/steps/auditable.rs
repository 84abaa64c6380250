//! cargo-auditable, which embeds the list of dependencies into a binary: compiled once for each toolchain image.

use std::path::Path;

use dagger_sdk::File;

use super::workspace;
use crate::engine::graphql::EngineError;
use crate::image::archive::Platform;
use crate::run::execution::StepContext;
use crate::runner_cache::tools;
use crate::trust::kind::Kind;
use common::failure::Failure;
use common::pins;

/// The program, for a container of the toolchain image on `platform`.
///
/// It is compiled with the toolchain that `ci` pins, in a container without any repository's code and without volumes, and stored
/// in this machine's cache directory. Therefore all repositories, trust domains and engines can share it.
///
/// # Errors
/// When the toolchain image cannot be pulled or a crate cannot be downloaded (exit code 3).
pub(super) async fn program<K: Kind>(
    step: &StepContext<'_, K>,
    platform: Option<&Platform>,
) -> Result<File, Failure> {
    let run = step.run;
    let key = run.toolchain_key(platform).await?;
    let compile = async |target: &Path| {
        workspace::pinned_toolchain(step, platform)
            .await?
            // This halves the CPU time of the compilation. The program mostly waits for cargo and rustc.
            .with_env_variable("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .with_exec(vec![
                "cargo",
                "install",
                "--quiet",
                "--locked",
                "--root",
                "/tools",
                &format!("cargo-auditable@{}", pins::CARGO_AUDITABLE),
            ])
            .file("/tools/bin/cargo-auditable")
            .export(target.display().to_string())
            .await
            .map(drop)
            .map_err(|error| {
                EngineError::from(error).into_environment("cannot compile cargo-auditable")
            })
    };
    let kept = tools::program(run.cache.as_ref(), &key, &*run.reporter, compile).await?;
    Ok(step.client().host().file(kept.display().to_string()))
}
