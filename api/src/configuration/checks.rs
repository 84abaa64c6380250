//! `[[checks]]`: what is checked; and `[defaults]`: how, where a check does not say it.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use actix_web::http::header::{HeaderName, HeaderValue};
use hickory_proto::rr::{Name, RecordType};
use toml_span::{Value, span::Spanned, value::Key};
use url::Url;

use super::{
    values::{
        Keys, Read, boolean, custom, duration, host_and_port, integer, list, map, not_valid,
        parsed, string, url, words,
    },
    variables::Variables,
};
use crate::{
    checks::{self, Check, Kind, Target},
    secret::{SecretText, SecretUrl},
};

/// So many keep within the memory that the service is to have.
const MOST: usize = 1000;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The port of DNS.
const DNS: u16 = 53;

/// The keys that only a check of `kind` has, besides the key that is named like the kind.
const fn options(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Http => &["method", "headers", "status", "body", "follow-redirects"],
        Kind::Dns => &["record", "server", "expect"],
        Kind::Tls => &["valid-for"],
        Kind::Tcp | Kind::Redis | Kind::Postgres => &[],
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
        Kind::Tls => tls(keys),
    }
}

/// When a target is asked, and how its answers count: as far as a table says it.
#[derive(Default)]
pub struct Rhythm {
    interval: Option<Spanned<Duration>>,
    jitter: Option<Spanned<Duration>>,
    timeout: Option<Spanned<Duration>>,
    failures: Option<Spanned<NonZeroU32>>,
    successes: Option<Spanned<NonZeroU32>>,
    critical: Option<Spanned<bool>>,
}

impl Rhythm {
    const INTERVAL: Duration = Duration::from_secs(60);
    const TIMEOUT: Duration = Duration::from_secs(5);
    /// The jitter is the interval divided by this.
    const JITTERS: u32 = 10;
    const FAILURES: NonZeroU32 = NonZeroU32::MIN.saturating_add(2);
    /// More than one: what crashes again and again answers in between.
    const SUCCESSES: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);

    /// Takes its keys, and says where they contradict one another or, with them, `defaults`.
    pub fn read(keys: &mut Keys<'_, '_>, defaults: &Self) -> Self {
        let interval = duration(Duration::from_millis(100)..=DAY);
        let errors = keys.errors();
        let own = Self {
            interval: keys.read("interval", interval),
            jitter: keys.read("jitter", duration(Duration::ZERO..=DAY)),
            timeout: keys.read("timeout", duration(Duration::from_millis(1)..=DAY)),
            ..Self::default()
        };
        // What was not understood contradicts nothing.
        if keys.errors() == errors {
            own.contradictions(keys, defaults);
        }
        Self {
            failures: keys.read("failures", count),
            successes: keys.read("successes", count),
            critical: keys.read("critical", boolean),
            ..own
        }
    }

    fn contradictions(&self, keys: &mut Keys<'_, '_>, defaults: &Self) {
        let interval = self.interval(defaults);
        // A default that is wrong by itself is told where it is, and not at every check.
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
                    "timeout {} is longer than interval {}: expected an answer, or none, before the next question",
                    shown(timeout),
                    shown(interval)
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
                    "jitter {} is not shorter than interval {}: expected less",
                    shown(jitter),
                    shown(interval)
                ),
            );
        }
    }

    fn interval(&self, defaults: &Self) -> Duration {
        said(&self.interval, &defaults.interval).unwrap_or(Self::INTERVAL)
    }

    fn timeout(&self, defaults: &Self) -> Duration {
        said(&self.timeout, &defaults.timeout)
            .unwrap_or_else(|| Self::TIMEOUT.min(self.interval(defaults)))
    }

    fn jitter(&self, defaults: &Self) -> Duration {
        said(&self.jitter, &defaults.jitter)
            .unwrap_or_else(|| self.interval(defaults) / Self::JITTERS)
    }

    /// The check `name` of `target` in this rhythm, and in that of `defaults` where this says nothing.
    pub fn check(&self, defaults: &Self, name: String, target: Target) -> Check {
        Check {
            name,
            target,
            critical: said(&self.critical, &defaults.critical).unwrap_or_default(),
            interval: self.interval(defaults),
            jitter: self.jitter(defaults),
            timeout: self.timeout(defaults),
            failures: said(&self.failures, &defaults.failures).unwrap_or(Self::FAILURES),
            successes: said(&self.successes, &defaults.successes).unwrap_or(Self::SUCCESSES),
        }
    }
}

/// How many answers in a row.
fn count(value: Value<'_>, variables: Variables<'_>) -> Read<NonZeroU32> {
    let span = value.span;
    let count = integer(1..=1000)(value, variables)?;
    NonZeroU32::new(count).ok_or_else(|| not_valid(span, "1 at least"))
}

fn said<T: Copy>(own: &Option<Spanned<T>>, default: &Option<Spanned<T>>) -> Option<T> {
    own.as_ref().or(default.as_ref()).map(|said| said.value)
}

/// Takes `[[checks]]`.
pub fn read(keys: &mut Keys<'_, '_>, defaults: &Rhythm) -> Vec<Check> {
    let mut names = HashSet::new();
    let checks = keys.tables("checks", MOST, |keys| {
        let missing = !keys.contains("name");
        let name = keys.read(
            "name",
            parsed("lower-case letters, digits, - and _, 1 to 63 of them", name),
        );
        if missing {
            keys.wrong(keys.span, "a check without a name: expected name = \"…\"");
        }
        if let Some(name) = &name
            && !names.insert(name.value.clone())
        {
            keys.wrong(
                name.span,
                "name is another check's, too: expected one that only this has",
            );
        }
        let target = target(keys);
        let rhythm = Rhythm::read(keys, defaults);
        Some(rhythm.check(defaults, name?.value, target?))
    });
    checks.into_iter().flatten().collect()
}

