//! The value of `--engine`.

use std::str::FromStr;

use common::failure::Failure;

/// The value of `--engine`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first of these that is available: an open session, a URL in the environment, a container runtime, the embedded engine.
    #[default]
    Auto,
    /// A container runtime that Dagger's CLI drives.
    Docker,
    Embedded,
    /// The URL of a running engine.
    Url(String),
}

/// The URL schemes that Dagger's CLI supports.
const SCHEMES: [&str; 8] = [
    "unix",
    "tcp",
    "kube-pod",
    "ssh",
    "image",
    "container",
    "docker-image",
    "docker-container",
];
impl FromStr for Choice {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        match text {
            "auto" => return Ok(Self::Auto),
            "docker" => return Ok(Self::Docker),
            "embedded" => return Ok(Self::Embedded),
            _ => {}
        }
        match text.split_once("://") {
            Some((scheme, rest)) if SCHEMES.contains(&scheme.split('+').next().unwrap_or(scheme)) && !rest.is_empty() => {
                Ok(Self::Url(text.to_owned()))
            }
            _ => Err(Failure::usage(format!("`{text}` is not an engine"))
                .hint("--engine takes auto, docker, embedded, or a URL such as unix:///run/dagger/engine.sock or tcp://HOST:1234.")),
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Docker => "docker",
            Self::Embedded => "embedded",
            Self::Url(url) => url,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_keywords_and_urls_that_the_cli_supports() {
        assert_eq!("auto".parse::<Choice>().unwrap(), Choice::Auto);
        for url in [
            "unix:///run/engine.sock",
            "tcp://10.0.0.1:1234",
            "kube-pod://dagger-0?namespace=ci",
            "image+podman://x",
        ] {
            assert_eq!(url.parse::<Choice>().unwrap().to_string(), url);
        }
        for bad in ["", "nonsense", "http://x", "tcp://", "Docker"] {
            assert_eq!(bad.parse::<Choice>().unwrap_err().code as u8, 2, "{bad}");
        }
    }
}
