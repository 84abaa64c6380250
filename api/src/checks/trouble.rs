//! Why a probe failed.

use std::error::Error;

/// How many characters of a message are kept: servers send messages of any length.
const LONGEST: usize = 300;

/// Why an answer was not as expected: one line for people, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Trouble(pub String);

impl Trouble {
    /// The messages of `error` and its sources, with `secret` masked.
    pub(super) fn of(error: &dyn Error, secret: Option<&str>) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let said = error.to_string();
            // Some errors repeat the message of their source.
            if !text.ends_with(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            source = error.source();
        }
        Self::without(&text, secret)
    }

    /// `text` as one line, with `secret` masked.
    pub(super) fn without(text: &str, secret: Option<&str>) -> Self {
        let masked = match secret {
            Some(secret) if !secret.is_empty() => text.replace(secret, "***"),
            _ => text.to_owned(),
        };
        let line = masked.replace(char::is_control, " ");
        Self(line.chars().take(LONGEST).collect())
    }
}