fn name(text: &str) -> Option<String> {
    let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    ((1..=63).contains(&text.len()) && text.bytes().all(fits)).then(|| text.to_owned())
}

/// Reads the target and the keys of its kind.
fn target(keys: &mut Keys<'_, '_>) -> Option<Target> {
    let named: Vec<Kind> = Kind::ALL
        .iter()
        .copied()
        .filter(|kind| keys.contains(kind.name()))
        .collect();
    if named.is_empty() {
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        keys.wrong(
            keys.span,
            format_args!("a check of nothing: expected one of {}", kinds.join(", ")),
        );
    }
    for kind in named.iter().skip(1) {
        if let Some(span) = keys.remove(kind.name()) {
            let what = format_args!("a second target, {}: expected one in a check", kind.name());
            keys.wrong(span, what);
        }
    }
    let read = named.first().and_then(|kind| {
        let place = keys.place(kind.name())?;
        let target = read_target(*kind, keys)?;
        // Each value is right by itself; the client says whether they are together.
        if let Err(why) = target.validate() {
            keys.wrong(
                place,
                format_args!("{} cannot be asked: {why}", kind.name()),
            );
        }
        Some(target)
    });
    for kind in Kind::ALL {
        for option in options(*kind) {
            // Where the kind is not clear, whose key it is cannot be wrong.
            if let Some(span) = keys.remove(option)
                && let [named] = named.as_slice()
            {
                keys.wrong(
                    span,
                    format_args!(
                        "{option} belongs to a check of kind {}: expected no such key beside {}",
                        kind.name(),
                        named.name()
                    ),
                );
            }
        }
    }
    read
}

fn http(keys: &mut Keys<'_, '_>) -> Option<Target> {
    let accept = |url: &Url| matches!(url.scheme(), "http" | "https");
    let url = keys.read(Kind::Http.name(), url("http://… or https://…", accept));
    let method = |text: &str| matches!(text, "GET" | "HEAD" | "POST").then(|| text.to_owned());
    let method = keys.read("method", parsed("GET, HEAD or POST", method));
    let headers = keys.read("headers", map(header));
    let status = keys.read("status", list(integer(100..=599)));
    let body = keys.read("body", words);
    let follow_redirects = keys.read("follow-redirects", boolean);
    Some(Target::Http(checks::http::Target {
        url: url?.value,
        method: method.map_or_else(|| "GET".into(), Spanned::take),
        headers: headers.map(Spanned::take).unwrap_or_default(),
        status: status.map(Spanned::take).unwrap_or_default(),
        body: body.map(Spanned::take),
        follow_redirects: follow_redirects.is_some_and(Spanned::take),
    }))
}

/// A header; neither its name nor its value may hold what would end it.
fn header(key: &Key<'_>, value: Value<'_>, variables: Variables<'_>) -> Read<(String, SecretText)> {
    let span = value.span;
    let value = string(value, variables)?;
    if HeaderName::from_bytes(key.name.as_bytes()).is_err() {
        let what = "have a name that is none: expected one such as Authorization";
        return Err(vec![custom(key.span, what)]);
    }
    if HeaderValue::from_str(&value).is_err() {
        let what = "have a value that is none: expected no line breaks";
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

fn tls(keys: &mut Keys<'_, '_>) -> Option<Target> {
    let server = keys.read(Kind::Tls.name(), parsed(HOST_AND_PORT, host_and_port));
    let valid_for = keys.read("valid-for", duration(Duration::ZERO..=3650 * DAY));
    let (host, port) = server?.value;
    Some(Target::Tls(checks::tls::Target {
        host,
        port,
        valid_for: valid_for.map_or(14 * DAY, Spanned::take),
    }))
}

const HOST_AND_PORT: &str = "host:port, such as example.org:443 or [::1]:443";

fn dns(keys: &mut Keys<'_, '_>) -> Option<Target> {
    let domain = |text: &str| {
        let name = Name::from_utf8(text).ok()?;
        (!name.is_root()).then(|| text.to_owned())
    };
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
    // Those whose data is text that people write; the rest of what DNS has is not for `expect`.
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
    let valid = |url: &Url| {
        let url = SecretUrl::new(url.clone());
        checks::postgres::Target { url }.validate().is_ok()
    };
    let expected =
        "postgresql://user[:password]@host[:port]/database, the password percent-encoded";
    let url = keys
        .read(
            Kind::Postgres.name(),
            url(expected, |url| plain_path(url) && valid(url)),
        )?
        .value;
    Some(Target::Postgres(checks::postgres::Target { url }))
}

/// The URL of a Redis.
pub fn redis_url(value: Value<'_>, variables: Variables<'_>) -> Read<SecretUrl> {
    let valid = |url: &Url| {
        let url = SecretUrl::new(url.clone());
        checks::redis::Target { url }.validate().is_ok()
    };
    let expected =
        "redis:// or rediss://[[user]:password@]host[:port][/number], the password percent-encoded";
    url(expected, |url| plain_path(url) && valid(url))(value, variables)
}

/// Whether the path is no part of a password with a slash in it: that would be shown.
fn plain_path(url: &Url) -> bool {
    !url.path().contains('@')
}
