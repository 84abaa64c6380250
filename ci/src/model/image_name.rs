//! Image names: validated types for registry, repository and tag.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use common::failure::Failure;

/// The host and port of a registry, as in `ghcr.io` or `127.0.0.1:5000`, without scheme or path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    host: String,
    port: Option<u16>,
}

impl Registry {
    /// The GitHub Container Registry.
    pub const GHCR: &str = "ghcr.io";

    /// Returns whether the host is on this machine's loopback interface.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.host.trim_matches(['[', ']']);
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    /// Returns the host without the port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port that a client connects to. The default is 443, or 80 on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
            .unwrap_or(if self.is_loopback() { 80 } else { 443 })
    }

    /// Returns `https`, or `http` on loopback.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.is_loopback() { "http" } else { "https" }
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl FromStr for Registry {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let invalid = |why: &str| {
            Err(Failure::usage(format!("invalid registry `{text}`: {why}"))
                .hint("Use a host with an optional port, as in ghcr.io or 127.0.0.1:5000."))
        };
        if text.is_empty() {
            return invalid("it is empty");
        }
        if text.contains("://") {
            return invalid("it has a scheme; ci uses TLS except on loopback");
        }
        if text.contains('/') {
            return invalid("it has a path; the path belongs in --repository");
        }
        if text.contains('@') {
            return invalid("it has a user name; set GITHUB_ACTOR and GITHUB_TOKEN instead");
        }
        let (host, port) = if let Some(end) = text.strip_prefix('[').and_then(|rest| rest.find(']'))
        {
            let (host, rest) = text.split_at(end + 2);
            if host[1..=end].parse::<std::net::Ipv6Addr>().is_err() {
                return invalid("the address in brackets is not an IPv6 address");
            }
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return invalid("only a port can follow the address in brackets"),
            }
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !host.starts_with('[') && !host.split('.').all(label) {
            return invalid(
                "the host name must consist of lower-case letters, digits, dashes and dots",
            );
        }
        let port = match port.map(u16::from_str) {
            None => None,
            Some(Ok(port)) if port > 0 => Some(port),
            Some(_) => return invalid("the port must be a number from 1 to 65535"),
        };
        let registry = Self {
            host: host.to_owned(),
            port,
        };
        // What crane, which pushes, would not understand after all gates have passed.
        if !registry.is_loopback() && host.starts_with('[') {
            return invalid("image names cannot contain an IPv6 address; use a host name");
        }
        if !registry.is_loopback() && port.is_none() && !host.contains('.') {
            return invalid(
                "a host name without a dot needs a port, because image names would take it for a repository",
            );
        }
        Ok(registry)
    }
}

/// A registry on this machine's loopback interface. Images built with stand-ins can only be pushed to such a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopbackRegistry(Registry);

impl LoopbackRegistry {
    /// Returns the registry if it is on loopback.
    #[must_use]
    pub fn new(registry: Registry) -> Option<Self> {
        registry.is_loopback().then_some(Self(registry))
    }
}

impl From<LoopbackRegistry> for Registry {
    fn from(loopback: LoopbackRegistry) -> Self {
        loopback.0
    }
}

/// The name of a repository as the OCI distribution specification defines it, without tag or digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository(String);

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Repository {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let invalid = |why: &str, hint: &str| {
            Err(Failure::usage(format!("invalid repository `{text}`: {why}")).hint(hint))
        };
        let example = "Use a name such as upwind1647/status-api.";
        if text.is_empty() {
            return invalid("it is empty", example);
        }
        if text.contains([':', '@']) {
            return invalid(
                "it has a tag or digest",
                "Remove it. ci always publishes with the short SHA of the commit as the tag.",
            );
        }
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return invalid(
                "it has upper-case letters, which registries do not accept",
                &format!("Use {}.", text.to_lowercase()),
            );
        }
        // A path component of the distribution specification: alphanumerics separated by `.`, `_`, `__` or dashes.
        let component = |component: &str| {
            let bytes = component.as_bytes();
            let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
            edge(bytes.first())
                && edge(bytes.last())
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
                && component
                    .split(|c: char| c.is_ascii_alphanumeric())
                    .all(|joint| {
                        matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-')
                    })
        };
        if text.len() > 255 || !text.split('/').all(component) {
            return invalid(
                "each part must consist of lower-case letters and digits, separated by . _ __ or -",
                example,
            );
        }
        Ok(Self(text.to_owned()))
    }
}

