//! Dagger's CLI: the client that opens a session with an engine.

use std::path::PathBuf;
use std::time::Duration;

use super::embedded;
use common::failure::{Failure, OrFail};
use common::pins;
use common::progress::Progress;
use common::provision;

/// Dagger's CLI, of the version that everything else has: the one that `_EXPERIMENTAL_DAGGER_CLI_BIN` names, one that was
/// built here before, the released one, or one that is built now.
pub async fn path(narrator: &dyn Progress) -> Result<PathBuf, Failure> {
    if let Some(named) =
        std::env::var_os("_EXPERIMENTAL_DAGGER_CLI_BIN").filter(|named| !named.is_empty())
    {
        let named = PathBuf::from(named);
        // The SDK would fall through to a download without a word.
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
    let downloaded = provision::once(&dest, narrator, "the download of Dagger's CLI", download);
    match tokio::time::timeout(Duration::from_secs(300), downloaded).await {
        Ok(Ok(cli)) => Ok(cli),
        Ok(Err(failure)) => {
            tracing::debug!("{failure}");
            narrator.notice("Dagger's CLI cannot be downloaded: building it");
            embedded::cli(narrator).await
        }
        Err(elapsed) => Err(elapsed).or_environment("the download of Dagger's CLI did not end"),
    }
}

/// The released CLI, with the published check sum. The SDK's own way writes it in place, where what is half-written counts
/// as whole ever after.
async fn download(target: PathBuf) -> Result<(), Failure> {
    let released = dagger_sdk::core::downloader::Downloader::new(pins::DAGGER.to_owned());
    let cannot = "cannot download Dagger's CLI";
    let sums = async {
        let answer = reqwest::get(released.checksum_url()).await?;
        answer.error_for_status()?.text().await
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
            "{cannot}: {name} has another check sum"
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
