//! HTTP and HTTPS: the status, and what the body holds.

use std::fmt;

use super::Trouble;
use crate::secret::{SecretText, SecretUrl};

/// What is asked, and what is expected.
#[derive(Clone, Debug)]
pub struct Target {
    /// The URL, `http` or `https`.
    pub url: SecretUrl,
    /// Of the request: `GET`, `HEAD` or `POST`.
    pub method: String,
    /// Sent with the request.
    pub headers: Vec<(String, SecretText)>,
    /// The status codes that are expected; 200 to 299 where there are none.
    pub status: Vec<u16>,
    /// What the body has to contain.
    pub body: Option<String>,
    /// Whether redirections are followed.
    pub follow_redirects: bool,
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(formatter)
    }
}

/// Asks one target.
pub struct Probe {
    target: Target,
}

impl Probe {
    /// What asks `target`.
    #[must_use]
    pub const fn new(target: Target) -> Self {
        Self { target }
    }

    /// Asks once.
    ///
    /// # Errors
    /// Where the target does not answer, or not as expected.
    pub async fn ask(&mut self) -> Result<(), Trouble> {
        Err(Trouble(format!("{} cannot be asked yet", self.target)))
    }
}
