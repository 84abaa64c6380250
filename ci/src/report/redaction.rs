//! Removes secrets from everything that is printed, written or sent.

use secrecy::{ExposeSecret, SecretString};

use crate::settings::access::Access;
use crate::trust::authority::Credential;

/// The secrets of a run: the token, the token as it is sent to a registry, and those of the containers.
#[derive(Clone, Debug, Default)]
pub(super) struct Redaction {
    secrets: Vec<SecretString>,
}

impl Redaction {
    pub(super) fn new(secrets: Vec<SecretString>) -> Self {
        Self { secrets }
    }

    /// Removes a credential.
    #[must_use]
    pub(super) fn of(credential: Option<Credential>) -> Self {
        Self::new(credential.map_or_else(Vec::new, |it| vec![it.basic(), it.token]))
    }

    /// Removes these secrets, too.
    #[must_use]
    pub(super) fn and(mut self, more: &Access) -> Self {
        self.secrets.extend(more.hidden().cloned());
        self
    }

    /// Replaces the secrets in `text` with `***`.
    #[must_use]
    pub(super) fn apply(&self, text: &str) -> String {
        self.secrets
            .iter()
            .map(ExposeSecret::expose_secret)
            // A very short secret would match parts of many words.
            .filter(|secret| secret.len() >= 6)
            .fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_every_form_of_a_secret() {
        let redaction = Redaction::new(vec![
            "ghs_secret".to_owned().into(),
            "Z2hzX3NlY3JldA==".to_owned().into(),
        ]);
        assert_eq!(
            redaction.apply("a ghs_secret b Z2hzX3NlY3JldA=="),
            "a *** b ***"
        );
    }
}
