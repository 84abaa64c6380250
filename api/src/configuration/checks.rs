//! The `[[checks]]` tables, and the `[defaults]` table with the values for keys that a check does not set.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use actix_web::http::header::{HeaderName, HeaderValue};
use hickory_proto::rr::RecordType;
use toml_span::{Value, span::Spanned, value::Key};
use url::Url;

use super::{
    tls::{self, TlsSettings},
    values::{
        Keys, Read, boolean, custom, duration, host_and_port, integer, list, map, not_valid,
        parsed, prepared_url, size, string, url, words,
    },
    variables::Variables,
};
use crate::{
    checks::{
        self, Check, Kind, Target, TlsOptions, domain_name,
        http::{BODY_LIMIT, Version},
    },
    secret::{SecretText, SecretUrl},
};

/// The maximum number of checks, which bounds the memory of the service.
const MAX_CHECKS: usize = 1000;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The maximum of `body-limit`.
const MAX_BODY: u64 = 1024 * 1024 * 1024;

/// The default port of name servers.
const DNS: u16 = 53;

/// The keys that only a check of `kind` can have, besides the key that is named like the kind.
const fn options(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Http => &[
            "method",
            "headers",
            "status",
            "body",
            "body-limit",
            "http-version",
            "follow-redirects",
            tls::VALID_FOR,
            tls::SERVER_NAME,
            tls::CA_FILE,
            tls::CLIENT_CERTIFICATE,
            tls::CLIENT_KEY,
            tls::SKIP_VERIFY,
        ],
        Kind::Dns => &["record", "server", "expect"],
        Kind::Tls | Kind::Redis | Kind::Postgres => tls::KEYS,
        Kind::Tcp => &[],
    }
}

/// Reads the keys of a check of `kind`.
fn read_target(kind: Kind, keys: &mut Keys<'_, '_>) -> Option<Target> {
    match kind {
        Kind::Http => http(keys),
        Kind::Tcp => tcp(keys),
        Kind::Dns => dns(keys),
        Kind::Redis => redis(keys),
        Kind::Postgres => postgres(keys),
        Kind::Tls => tls_server(keys),
    }
}

/// The values of `[defaults]`.
#[derive(Default)]
pub(super) struct Defaults {
    probes: ProbeSettings,
    tls: TlsSettings,
}

impl Defaults {
    /// Reads the keys, and reports values that contradict each other.
    pub(super) fn read(keys: &mut Keys<'_, '_>) -> Self {
        Self {
            probes: ProbeSettings::read(keys, &ProbeSettings::default()),
            tls: TlsSettings::read(keys),
        }
    }

    /// Creates the check `name` of the Redis of `/hits`. It connects like the counter, which has no TLS options.
    pub(super) fn redis(&self, name: String, url: SecretUrl) -> Check {
        let target = Target::Redis(checks::redis::Target { url });
        let target = (target, self.tls.without_connection());
        Check {
            critical: false,
            ..ProbeSettings::default().check(&self.probes, name, target)
        }
    }
}

/// When a target is probed, and how results change its state: the values that a table sets.
#[derive(Default)]
struct ProbeSettings {
    interval: Option<Spanned<Duration>>,
    jitter: Option<Spanned<Duration>>,
    timeout: Option<Spanned<Duration>>,
    failures: Option<Spanned<NonZeroU32>>,
    successes: Option<Spanned<NonZeroU32>>,
    critical: Option<Spanned<bool>>,
    degraded_above: Option<Spanned<Duration>>,
    hide_target: Option<Spanned<bool>>,
}

