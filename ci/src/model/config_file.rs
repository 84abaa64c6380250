//! What is true of `ci.toml` as a whole.

use std::time::Duration;

use common::failure::Failure;

/// The name of the settings' file.
pub const FILE: &str = "ci.toml";

/// A duration of more than nothing, as people write it.
pub fn duration(text: &str) -> Result<Duration, Failure> {
    let wrong = || {
        Failure::usage(format!("`{text}` is not a time limit"))
            .hint("Write it as 90s, 30m or 1h 30m.")
    };
    let signed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(signed)
        .ok()
        .filter(|limit| !limit.is_zero())
        .ok_or_else(wrong)
}
