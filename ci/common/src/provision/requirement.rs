//! Missing requirements of a machine, and the consent to install them.

/// Asks the user a yes/no question; returns true if there is no terminal.
pub type Consent<'a> = &'a (dyn Fn(&str) -> bool + Send + Sync);

/// A missing requirement of this machine.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Requirement {
    /// The missing item, described for the user.
    pub what: String,
    /// The suggested fix.
    pub fix: String,
}
