//! The keys that describe how probes use TLS, in `[[checks]]` and in `[defaults]`.

use std::{path::PathBuf, time::Duration};

use super::values::{Keys, boolean, duration, parsed};
use crate::checks::TlsOptions;

/// The keys.
pub(super) const KEYS: &[&str] = &[
    VALID_FOR,
    SERVER_NAME,
    CA_FILE,
    CLIENT_CERTIFICATE,
    CLIENT_KEY,
    SKIP_VERIFY,
];
pub(super) const VALID_FOR: &str = "valid-for";
pub(super) const SERVER_NAME: &str = "server-name";
pub(super) const CA_FILE: &str = "ca-file";
pub(super) const CLIENT_CERTIFICATE: &str = "client-certificate";
pub(super) const CLIENT_KEY: &str = "client-key";
pub(super) const SKIP_VERIFY: &str = "skip-verify";

/// The maximum of `valid-for`.
const TEN_YEARS: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// The values that a table sets. A name or a file that is `Some(None)` is an empty text, which removes the default.
#[derive(Default)]
pub(super) struct TlsSettings {
    valid_for: Option<Duration>,
    server_name: Option<Option<String>>,
    ca_file: Option<Option<PathBuf>>,
    client_certificate: Option<Option<PathBuf>>,
    client_key: Option<Option<PathBuf>>,
    skip_verify: Option<bool>,
}

impl TlsSettings {
    /// Reads the keys, and reports values that contradict each other.
    pub(super) fn read(keys: &mut Keys<'_, '_>) -> Self {
        let mut own = Self::default();
        let valid_for = duration(Duration::ZERO..=TEN_YEARS);
        keys.set(VALID_FOR, &mut own.valid_for, valid_for);
        let name = or_empty(|text| TlsOptions::is_server_name(text).then(|| text.to_owned()));
        let name = parsed("a DNS name, such as example.org", name);
        keys.set(SERVER_NAME, &mut own.server_name, name);
        let file = or_empty(|text| Some(PathBuf::from(text)));
        let file = parsed("the path of a PEM file", file);
        keys.set(CA_FILE, &mut own.ca_file, &file);
        let has_certificate = keys.contains(CLIENT_CERTIFICATE);
        keys.set(CLIENT_CERTIFICATE, &mut own.client_certificate, &file);
        if (!has_certificate || own.client_certificate == Some(None))
            && let Some(span) = keys.place(CLIENT_KEY)
        {
            let what = "client-key has no effect without client-certificate: expected both or none";
            keys.wrong(span, what);
        }
        keys.set(CLIENT_KEY, &mut own.client_key, &file);
        if let Some(skip) = keys.read(SKIP_VERIFY, boolean) {
            if skip.value && matches!(own.ca_file, Some(Some(_))) {
                let what = "skip-verify makes ca-file useless: expected one of them";
                keys.wrong(skip.span, what);
            }
            own.skip_verify = Some(skip.value);
        }
        own
    }

    /// The options of a check that sets these values, with the other values from `defaults`.
    pub(super) fn options(self, defaults: &Self) -> TlsOptions {
        // `ca-file` and `skip-verify` exclude each other, so a check that sets one does not get the other one.
        let skips = self.skip_verify == Some(true);
        let verifies = matches!(self.ca_file, Some(Some(_)));
        let ca_file = self
            .ca_file
            .or_else(|| defaults.ca_file.clone().filter(|_| !skips));
        let skip_verify = self
            .skip_verify
            .or_else(|| defaults.skip_verify.filter(|_| !verifies));
        // A certificate belongs to its key.
        let (client_certificate, client_key) = match self.client_certificate {
            Some(own) => (Some(own), self.client_key),
            None => (
                defaults.client_certificate.clone(),
                defaults.client_key.clone(),
            ),
        };
        TlsOptions {
            server_name: (self.server_name)
                .or_else(|| defaults.server_name.clone())
                .flatten(),
            ca_file: ca_file.flatten(),
            client_certificate: client_certificate.flatten(),
            client_key: client_key.flatten(),
            skip_verify: skip_verify.unwrap_or_default(),
            ..Self::warning_only(self.valid_for.or(defaults.valid_for))
        }
    }

    /// The options of a check that connects without options, but warns as these values say.
    pub(super) fn without_connection(&self) -> TlsOptions {
        Self::warning_only(self.valid_for)
    }

    fn warning_only(valid_for: Option<Duration>) -> TlsOptions {
        let defaults = TlsOptions::default();
        TlsOptions {
            valid_for: valid_for.unwrap_or(defaults.valid_for),
            ..defaults
        }
    }
}

/// Parses an empty text as `None`, and others with `parse`.
fn or_empty<T>(parse: impl Fn(&str) -> Option<T>) -> impl Fn(&str) -> Option<Option<T>> {
    move |text| match text {
        "" => Some(None),
        text => parse(text).map(Some),
    }
}