impl ProbeSettings {
    const INTERVAL: Duration = Duration::from_secs(60);
    const TIMEOUT: Duration = Duration::from_secs(5);
    /// The default jitter is the interval divided by this number.
    const JITTER_DIVISOR: u32 = 10;
    const FAILURES: NonZeroU32 = NonZeroU32::MIN.saturating_add(2);
    /// More than one, because a target that keeps crashing responds in between.
    const SUCCESSES: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);

    /// Reads the keys, and reports values that contradict each other or `defaults`.
    fn read(keys: &mut Keys<'_, '_>, defaults: &Self) -> Self {
        let interval = duration(Duration::from_millis(100)..=DAY);
        let errors = keys.errors();
        let own = Self {
            interval: keys.read("interval", interval),
            jitter: keys.read("jitter", duration(Duration::ZERO..=DAY)),
            timeout: keys.read("timeout", duration(Duration::from_millis(1)..=DAY)),
            degraded_above: keys.read("degraded-above", duration(Duration::from_millis(1)..=DAY)),
            ..Self::default()
        };
        // Only if all values are valid: an invalid one would cause misleading messages.
        if keys.errors() == errors {
            own.report_contradictions(keys, defaults);
        }
        Self {
            failures: keys.read("failures", count),
            successes: keys.read("successes", count),
            critical: keys.read("critical", boolean),
            hide_target: keys.read("hide-target", boolean),
            ..own
        }
    }

    fn report_contradictions(&self, keys: &mut Keys<'_, '_>, defaults: &Self) {
        let interval = self.interval(defaults);
        // Contradictions within the defaults are reported there, and not for every check.
        let place = |duration: &Option<Spanned<Duration>>| {
            let place = duration.as_ref().or(self.interval.as_ref());
            place.map(|duration| duration.span)
        };
        let shown = humantime::format_duration;
        let timeout = self.timeout(defaults);
        if timeout > interval
            && let Some(span) = place(&self.timeout)
        {
            keys.wrong(
                span,
                format_args!(
                    "timeout {} is longer than interval {}: expected at most the interval",
                    shown(timeout),
                    shown(interval)
                ),
            );
        }
        if let Some(limit) = self.degraded_above(defaults)
            && limit >= timeout
            && let Some(span) = (self.degraded_above.as_ref())
                .or(self.timeout.as_ref())
                .or(self.interval.as_ref())
                .map(|duration| duration.span)
        {
            keys.wrong(
                span,
                format_args!(
                    "degraded-above {} is not shorter than timeout {}: expected less than the timeout",
                    shown(limit),
                    shown(timeout)
                ),
            );
        }
        let jitter = self.jitter(defaults);
        if jitter >= interval
            && let Some(span) = place(&self.jitter)
        {
            keys.wrong(
                span,
                format_args!(
                    "jitter {} is not shorter than interval {}: expected less than the interval",
                    shown(jitter),
                    shown(interval)
                ),
            );
        }
    }

    /// The limit of successful probes that are not slow, if one is set.
    fn degraded_above(&self, defaults: &Self) -> Option<Duration> {
        configured(&self.degraded_above, &defaults.degraded_above)
    }

    fn interval(&self, defaults: &Self) -> Duration {
        configured(&self.interval, &defaults.interval).unwrap_or(Self::INTERVAL)
    }

    fn timeout(&self, defaults: &Self) -> Duration {
        configured(&self.timeout, &defaults.timeout)
            .unwrap_or_else(|| Self::TIMEOUT.min(self.interval(defaults)))
    }

    fn jitter(&self, defaults: &Self) -> Duration {
        configured(&self.jitter, &defaults.jitter)
            .unwrap_or_else(|| self.interval(defaults) / Self::JITTER_DIVISOR)
    }

    /// Creates the check `name` of `target`; values that are not set come from `defaults`.
    fn check(&self, defaults: &Self, name: String, (target, tls): (Target, TlsOptions)) -> Check {
        Check {
            name,
            display_name: None,
            target,
            tls,
            critical: configured(&self.critical, &defaults.critical).unwrap_or_default(),
            interval: self.interval(defaults),
            jitter: self.jitter(defaults),
            timeout: self.timeout(defaults),
            failures: configured(&self.failures, &defaults.failures).unwrap_or(Self::FAILURES),
            successes: configured(&self.successes, &defaults.successes).unwrap_or(Self::SUCCESSES),
            degraded_above: self.degraded_above(defaults),
            hide_target: configured(&self.hide_target, &defaults.hide_target).unwrap_or_default(),
            group: None,
        }
    }
}

/// Reads a number of consecutive results.
fn count(value: Value<'_>, variables: Variables<'_>) -> Read<NonZeroU32> {
    let span = value.span;
    let count = integer(1..=1000)(value, variables)?;
    NonZeroU32::new(count).ok_or_else(|| not_valid(span, "at least 1"))
}

fn configured<T: Copy>(own: &Option<Spanned<T>>, default: &Option<Spanned<T>>) -> Option<T> {
    own.as_ref().or(default.as_ref()).map(|value| value.value)
}

