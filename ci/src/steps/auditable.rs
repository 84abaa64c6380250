//! cargo-auditable, which embeds the list of dependencies into a binary: compiled once for each toolchain image.

use std::time::Instant;

use dagger_sdk::File;

use super::workspace;
use crate::engine::EngineError;
use crate::evidence::Kind;
use crate::failure::Failure;
use crate::narrator::Narrator as _;
use crate::oci::Platform;
use crate::pins;
use crate::provision;
use crate::run::StepContext;

/// The program, for a container of the toolchain image on `platform`.
///
/// It is compiled in a container that has seen no repository's code and mounts no volume, and kept in the cache directory of this
/// machine. So all repositories, trust domains and engines share one.
///
/// # Errors
/// When the toolchain image or the crates cannot be pulled (exit 3).
pub async fn program<K: Kind>(
    step: &StepContext<'_, K>,
    platform: Option<&Platform>,
) -> Result<File, Failure> {
    let run = step.run;
    let key = run.toolchain_key(platform).await?;
    let name = format!("cargo-auditable-{}-{key}", pins::CARGO_AUDITABLE);
    let kept = provision::cache_root()?.join(name);
    let reporter = run.reporter();
    let what = format!(
        "compiling cargo-auditable {} (about a minute, the first time only)",
        pins::CARGO_AUDITABLE
    );
    provision::once(&kept, reporter, &what, async |target| {
        if let Some(cache) = &run.cache
            && cache.restore_tool(&key, &target)
        {
            return Ok(());
        }
        reporter.begin(&what);
        let begun = Instant::now();
        workspace::bare_toolchain(step, platform)
            .await?
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
            .map_err(|error| {
                EngineError::from(error).into_environment("cannot compile cargo-auditable")
            })?;
        reporter.done(&what, begun.elapsed());
        Ok(())
    })
    .await?;
    if let Some(cache) = &run.cache {
        cache.keep_tool(key, &kept);
    }
    Ok(step.client().host().file(kept.display().to_string()))
}
