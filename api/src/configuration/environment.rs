//! Settings from environment variables.

use std::{net::IpAddr, str::FromStr};

use url::{Host, Url};

use super::{problem::Problem, settings::Settings, values::port, variables::Variables};
use crate::secret::SecretUrl;

/// The default port of Redis.
const REDIS: u16 = 6379;

/// Applies the environment variables to `settings`, and returns all problems. Empty variables count as not set, except
/// `REDIS_HOST`: if it is empty, there is no Redis.
pub(super) fn read(settings: &mut Settings, variables: Variables<'_>) -> Vec<Problem> {
    let mut environment = Environment {
        variables,
        problems: Vec::new(),
    };
    if let Some(host) = environment.plain("HOST", "an IP address, such as 127.0.0.1 or ::", ip) {
        settings.address.set_ip(host);
    }
    if let Some(port) = environment.plain("PORT", "a number from 0 to 65535", parse) {
        settings.address.set_port(port);
    }
    if let Some(name) = environment.plain("APP_ENV", TEXT, parse) {
        settings.environment = name;
    }
    let levels = "a level, or a list such as `info,actix_server=warn`";
    if let Some(log) = environment.plain("RUST_LOG", levels, parse) {
        settings.log = log;
    }
    settings.build.commit = environment.plain("APP_COMMIT", TEXT, parse);
    settings.build.time = environment.plain("APP_BUILD_TIME", TEXT, parse);
    if variables("REDIS_HOST").is_some() {
        settings.redis = environment.redis();
    }
    environment.problems
}

const TEXT: &str = "UTF-8 text";

struct Environment<'a> {
    variables: Variables<'a>,
    problems: Vec<Problem>,
}

impl Environment<'_> {
    /// Parses the variable `name`; a problem shows the value.
    fn plain<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.value(name, expected, parse, |value| format!("{value:?}"))
    }

    /// Parses the variable `name`; a problem masks the value.
    fn secret<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.value(name, expected, parse, |_| "***".into())
    }

    fn value<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        show: impl FnOnce(&str) -> String,
    ) -> Option<T> {
        let value = (self.variables)(name).filter(|value| !value.is_empty())?;
        let read = value.to_str().and_then(parse);
        if read.is_none() {
            let value = show(&value.to_string_lossy());
            self.problems.push(Problem {
                place: None,
                what: format!("{name}={value}: expected {expected}"),
            });
        }
        read
    }

    /// The URL from `REDIS_HOST`, `REDIS_PORT` and `REDIS_PASSWORD`.
    fn redis(&mut self) -> Option<SecretUrl> {
        // Masked, because a value may be a whole URL with a password by mistake.
        let host = self.secret("REDIS_HOST", "a host name or an address", |text| {
            let address = text.parse().map(Host::Ipv6);
            address.or_else(|_| Host::parse(text)).ok()
        });
        let port = self.secret(
            "REDIS_PORT",
            "a port, or tcp://ADDRESS:PORT as set by Kubernetes",
            |text| {
                port(text).or_else(|| {
                    let url = Url::parse(text).ok()?;
                    (url.scheme() == "tcp").then(|| url.port()).flatten()
                })
            },
        );
        let password = self.secret("REDIS_PASSWORD", TEXT, parse::<String>);
        let port = port.unwrap_or(REDIS);
        let mut url = Url::parse(&format!("redis://{}:{port}", host?)).ok()?;
        // Cannot fail, because the URL has a host.
        url.set_password(password.as_deref()).ok()?;
        Some(SecretUrl::new(url))
    }
}

/// Parses an IP address; an IPv6 address may have brackets.
fn ip(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    match inner {
        Some(inner) => inner.parse().map(IpAddr::V6).ok(),
        None => text.parse().ok(),
    }
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}
