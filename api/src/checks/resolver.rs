//! Looks up the addresses of hosts, as `getaddrinfo` does, but without a thread for each look-up.
//!
//! `getaddrinfo` blocks its thread while a name server is silent, cannot be cancelled, and so holds up the look-ups of other
//! names. The crate `hickory-resolver` does not: it is not used because it adds a cache, which hides changes from the checks, and
//! because it does not tell which server responded with what.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Either, Shared, select},
};
use hickory_proto::{
    op::Query,
    rr::{Name, RData, RecordType},
};
use tokio::time::timeout;

use super::{
    domain_name,
    name_servers::{Answer, Unanswered, ask},
};

/// Lists the name servers of the system, and the domains that short names are relative to.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Lists hosts with their addresses.
const HOSTS: &str = "/etc/hosts";

/// How long to wait for IPv6 addresses if there are IPv4 addresses: the Resolution Delay of RFC 8305.
const DELAY_OF_IPV6: Duration = Duration::from_millis(50);

/// How long to wait for IPv4 addresses if there are IPv6 addresses, which may be unreachable.
const DELAY_OF_IPV4: Duration = Duration::from_secs(1);

/// The name servers, and the domains that short names are relative to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServers {
    /// The addresses, in the order in which they are asked.
    pub servers: Vec<SocketAddr>,
    /// The domains that are appended to short names.
    pub search: Vec<String>,
    /// Names with at least so many dots are looked up as they are first.
    pub ndots: usize,
}

impl NameServers {
    /// Reads the format of resolv.conf(5), and ignores what it does not know.
    fn parse(text: &str) -> Self {
        let mut read = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
        };
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => read.servers.extend(words.next().and_then(name_server)),
                // The last one of both holds.
                Some("domain" | "search") => read.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let ndots = words.filter_map(|word| word.strip_prefix("ndots:"));
                    let ndots = ndots.filter_map(|ndots| ndots.parse().ok()).next_back();
                    // At most 15, as in resolv.conf(5).
                    read.ndots = ndots.map_or(read.ndots, |ndots: usize| ndots.min(15));
                }
                _ => {}
            }
        }
        if read.servers.is_empty() {
            // As in resolv.conf(5).
            read.servers = vec![(Ipv4Addr::LOCALHOST, 53).into()];
        }
        read
    }

    /// The absolute names that `host` may stand for, in the order in which they are looked up.
    fn candidates(&self, host: &str) -> Result<Vec<Name>, String> {
        let exact = domain_name::parse(host)?;
        if host.ends_with('.') {
            return Ok(vec![exact]);
        }
        let mut names: Vec<Name> = self
            .search
            .iter()
            // A name that becomes too long does not exist.
            .filter_map(|domain| {
                exact
                    .clone()
                    .append_domain(&domain_name::parse(domain).ok()?)
                    .ok()
            })
            .collect();
        let dots = host.matches('.').count();
        names.insert(if dots >= self.ndots { 0 } else { names.len() }, exact);
        Ok(names)
    }
}

/// Parses the address of a name server, which may name a network interface: `fe80::1%eth0`.
fn name_server(text: &str) -> Option<SocketAddr> {
    const PORT: u16 = 53;
    let Some((address, interface)) = text.split_once('%') else {
        return Some((text.parse::<IpAddr>().ok()?, PORT).into());
    };
    let index = interface.parse().ok().or_else(|| {
        let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).ok()?;
        index.trim().parse().ok()
    })?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, index).into())
}

/// The addresses of a host, or why there are none.
type Addresses = Result<Arc<[IpAddr]>, Arc<str>>;

/// Looks up the addresses of hosts. Clones share their pending look-ups.
#[derive(Clone, Default)]
pub(crate) struct Resolver(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// `None` selects those of the system.
    name_servers: Option<NameServers>,
    /// Concurrent look-ups of one name are one. A look-up continues if nobody waits for it any longer, so that those who wait for
    /// a short time only profit from it later.
    pending: Mutex<HashMap<String, Shared<BoxFuture<'static, Addresses>>>>,
}

