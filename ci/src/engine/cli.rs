//! Dagger's CLI: the client that opens a session with an engine.

use std::path::PathBuf;
use std::time::Duration;

use super::embedded;
use common::failure::{Failure, OrFail};
use common::pins;
use common::progress::Progress;
use common::provision;

/// Returns the path of Dagger's CLI in the pinned version: the file in `_EXPERIMENTAL_DAGGER_CLI_BIN`, an earlier build on this
/// machine, the released binary, or a new build, in this order.
pub(super) async fn path(progress: &dyn Progress) -> Result<PathBuf, Failure> {
    if let Some(named) =
        std::env::var_os("_EXPERIMENTAL_DAGGER_CLI_BIN").filter(|named| !named.is_empty())
    {
        let named = PathBuf::from(named);
        // The SDK would silently download the CLI instead.
        if !named.is_file() {
            return Err(Failure::usage(format!(
                "_EXPERIMENTAL_DAGGER_CLI_BIN names {}, which is not a file",
                named.display()
            )));
        }
        return Ok(named);
    }
    if let Some(built) = embedded::built_cli() {
        return Ok(built);
    }
    let dest = provision::cache_root()?
        .join(format!("dagger-download-{}", pins::DAGGER))
        .join("dagger");
    let downloaded =
        provision::build_once(&dest, progress, "the download of Dagger's CLI", download);
    match tokio::time::timeout(Duration::from_secs(300), downloaded).await {
        Ok(Ok(cli)) => Ok(cli),
        Ok(Err(failure)) => {
            tracing::debug!("{failure}");
            progress.notice("cannot download Dagger's CLI: building it from source");
            embedded::cli(progress).await
        }
        Err(elapsed) => Err(elapsed).or_environment("the download of Dagger's CLI timed out"),
    }
}

/// Downloads the released CLI and verifies the published checksum. The SDK's own downloader writes the file in place, so that an
/// interrupted download would be used as if it were complete.
async fn download(target: PathBuf) -> Result<(), Failure> {
    let released = dagger_sdk::core::downloader::Downloader::new(pins::DAGGER.to_owned());
    let cannot = "cannot download Dagger's CLI";
    let sums = async {
        let response = reqwest::get(released.checksum_url()).await?;
        response.error_for_status()?.text().await
    };
    let sums = sums.await.or_environment(cannot)?;
    let mut program = Vec::new();
    let sum = released
        .extract_cli_archive(&mut program)
        .await
        .map_err(|error| Failure::environment(format!("{cannot}: {error:#}")))?;
    let archive = released.archive_url();
    let name = archive.rsplit('/').next().unwrap_or_default();
    if !sums
        .lines()
        .any(|line| line.split_whitespace().eq([sum.as_str(), name]))
    {
        return Err(Failure::environment(format!(
            "{cannot}: checksum mismatch for {name}"
        )));
    }
    std::fs::write(&target, program).or_environment(cannot)?;
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&target, mode).or_environment(cannot)?;
    }
    Ok(())
}
