//! The name of `ci.toml` and the notation of its values.

use std::time::Duration;

use common::failure::Failure;

/// The file name of the settings.
pub const FILE: &str = "ci.toml";

/// Parses a positive duration such as `1h 30m`.
///
/// # Errors
/// When the text is not a duration, or it is zero or negative (exit code 2).
pub fn parse_duration(text: &str) -> Result<Duration, Failure> {
    let invalid = || {
        Failure::usage(format!("invalid time limit `{text}`"))
            .hint("Use a positive duration such as 90s, 30m or 1h 30m.")
    };
    let signed: jiff::SignedDuration = text.parse().map_err(|_| invalid())?;
    Duration::try_from(signed)
        .ok()
        .filter(|limit| !limit.is_zero())
        .ok_or_else(invalid)
}
