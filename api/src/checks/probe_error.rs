//! Why a probe failed.

use std::error::Error;

use super::certificates::explain;

/// The maximum length of a message in characters; servers send messages of any length.
const MAX_LENGTH: usize = 300;

/// Why a probe failed: one line of text without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProbeError(pub String);

impl ProbeError {
    /// The messages of `error` and its sources, with `secret` masked.
    pub(super) fn of(error: &(dyn Error + 'static), secret: Option<&str>) -> Self {
        let mut text = error.to_string();
        let mut explained = explain(error);
        let mut source = error.source();
        while let Some(error) = source {
            explained = explained.or_else(|| explain(error));
            let message = error.to_string();
            // Some errors repeat the message of their source.
            if !text.ends_with(&message) {
                text.push_str(": ");
                text.push_str(&message);
            }
            source = error.source();
        }
        Self::without(&explained.unwrap_or(text), secret)
    }

    /// `text` as one line, with `secret` masked.
    pub(super) fn without(text: &str, secret: Option<&str>) -> Self {
        let masked = match secret {
            Some(secret) if !secret.is_empty() => text.replace(secret, "***"),
            _ => text.to_owned(),
        };
        let line = masked.replace(char::is_control, " ");
        Self(line.chars().take(MAX_LENGTH).collect())
    }
}
