//! What a machine lacks, and who is asked before it is installed.

/// Asks the person at the terminal; answers yes where there is none to ask.
pub type Consent<'a> = &'a (dyn Fn(&str) -> bool + Send + Sync);

/// Something this machine lacks, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Requirement {
    /// What is missing, as a person calls it.
    pub what: String,
    /// What gets it.
    pub remedy: String,
}
