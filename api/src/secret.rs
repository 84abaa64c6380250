//! URLs that may hold a password: what is shown of them never does.

use std::fmt;

use url::Url;

/// A URL whose password, token and query are shown as `***`, by `Display`, `Debug` and `Serialize` alike.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// Guards `url`.
    #[must_use]
    pub const fn new(url: Url) -> Self {
        Self(url)
    }

    /// The URL with all that is in it: for the client that connects, and for nobody's eyes.
    #[must_use]
    pub const fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MASK: &str = "***";
        let mut shown = self.0.clone();
        // Neither fails: only URLs without a host cannot have them, and those have nothing to hide there.
        if shown.password().is_some() {
            let _ = shown.set_password(Some(MASK));
        } else if !shown.username().is_empty() {
            // A user alone is often a token.
            let _ = shown.set_username(MASK);
        }
        if shown.query().is_some() {
            shown.set_query(Some(MASK));
        }
        shown.set_fragment(None);
        shown.fmt(formatter)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Text that is never shown, such as the value of an `Authorization` header.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Guards `text`.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself: for the client that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_a_secret_is_masked() {
        for (url, shown) in [
            ("https://example.org/health", "https://example.org/health"),
            ("redis://:s3cret@cache:6379/0", "redis://:***@cache:6379/0"),
            (
                "postgresql://app:s3cret@db/app?sslpassword=s3cret",
                "postgresql://app:***@db/app?***",
            ),
            (
                "https://s3cret@example.org/?token=s3cret#s3cret",
                "https://***@example.org/?***",
            ),
        ] {
            let url = SecretUrl::new(url.parse().unwrap());
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
        assert_eq!(format!("{:?}", SecretText::new("s3cret".into())), "***");
    }
}
