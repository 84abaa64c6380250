//! The format of timestamps in JSON.

use std::time::SystemTime;

use serde::{Serialize, Serializer};

/// Serializes a point in time in the format of RFC 3339: UTC, with milliseconds.
///
/// # Errors
/// Returns the errors of the serializer.
pub fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

/// Serializes a point in time that may be missing like [`rfc3339`], or as `null`.
///
/// # Errors
/// Returns the errors of the serializer.
pub fn optional_rfc3339<S: Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let text = time.map(|time| humantime::format_rfc3339_millis(time).to_string());
    text.serialize(serializer)
}