/// The tag of a published image: the short SHA of a clean commit. Only git's output for HEAD can create one, so that it cannot be
/// `latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    /// The default length of a tag. It is fixed, because git's own short SHA depends on the clone and its settings.
    pub const LENGTH: usize = 7;

    /// Creates the tag of the commit with the full `sha`: its first `length` digits, at least [`LENGTH`](Self::LENGTH).
    pub(crate) fn of_commit(sha: &str, length: usize) -> Result<Self, Failure> {
        let hex = matches!(sha.len(), 40 | 64) && sha.bytes().all(|b| b.is_ascii_hexdigit());
        match sha.get(..length.max(Self::LENGTH)) {
            Some(short) if hex => Ok(Self(short.to_owned())),
            _ => Err(Failure::environment(format!(
                "git printed `{sha}`, which is not a full commit SHA"
            ))),
        }
    }

    /// Returns the tag for the same commit with uncommitted changes.
    #[must_use]
    pub fn dirty(&self) -> DirtyTag {
        DirtyTag(format!("{}-dirty", self.0))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The tag of an image that contains uncommitted changes. Such an image is never published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyTag(String);

impl fmt::Display for DirtyTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The full name under which an image is published: `ghcr.io/upwind1647/status-api:4f2a91c`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The host of the registry.
    pub registry: Registry,
    /// The path below the host.
    pub repository: Repository,
    /// The short SHA of the commit.
    pub tag: Tag,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

macro_rules! serialize_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
serialize_as_text!(Registry, Repository, Tag, DirtyTag, Reference);

/// The name of a published image with a tag or a digest: `ghcr.io/upwind1647/status-api:4f2a91c`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// The host of the registry.
    pub registry: Registry,
    /// The path below the host.
    pub repository: Repository,
    /// The digest if the name has one, otherwise the tag.
    pub version: String,
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joint = if self.version.contains(':') { '@' } else { ':' };
        write!(
            f,
            "{}/{}{joint}{}",
            self.registry, self.repository, self.version
        )
    }
}

impl FromStr for ImageName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let invalid = |why: &str| {
            Failure::usage(format!("invalid image name `{text}`: {why}")).hint(
                "Use registry, repository, and tag or digest, as in ghcr.io/upwind1647/status-api:4f2a91c.",
            )
        };
        let parsed: oci_spec::distribution::Reference = text
            .parse()
            .map_err(|error| invalid("it cannot be parsed").because(error))?;
        // The parser defaults the tag to `latest`.
        let version = match (parsed.digest(), parsed.tag()) {
            (Some(digest), _) if digest.starts_with("sha256:") => digest,
            (Some(_), _) => return Err(invalid("the digest must be a SHA-256 digest")),
            (None, Some(tag)) if tag != "latest" => tag,
            _ => {
                return Err(invalid(
                    "it has no tag or the tag `latest`, which ci never publishes",
                ));
            }
        };
        Ok(Self {
            registry: parsed.registry().parse()?,
            repository: parsed.repository().parse()?,
            version: version.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_is_a_host_with_an_optional_port() {
        for good in [
            "ghcr.io",
            "localhost",
            "127.0.0.1:5000",
            "[::1]:5000",
            "registry.example.com:443",
        ] {
            assert_eq!(good.parse::<Registry>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "https://ghcr.io",
            "ghcr.io/upwind1647",
            "Ghcr.io",
            "a..b",
            "ghcr.io:",
            "ghcr.io:0",
            "ghcr.io:99999",
            "user@ghcr.io",
            "-a.io",
            "[::1",
            "[::g]",
            "[::1]x",
            "[2001:db8::1]:5000",
            "registry",
        ] {
            assert_eq!(bad.parse::<Registry>().unwrap_err().code as u8, 2, "{bad}");
        }
    }

    #[test]
    fn host_name_that_resembles_a_loopback_address_is_not_loopback() {
        for yes in [
            "localhost:5000",
            "127.0.0.1",
            "127.1.2.3:5000",
            "[::1]:5000",
        ] {
            assert!(yes.parse::<Registry>().unwrap().is_loopback(), "{yes}");
        }
        for no in [
            "ghcr.io",
            "127.0.0.1.example.com",
            "localhost.example.com",
            "10.0.0.1:5000",
        ] {
            assert!(!no.parse::<Registry>().unwrap().is_loopback(), "{no}");
        }
    }

    #[test]
    fn rejects_repository_with_tag_or_upper_case() {
        for good in ["status-api", "upwind1647/status-api", "a__b/c.d/e--f"] {
            assert_eq!(good.parse::<Repository>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "upwind1647/status-api:latest",
            "Upwind1647/status-api",
            "a//b",
            "/a",
            "a/",
            "a___b",
            "a..b",
            "-a",
            "a b",
            "a@sha256:00",
        ] {
            assert_eq!(
                bad.parse::<Repository>().unwrap_err().code as u8,
                2,
                "{bad}"
            );
        }
    }

    #[test]
    fn tag_is_a_prefix_of_the_sha() {
        let sha = "4f2a91c0d3b5e6f7a8b9c0d1e2f3a4b5c6d7e8f9";
        let tag = Tag::of_commit(sha, Tag::LENGTH).unwrap();
        assert_eq!(tag.to_string(), "4f2a91c");
        assert_eq!(tag.dirty().to_string(), "4f2a91c-dirty");
        assert_eq!(Tag::of_commit(sha, 12).unwrap().to_string(), "4f2a91c0d3b5");
        assert_eq!(Tag::of_commit(sha, 1).unwrap().to_string(), "4f2a91c");
        for bad in ["latest", "", "4f2a91c", "4f2a91c-dirty"] {
            assert!(Tag::of_commit(bad, 7).is_err(), "{bad}");
        }
    }
}