/// Reads `[[checks]]`.
pub(super) fn read(keys: &mut Keys<'_, '_>, defaults: &Defaults) -> Vec<Check> {
    let mut names = HashSet::new();
    let checks = keys.tables("checks", MAX_CHECKS, |keys| {
        let missing = !keys.contains("name");
        let name = keys.read(
            "name",
            parsed(
                "1 to 63 lower-case letters, digits, - and _; display-name can be any text",
                name,
            ),
        );
        let display_name = keys.read(
            "display-name",
            parsed("1 to 100 characters in one line", display_name),
        );
        if missing {
            keys.wrong(keys.span, "check has no name: expected name = \"…\"");
        }
        if let Some(name) = &name
            && !names.insert(name.value.clone())
        {
            keys.wrong(name.span, "duplicate check name: expected a unique name");
        }
        let target = target(keys, &defaults.tls);
        let group = keys.read("group", words).map(Spanned::take);
        let settings = ProbeSettings::read(keys, &defaults.probes);
        Some(Check {
            display_name: display_name.map(Spanned::take),
            group,
            ..settings.check(&defaults.probes, name?.value, target?)
        })
    });
    checks.into_iter().flatten().collect()
}

fn name(text: &str) -> Option<String> {
    let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    ((1..=63).contains(&text.len()) && text.bytes().all(fits)).then(|| text.to_owned())
}

fn display_name(text: &str) -> Option<String> {
    let text = text.trim();
    let fits = (1..=100).contains(&text.chars().count()) && !text.contains(char::is_control);
    fits.then(|| text.to_owned())
}

/// Reads the target and the keys of its kind.
fn target(keys: &mut Keys<'_, '_>, defaults: &TlsSettings) -> Option<(Target, TlsOptions)> {
    let named: Vec<Kind> = Kind::ALL
        .iter()
        .copied()
        .filter(|kind| keys.contains(kind.name()))
        .collect();
    if named.is_empty() {
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        keys.wrong(
            keys.span,
            format_args!("check has no target: expected one of {}", kinds.join(", ")),
        );
    }
    for kind in named.iter().skip(1) {
        if let Some(span) = keys.remove(kind.name()) {
            let what = format_args!(
                "check has a second target, {}: expected exactly one",
                kind.name()
            );
            keys.wrong(span, what);
        }
    }
    let read = named.first().and_then(|kind| {
        let place = keys.place(kind.name())?;
        let target = read_target(*kind, keys);
        let tls = tls_options(keys, *kind, target.as_ref(), defaults);
        let target = target?;
        // Values that are valid on their own may not be valid together.
        if let Err(reason) = target.validate() {
            keys.wrong(
                place,
                format_args!("{} cannot be probed: {reason}", kind.name()),
            );
        }
        Some((target, tls))
    });
    for kind in Kind::ALL {
        for option in options(*kind) {
            // Only if the kind is clear; otherwise the key may be valid.
            if let Some(span) = keys.remove(option)
                && let [named] = named.as_slice()
            {
                let kinds: Vec<_> = (Kind::ALL.iter().copied())
                    .filter(|kind| options(*kind).contains(option))
                    .map(Kind::name)
                    .collect();
                keys.wrong(
                    span,
                    format_args!(
                        "{option} is not allowed in a check of kind {}: expected only in checks of kind {}",
                        named.name(),
                        kinds.join(", ")
                    ),
                );
            }
        }
    }
    read
}

/// Reads how the probes of a check of `kind` use TLS; `target` is missing if it is not valid.
fn tls_options(
    keys: &mut Keys<'_, '_>,
    kind: Kind,
    target: Option<&Target>,
    defaults: &TlsSettings,
) -> TlsOptions {
    if !options(kind).contains(&tls::VALID_FOR) {
        return TlsOptions::default();
    }
    if let Some(expected) = target.and_then(Target::missing_tls) {
        for option in tls::KEYS {
            if let Some(span) = keys.remove(option) {
                keys.wrong(
                    span,
                    format_args!("{option} has no effect without TLS: {expected}"),
                );
            }
        }
        return TlsOptions::default();
    }
    TlsSettings::read(keys).options(defaults)
}

fn http(keys: &mut Keys<'_, '_>) -> Option<Target> {
    let accept = |url: &Url| matches!(url.scheme(), "http" | "https");
    let url = keys.read(Kind::Http.name(), url("http://… or https://…", accept));
    let method = |text: &str| matches!(text, "GET" | "HEAD" | "POST").then(|| text.to_owned());
    let method = keys.read("method", parsed("GET, HEAD or POST", method));
    let headers = keys.read("headers", map(header));
    let status = keys.read("status", list(integer(100..=599)));
    let body = keys.read("body", words);
    let body_limit = keys.read("body-limit", size(1..=MAX_BODY));
    let version = |text: &str| match text {
        "1.1" => Some(Version::Http1),
        "2" => Some(Version::Http2),
        _ => None,
    };
    let version = keys.read("http-version", parsed("\"1.1\" or \"2\"", version));
    let follow_redirects = keys.read("follow-redirects", boolean);
    Some(Target::Http(checks::http::Target {
        url: url?.value,
        method: method.map_or_else(|| "GET".into(), Spanned::take),
        headers: headers.map(Spanned::take).unwrap_or_default(),
        status: status.map(Spanned::take).unwrap_or_default(),
        body: body.map(Spanned::take),
        body_limit: body_limit.map_or(BODY_LIMIT, Spanned::take),
        version: version.map(Spanned::take).unwrap_or_default(),
        follow_redirects: follow_redirects.is_some_and(Spanned::take),
    }))
}

