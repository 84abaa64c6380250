//! The parameters of a connection URL, with the meaning that the documentation of libpq gives them.

use std::{path::PathBuf, time::Duration};

use percent_encoding::percent_decode_str;
use socket2::TcpKeepalive;
use tokio_postgres::{
    Config,
    config::{ChannelBinding, SslNegotiation},
};
use url::Url;

/// The default port.
const PORT: u16 = 5432;

/// What is wrong with a URL whose parts are not.
const EXPECTED: &str = "expected postgresql://user[:password]@host/database";

/// Parameters of libpq that are not supported, and what to do without them.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("gssdelegation", ""),
    ("gsslib", ""),
    ("krbsrvname", ""),
    ("max_protocol_version", ""),
    ("min_protocol_version", ""),
    ("oauth_client_id", ""),
    ("oauth_client_secret", ""),
    ("oauth_issuer", ""),
    ("oauth_scope", ""),
    ("passfile", "; write the password as ${NAME} into the URL"),
    ("replication", ""),
    ("require_auth", ""),
    ("requirepeer", ""),
    ("requiressl", "; use sslmode"),
    ("scram_client_key", ""),
    ("scram_server_key", ""),
    ("service", ""),
    ("servicefile", ""),
    ("ssl_max_protocol_version", ""),
    ("sslcert", "; use the key client-certificate of the check"),
    ("sslcrl", ""),
    ("sslcrldir", ""),
    ("sslkey", "; use the key client-key of the check"),
    ("sslkeylogfile", ""),
    ("sslpassword", ""),
];

/// A server that the URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// The name, which the certificate must have.
    pub(super) name: String,
    /// The address, if it is not looked up.
    pub(super) address: Option<String>,
    pub(super) port: u16,
}

/// `sslmode`: whether TLS is used, and what is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SslMode {
    Disable,
    /// Only if the server rejects other connections.
    Allow,
    /// Only if the server accepts it.
    Prefer,
    /// With any certificate, unless root certificates are given.
    Require,
    /// The certificate, but not the name of the server.
    VerifyCa,
    VerifyFull,
}

/// `target_session_attrs`: which servers are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// A parsed URL.
#[derive(Debug)]
pub(super) struct Parameters {
    pub(super) hosts: Vec<Host>,
    /// The login and the options of the session.
    pub(super) config: Box<Config>,
    pub(super) ssl_mode: SslMode,
    /// `sslrootcert`: the only certificates to trust. `None` if it is not set, or `system`.
    pub(super) roots: Option<PathBuf>,
    pub(super) sni: bool,
    pub(super) direct_tls: bool,
    pub(super) session: Session,
    pub(super) random: bool,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) keepalive: Option<TcpKeepalive>,
    pub(super) user_timeout: Option<Duration>,
}

/// Moves a list of hosts, which general URLs cannot have, into the query, and adds a host that is only in the query.
pub(crate) fn with_host(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    let shown = |host: &str| match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    if hosts.is_empty() {
        let mut hosts = query.split('&').filter_map(|pair| {
            pair.strip_prefix("host=")
                .or(pair.strip_prefix("hostaddr="))
        });
        let host = hosts.next().and_then(|hosts| hosts.split(',').next());
        return match host {
            Some(host) if !host.contains('/') => {
                format!("{scheme}://{login}{}{path}?{query}", shown(host))
            }
            _ => text.to_owned(),
        };
    }
    if !hosts.contains(',') {
        return text.to_owned();
    }
    let (names, ports): (Vec<&str>, Vec<&str>) = hosts
        .split(',')
        .map(
            |host| match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
                Some((name, port)) => (name, port.trim_start_matches(':')),
                None => host.split_once(':').unwrap_or((host, "")),
            },
        )
        .unzip();
    let (names, ports) = (names.join(","), ports.join(","));
    // A list of IPv6 addresses cannot be the host of a URL.
    let host = match names.split_once(',') {
        Some((first, _)) if names.contains(':') => shown(first),
        _ => names.clone(),
    };
    format!("{scheme}://{login}{host}{path}?host={names}&port={ports}&{query}")
}

