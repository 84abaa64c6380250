//! URLs and texts with secrets, which are masked wherever they are shown.

use std::fmt;

use url::Url;

const MASK: &str = "***";

/// A URL whose password, token and query `Display` and `Debug` show as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl {
    url: Url,
    shown: Box<str>,
}

impl SecretUrl {
    /// Wraps `url`.
    #[must_use]
    pub fn new(url: Url) -> Self {
        let shown = url.clone();
        Self::shown_as(url, shown)
    }

    /// Wraps `url`, and shows the masked form of `shown` instead: for URLs with secrets in other places.
    #[must_use]
    pub fn shown_as(url: Url, mut shown: Url) -> Self {
        // These calls fail only for URLs without a host, which have no credentials.
        if shown.password().is_some() {
            let _ = shown.set_password(Some(MASK));
        } else if !shown.username().is_empty() {
            // A user name without a password is often a token.
            let _ = shown.set_username(MASK);
        }
        if shown.query().is_some() {
            shown.set_query(Some(MASK));
        }
        shown.set_fragment(None);
        Self {
            url,
            shown: String::from(shown).into(),
        }
    }

    /// Wraps `url`, and shows only the scheme, the host and the port.
    #[must_use]
    pub fn hidden(url: Url) -> Self {
        let mut shown = url.clone();
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        shown.set_query(None);
        shown.set_path(MASK);
        Self::shown_as(url, shown)
    }

    /// The URL with its secrets, for the client that connects.
    #[must_use]
    pub const fn expose(&self) -> &Url {
        &self.url
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A text that is never shown, such as the value of an `Authorization` header.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps `text`.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the client that sends it.
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
    fn masks_everything_that_can_be_a_secret() {
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
        let url: Url = "https://s3cret:s3cret@example.org:1/s3cret?s3cret#s3cret"
            .parse()
            .unwrap();
        assert_eq!(
            SecretUrl::hidden(url.clone()).to_string(),
            "https://example.org:1/***"
        );
        let shown = "https://s3cret@example.org:1/hook?s3cret".parse().unwrap();
        let url = SecretUrl::shown_as(url, shown);
        assert_eq!(url.to_string(), "https://***@example.org:1/hook?***");
        assert_eq!(url.expose().path(), "/s3cret");
        assert_eq!(format!("{:?}", SecretText::new("s3cret".into())), "***");
    }
}
