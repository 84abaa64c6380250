//! DNS: a name has records, optionally specific ones.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use hickory_proto::{op::Query, rr::RecordType};

use crate::checks::{
    domain_name,
    name_servers::{Answer, ask},
    probe_error::ProbeError,
    resolver::Resolver,
};

/// A target, with the expected response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The domain name that is looked up. It may contain escapes, as in zone files: `\.` and `\032`.
    pub name: String,
    /// The type of the records.
    pub record: RecordType,
    /// The name server; `None` selects those of the system.
    pub server: Option<SocketAddr>,
    /// Records that must be in the response, which may contain others; if empty, any record is enough.
    pub expected: Vec<String>,
}

impl Target {
    /// Checks the target without connecting to anything.
    ///
    /// # Errors
    /// When the target can never be probed.
    pub fn validate(&self) -> Result<(), String> {
        self.query().map(drop)
    }

    fn query(&self) -> Result<Query, String> {
        // Fully qualified, so that the search list of the system does not apply.
        let name = domain_name::parse(&self.name)
            .map_err(|error| format!("{:?} is not a domain name: {error}", self.name))?;
        Ok(Query::query(name, self.record))
    }

    /// Normalizes the text of a record for comparison: names in lower case without a trailing dot, addresses in their shortest
    /// form.
    fn normalize(&self, record: &str) -> String {
        if self.record == RecordType::TXT {
            return record.trim_matches('"').to_owned();
        }
        match record.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => record.trim_end_matches('.').to_ascii_lowercase(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.name, self.record)
    }
}

/// Probes one target.
pub struct Probe {
    target: Target,
    query: Result<Query, ProbeError>,
    resolver: Resolver,
}

impl Probe {
    /// Creates a probe of `target`; `resolver` knows the name servers of the system.
    pub(super) fn new(target: Target, resolver: &Resolver) -> Self {
        Self {
            query: target.query().map_err(ProbeError),
            resolver: resolver.clone(),
            target,
        }
    }

    /// Probes the target once.
    ///
    /// # Errors
    /// When the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        let query = self.query.as_ref().map_err(Clone::clone)?;
        let servers = match self.target.server {
            Some(server) => vec![server],
            None => self.resolver.name_servers().map_err(ProbeError)?.servers,
        };
        let answer = ask(&servers, query)
            .await
            .map_err(|error| ProbeError::of(&error, None))?;
        if answer.is_unknown_name() {
            return Err(ProbeError("the name does not exist (NXDOMAIN)".into()));
        }
        self.judge(&answer)
    }

    fn judge(&self, answer: &Answer) -> Result<(), ProbeError> {
        let found: Vec<String> = answer
            .records()
            .iter()
            .filter(|record| record.record_type() == self.target.record)
            .map(|record| self.target.normalize(&record.data.to_string()))
            .collect();
        if found.is_empty() {
            return Err(ProbeError(format!(
                "the name has no record of type {}",
                self.target.record
            )));
        }
        let mut expected = self.target.expected.iter();
        match expected.find(|expected| !found.contains(&self.target.normalize(expected))) {
            Some(missing) => Err(ProbeError::without(
                &format!("{missing} is not among the records: {}", found.join(", ")),
                None,
            )),
            None => Ok(()),
        }
    }
}