/// Parses a connection URL. Errors name parameters, and contain no values.
pub(super) fn parse(url: &Url) -> Result<Parameters, String> {
    if !["postgres", "postgresql"].contains(&url.scheme()) {
        return Err(EXPECTED.into());
    }
    let mut read = Reader::new();
    read.hosts = decode(url.host_str().unwrap_or_default())?;
    read.ports = url.port().map(|port| port.to_string()).unwrap_or_default();
    read.user = decode(url.username())?;
    read.password = url.password().map(|it| percent_decode_str(it).collect());
    read.database = decode(url.path().trim_start_matches('/'))?;
    for pair in url.query().unwrap_or_default().split('&') {
        if pair.is_empty() {
            continue;
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        read.set(&decode(name)?, &decode(value)?, !pair.contains('@'))?;
    }
    read.finish()
}

fn decode(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(Into::into)
        .map_err(|_| "contains invalid UTF-8".into())
}

/// The values that were read so far.
struct Reader {
    hosts: String,
    addresses: String,
    ports: String,
    user: String,
    password: Option<Vec<u8>>,
    database: String,
    application: String,
    fallback_application: String,
    ssl_mode: Option<SslMode>,
    root_certificate: String,
    keepalives: bool,
    keepalive: TcpKeepalive,
    parameters: Parameters,
}

impl Reader {
    fn new() -> Self {
        Self {
            hosts: String::new(),
            addresses: String::new(),
            ports: String::new(),
            user: String::new(),
            password: None,
            database: String::new(),
            application: String::new(),
            fallback_application: String::new(),
            ssl_mode: None,
            root_certificate: String::new(),
            keepalives: true,
            keepalive: TcpKeepalive::new(),
            parameters: Parameters {
                hosts: Vec::new(),
                config: Box::default(),
                ssl_mode: SslMode::Prefer,
                roots: None,
                sni: true,
                direct_tls: false,
                session: Session::Any,
                random: false,
                connect_timeout: None,
                keepalive: None,
                user_timeout: None,
            },
        }
    }

    /// Sets one parameter. A name that is not known is shown only if it `is_no_secret`.
    fn set(&mut self, name: &str, value: &str, is_no_secret: bool) -> Result<(), String> {
        let out = &mut self.parameters;
        match name {
            "host" => value.clone_into(&mut self.hosts),
            "hostaddr" => value.clone_into(&mut self.addresses),
            "port" => value.clone_into(&mut self.ports),
            "user" => value.clone_into(&mut self.user),
            "password" => self.password = Some(value.into()),
            "dbname" => value.clone_into(&mut self.database),
            "application_name" => value.clone_into(&mut self.application),
            "fallback_application_name" => value.clone_into(&mut self.fallback_application),
            "options" => drop(out.config.options(value)),
            "connect_timeout" => out.connect_timeout = seconds(name, value)?,
            "keepalives" => self.keepalives = flag(name, value)?,
            "keepalives_idle" => {
                if let Some(time) = seconds(name, value)? {
                    self.keepalive = self.keepalive.clone().with_time(time);
                }
            }
            "keepalives_interval" => {
                if let Some(time) = seconds(name, value)? {
                    self.keepalive = self.keepalive.clone().with_interval(time);
                }
            }
            "keepalives_count" => {
                if let Ok(count @ 1..) = u32::try_from(number(name, value)?) {
                    self.keepalive = self.keepalive.clone().with_retries(count);
                }
            }
            "tcp_user_timeout" => {
                let milliseconds = u64::try_from(number(name, value)?).ok();
                let milliseconds = milliseconds.filter(|time| *time > 0);
                out.user_timeout = milliseconds.map(Duration::from_millis);
            }
            "sslmode" => {
                self.ssl_mode = Some(choice(
                    name,
                    value,
                    &[
                        ("disable", SslMode::Disable),
                        ("allow", SslMode::Allow),
                        ("prefer", SslMode::Prefer),
                        ("require", SslMode::Require),
                        ("verify-ca", SslMode::VerifyCa),
                        ("verify-full", SslMode::VerifyFull),
                    ],
                )?);
            }
            "sslrootcert" => value.clone_into(&mut self.root_certificate),
            "sslsni" => out.sni = flag(name, value)?,
            "sslnegotiation" => {
                out.direct_tls = choice(name, value, &[("postgres", false), ("direct", true)])?;
            }
            "channel_binding" => {
                let modes = [
                    ("disable", ChannelBinding::Disable),
                    ("prefer", ChannelBinding::Prefer),
                    ("require", ChannelBinding::Require),
                ];
                out.config.channel_binding(choice(name, value, &modes)?);
            }
            "target_session_attrs" => {
                out.session = choice(
                    name,
                    value,
                    &[
                        ("any", Session::Any),
                        ("read-write", Session::ReadWrite),
                        ("read-only", Session::ReadOnly),
                        ("primary", Session::Primary),
                        ("standby", Session::Standby),
                        ("prefer-standby", Session::PreferStandby),
                    ],
                )?;
            }
            "load_balance_hosts" => {
                out.random = choice(name, value, &[("disable", false), ("random", true)])?;
            }
            // These have no effect, or only one value is possible.
            "sslcompression" => drop(flag(name, value)?),
            "client_encoding" => choice(
                &name.to_ascii_lowercase(),
                &value.to_ascii_lowercase(),
                &[("auto", ()), ("utf8", ()), ("utf-8", ()), ("unicode", ())],
            )?,
            "gssencmode" => choice(name, value, &[("disable", ()), ("prefer", ())])?,
            "sslcertmode" => choice(name, value, &[("disable", ()), ("allow", ())])?,
            "ssl_min_protocol_version" => {
                let versions = [("TLSv1", ()), ("TLSv1.1", ()), ("TLSv1.2", ())];
                choice(name, value, &versions)?;
            }
            _ => return Err(refused(name, is_no_secret)),
        }
        Ok(())
    }

    fn finish(self) -> Result<Parameters, String> {
        let mut out = self.parameters;
        if self.user.is_empty() {
            return Err(EXPECTED.into());
        }
        out.config.user(self.user);
        if let Some(password) = self.password {
            out.config.password(password);
        }
        if !self.database.is_empty() {
            out.config.dbname(self.database);
        }
        let application = [self.application, self.fallback_application];
        if let Some(name) = application.into_iter().find(|name| !name.is_empty()) {
            out.config.application_name(name);
        }
        out.hosts = hosts(&self.hosts, &self.addresses, &self.ports)?;
        out.keepalive = self.keepalives.then_some(self.keepalive);
        out.ssl_mode = match (self.ssl_mode, self.root_certificate.as_str()) {
            (None, "system") => SslMode::VerifyFull,
            (Some(mode), "system") if mode != SslMode::VerifyFull => {
                return Err("sslrootcert=system needs sslmode=verify-full".into());
            }
            (mode, _) => mode.unwrap_or(SslMode::Prefer),
        };
        if !["", "system"].contains(&self.root_certificate.as_str()) {
            out.roots = Some(self.root_certificate.into());
        }
        if out.direct_tls {
            let weak = [SslMode::Disable, SslMode::Allow, SslMode::Prefer];
            if weak.contains(&out.ssl_mode) {
                return Err("sslnegotiation=direct needs sslmode=require or stronger".into());
            }
            out.config.ssl_negotiation(SslNegotiation::Direct);
        }
        Ok(out)
    }
}

/// Combines the lists of hosts, addresses and ports.
fn hosts(names: &str, addresses: &str, ports: &str) -> Result<Vec<Host>, String> {
    let list = |text: &str| -> Vec<String> {
        let items = text.split(',').filter(|_| !text.is_empty());
        items.map(|item| item.trim().to_owned()).collect()
    };
    let (names, addresses, ports) = (list(names), list(addresses), list(ports));
    let count = names.len().max(addresses.len());
    if count == 0 {
        return Err(EXPECTED.into());
    }
    let fits = |length: usize| length == 0 || length == count;
    if !fits(names.len()) || !fits(addresses.len()) || !(fits(ports.len()) || ports.len() == 1) {
        return Err("host, hostaddr and port have different numbers of items".into());
    }
    (0..count)
        .map(|index| {
            let port = ports.get(index).or_else(|| ports.first());
            let port = match port.map_or("", String::as_str) {
                "" => PORT,
                port => port
                    .parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or("port has an invalid value: expected a port from 1 to 65535")?,
            };
            let address = addresses.get(index).filter(|it| !it.is_empty()).cloned();
            if address.as_ref().is_some_and(|it| it.parse::<std::net::IpAddr>().is_err()) {
                return Err("hostaddr has an invalid value: expected an address".to_owned());
            }
            let name = names.get(index).filter(|name| !name.is_empty()).cloned();
            let name = name.or_else(|| address.clone()).ok_or(EXPECTED)?;
            let name = name.trim_matches(['[', ']']).to_owned();
            if name.starts_with(['/', '@']) {
                return Err("host is a Unix socket, which is not supported: expected a host name or an address".into());
            }
            Ok(Host { name, address, port })
        })
        .collect()
}

/// The error for a parameter that is not supported.
fn refused(name: &str, is_no_secret: bool) -> String {
    if let Some((name, instead)) = UNSUPPORTED.iter().find(|(known, _)| *known == name) {
        return format!("the parameter {name} is not supported{instead}");
    }
    let is_name = |name: &str| {
        name.bytes()
            .all(|it| it.is_ascii_alphanumeric() || it == b'_')
    };
    if is_no_secret && name.len() <= 32 && is_name(name) {
        return format!("there is no parameter {name}");
    }
    // It may be a part of a password with a question mark.
    "there is a parameter that is not known, or a ? in the password that is not percent-encoded"
        .into()
}

fn choice<T: Clone>(name: &str, value: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let chosen = choices.iter().find(|(known, _)| *known == value);
    chosen.map(|(_, chosen)| chosen.clone()).ok_or_else(|| {
        let known: Vec<_> = choices.iter().map(|(known, _)| *known).collect();
        format!(
            "{name} has a value that is not supported: expected {}",
            known.join(", ")
        )
    })
}

fn number(name: &str, value: &str) -> Result<i64, String> {
    let error = |_| format!("{name} has an invalid value: expected an integer");
    value.trim().parse().map_err(error)
}

fn flag(name: &str, value: &str) -> Result<bool, String> {
    choice(name, value, &[("0", false), ("1", true)])
}

/// A number of seconds; without a limit if it is not positive.
fn seconds(name: &str, value: &str) -> Result<Option<Duration>, String> {
    let seconds = u64::try_from(number(name, value)?).ok();
    Ok(seconds.filter(|it| *it > 0).map(Duration::from_secs))
}