impl Resolver {
    /// Asks only `name_servers`.
    pub(super) fn with(name_servers: NameServers) -> Self {
        Self(Arc::new(Inner {
            name_servers: Some(name_servers),
            pending: Mutex::default(),
        }))
    }

    /// The configured name servers. The file of the system is read each time, because it may change.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn name_servers(&self) -> Result<NameServers, String> {
        if let Some(name_servers) = &self.0.name_servers {
            return Ok(name_servers.clone());
        }
        match fs::read(RESOLV_CONF) {
            Ok(text) => Ok(NameServers::parse(&String::from_utf8_lossy(&text))),
            Err(error) => Err(format!("cannot read {RESOLV_CONF}: {error}")),
        }
    }

    /// Looks up the addresses of `host`: a name or an address.
    ///
    /// # Errors
    /// When the host has no address, or no name server answers.
    pub(crate) async fn look_up(&self, host: &str) -> io::Result<Arc<[IpAddr]>> {
        if let Ok(address) = host.parse() {
            return Ok(Arc::new([address]));
        }
        let look_up = self
            .pending()
            .entry(host.to_owned())
            .or_insert_with(|| self.clone().start(host.to_owned()))
            .clone();
        (look_up.await)
            .map_err(|reason| io::Error::other(format!("cannot resolve {host}: {reason}")))
    }

    /// Starts a look-up that is removed from those pending at its end.
    fn start(self, host: String) -> Shared<BoxFuture<'static, Addresses>> {
        let (resolver, name) = (self.clone(), host.clone());
        let task = tokio::spawn(async move {
            let found = resolver.find(&name).await;
            resolver.pending().remove(&name);
            found.map(Into::into).map_err(Into::into)
        });
        let ended = move |ended: Result<Addresses, _>| {
            ended.unwrap_or_else(|_| {
                // The runtime of the task has ended, or the task has panicked.
                self.pending().remove(&host);
                Err("the look-up was aborted".into())
            })
        };
        task.map(ended).boxed().shared()
    }

    async fn find(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if self.0.name_servers.is_none()
            && let Ok(text) = fs::read(HOSTS)
        {
            let found = in_hosts(&String::from_utf8_lossy(&text), host);
            if !found.is_empty() {
                return Ok(found);
            }
        }
        // RFC 6761, section 6.3.
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]);
        }
        let name_servers = self.name_servers()?;
        let mut reason = None;
        for name in name_servers.candidates(host)? {
            match addresses(&name_servers.servers, &name).await {
                Ok(found) => return Ok(found),
                Err(Missing::Unanswered(unanswered)) => {
                    let is_silent = unanswered.is_silent;
                    // A later candidate may exist, but if not, this is the reason that counts.
                    reason = Some(unanswered.to_string());
                    if is_silent {
                        break;
                    }
                }
                Err(Missing::Absent(absent)) => reason = reason.or(Some(absent.into())),
            }
        }
        Err(reason.unwrap_or_default())
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, Shared<BoxFuture<'static, Addresses>>>> {
        self.0
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a name has no address.
enum Missing {
    /// The servers say so.
    Absent(&'static str),
    /// The servers did not answer.
    Unanswered(Unanswered),
}

/// Looks up the IPv6 and IPv4 addresses of `name` at once. A server that does not respond to one of both queries delays the result
/// only shortly.
async fn addresses(servers: &[SocketAddr], name: &Name) -> Result<Vec<IpAddr>, Missing> {
    let query = async |kind| ask(servers, &Query::query(name.clone(), kind)).await;
    let (v4, v6) = (pin!(query(RecordType::A)), pin!(query(RecordType::AAAA)));
    let answers = match select(v4, v6).await {
        Either::Left((v4, v6)) if has_addresses(&v4) => {
            [timeout(DELAY_OF_IPV6, v6).await.ok(), Some(v4)]
        }
        Either::Left((v4, v6)) => [Some(v6.await), Some(v4)],
        Either::Right((v6, v4)) if has_addresses(&v6) => {
            [Some(v6), timeout(DELAY_OF_IPV4, v4).await.ok()]
        }
        Either::Right((v6, v4)) => [Some(v6), Some(v4.await)],
    };
    let (mut found, mut missing) = (Vec::new(), None);
    for answer in answers.into_iter().flatten() {
        match answer {
            Ok(answer) => {
                found.extend(addresses_in(&answer));
                missing = missing.or(Some(Missing::Absent(if answer.is_unknown_name() {
                    "the name does not exist (NXDOMAIN)"
                } else {
                    "the name has no address"
                })));
            }
            Err(unanswered) => missing = Some(Missing::Unanswered(unanswered)),
        }
    }
    match missing {
        Some(missing) if found.is_empty() => Err(missing),
        _ => Ok(found),
    }
}

fn has_addresses(answer: &Result<Answer, Unanswered>) -> bool {
    (answer.as_ref()).is_ok_and(|answer| addresses_in(answer).next().is_some())
}

fn addresses_in(answer: &Answer) -> impl Iterator<Item = IpAddr> {
    answer
        .records()
        .iter()
        .filter_map(|record| match record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
}

/// The addresses of `host` in `text`, which has the format of hosts(5).
fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let host = host.trim_end_matches('.');
    let line = |line: &str| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words
            .any(|name| name.trim_end_matches('.').eq_ignore_ascii_case(host))
            .then_some(address)
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_name_servers_of_the_system() {
        let read = NameServers::parse(
            "# comment\n; comment\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 # first\nnonsense\nnameserver host\n\
             nameserver fe80::1%7\nnameserver fe80::1%lo\ndomain old.example\nsearch a.example b.example\n\
             options timeout:1 ndots:5 edns0\noptions rotate\noptions ndots:x\n",
        );
        let servers: Vec<_> = read.servers.iter().map(ToString::to_string).collect();
        assert_eq!(
            servers,
            [
                "192.0.2.1:53",
                "[2001:db8::1]:53",
                "[fe80::1%7]:53",
                "[fe80::1%1]:53"
            ]
        );
        assert_eq!(read.search, ["a.example", "b.example"]);
        assert_eq!(read.ndots, 5);
        let nothing = NameServers::parse("");
        assert_eq!(nothing.servers, [(Ipv4Addr::LOCALHOST, 53).into()]);
        assert_eq!((nothing.search.len(), nothing.ndots), (0, 1));
    }

    #[test]
    fn appends_the_search_domains_to_short_names() {
        let candidates = |host: &str, ndots| -> Vec<String> {
            let name_servers = NameServers {
                servers: Vec::new(),
                search: vec!["a.example".into(), "b.example.".into()],
                ndots,
            };
            let names = name_servers.candidates(host).unwrap();
            names.iter().map(ToString::to_string).collect()
        };
        let short = ["db.a.example.", "db.b.example.", "db."];
        assert_eq!(candidates("db", 1), short);
        assert_eq!(candidates("db.", 1), ["db."]);
        assert_eq!(
            candidates("db", 0),
            ["db.", "db.a.example.", "db.b.example."]
        );
        assert_eq!(
            candidates("x.db", 1),
            ["x.db.", "x.db.a.example.", "x.db.b.example."]
        );
        assert_eq!(
            candidates("x.db", 5),
            ["x.db.a.example.", "x.db.b.example.", "x.db."]
        );
        let long = ["a"; 124].join(".");
        assert_eq!(candidates(&long, 1), [format!("{long}.")]);
    }

    #[test]
    fn finds_all_addresses_in_the_hosts_file() {
        let text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n# 192.0.2.1 no\n192.0.2.2\tDb.example db # 192.0.2.3 no\nbad db\n";
        let find = |host| -> Vec<String> {
            let found = in_hosts(text, host);
            found.iter().map(ToString::to_string).collect()
        };
        assert_eq!(find("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(find("LOCALHOST."), ["127.0.0.1", "::1"]);
        assert_eq!(find("db.EXAMPLE"), ["192.0.2.2"]);
        assert_eq!(find("db"), ["192.0.2.2"]);
        assert_eq!(find("no"), [""; 0]);
    }
}
