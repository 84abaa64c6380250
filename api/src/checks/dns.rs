//! DNS: that a name has records, or just these.

use std::fmt;

use super::Trouble;
use hickory_proto::rr::RecordType;
use std::net::SocketAddr;

/// What is asked, and what is expected.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name.
    pub name: String,
    /// The type of the records.
    pub record: RecordType,
    /// Who is asked; the system's first server where nobody is named.
    pub server: Option<SocketAddr>,
    /// The records that have to be there, among others; where there are none, any will do.
    pub expected: Vec<String>,
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.name, self.record)
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