/// Reads a header, and rejects names and values that HTTP does not allow.
fn header(key: &Key<'_>, value: Value<'_>, variables: Variables<'_>) -> Read<(String, SecretText)> {
    let span = value.span;
    let value = string(value, variables)?;
    if HeaderName::from_bytes(key.name.as_bytes()).is_err() {
        let what = "contains an invalid header name: expected a name such as Authorization";
        return Err(vec![custom(key.span, what)]);
    }
    if HeaderValue::from_str(&value).is_err() {
        let what = "contains an invalid header value: expected text without line breaks";
        return Err(vec![custom(span, what)]);
    }
    Ok((key.name.to_string(), SecretText::new(value)))
}

fn tcp(keys: &mut Keys<'_, '_>) -> Option<Target> {
    let (host, port) = keys
        .read(Kind::Tcp.name(), parsed(HOST_AND_PORT, host_and_port))?
        .value;
    Some(Target::Tcp(checks::tcp::Target { host, port }))
}

fn tls_server(keys: &mut Keys<'_, '_>) -> Option<Target> {
    let server = keys.read(Kind::Tls.name(), parsed(HOST_AND_PORT, host_and_port));
    let (host, port) = server?.value;
    Some(Target::Tls(checks::tls::Target { host, port }))
}

const HOST_AND_PORT: &str = "host:port, such as example.org:443 or [::1]:443";

fn dns(keys: &mut Keys<'_, '_>) -> Option<Target> {
    // `validate` would also find it, but with the name, which may be a secret in the wrong place.
    let domain = |text: &str| domain_name::parse(text).is_ok().then(|| text.to_owned());
    let name = keys.read(
        Kind::Dns.name(),
        parsed("a domain name, such as example.org", domain),
    );
    let record = keys.read("record", parsed(RECORDS, record));
    let server = |text: &str| {
        let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS));
        address.or_else(|_| text.parse()).ok()
    };
    let server = keys.read(
        "server",
        parsed("an address, such as 9.9.9.9 or [2620:fe::fe]:53", server),
    );
    let expected = keys.read("expect", list(words));
    Some(Target::Dns(checks::dns::Target {
        name: name?.value,
        record: record.map_or(RecordType::A, Spanned::take),
        server: server.map(Spanned::take),
        expected: expected.map(Spanned::take).unwrap_or_default(),
    }))
}

const RECORDS: &str = "A, AAAA, CAA, CNAME, MX, NS, PTR, SOA, SRV or TXT";

fn record(text: &str) -> Option<RecordType> {
    // Only types whose data can be written as text in `expect`.
    let known = RECORDS
        .split([',', ' '])
        .any(|name| name != "or" && name == text);
    known.then(|| text.parse().ok()).flatten()
}

fn redis(keys: &mut Keys<'_, '_>) -> Option<Target> {
    let url = keys.read(Kind::Redis.name(), redis_url)?.value;
    Some(Target::Redis(checks::redis::Target { url }))
}

fn postgres(keys: &mut Keys<'_, '_>) -> Option<Target> {
    // `validate` reports the parameters.
    let accept =
        |url: &Url| matches!(url.scheme(), "postgres" | "postgresql") && is_plain_path(url);
    let expected =
        "postgresql://user[:password]@host[:port]/database, with the password percent-encoded";
    let url = keys
        .read(
            Kind::Postgres.name(),
            prepared_url(expected, checks::postgres::with_host, accept),
        )?
        .value;
    Some(Target::Postgres(checks::postgres::Target { url }))
}

/// Reads the URL of a Redis server.
pub(super) fn redis_url(value: Value<'_>, variables: Variables<'_>) -> Read<SecretUrl> {
    let valid = |url: &Url| {
        let url = SecretUrl::new(url.clone());
        checks::redis::Target { url }.validate().is_ok()
    };
    let expected = "redis:// or rediss://[[user]:password@]host[:port][/number], with the password percent-encoded";
    url(expected, |url| is_plain_path(url) && valid(url))(value, variables)
}

/// Whether the path contains no part of a password, which would be shown. An unencoded slash in a password ends the host.
fn is_plain_path(url: &Url) -> bool {
    !url.path().contains('@')
}
