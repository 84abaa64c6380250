//! TCP: that a connection is accepted.

use std::fmt;

use super::Trouble;

/// What is asked, and what is expected.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name or address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
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
