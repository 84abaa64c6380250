//! Connects to hosts with several addresses: Happy Eyeballs, RFC 8305.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::net::TcpStream;

use super::{race::first_success, resolver::Resolver};

/// How long to wait for a connection before the next address is tried as well: the Connection Attempt Delay of RFC 8305.
const DELAY: Duration = Duration::from_millis(250);

/// Connects to hosts. All kinds of checks use it.
#[derive(Clone)]
pub(crate) struct Connector {
    resolver: Resolver,
    delay: Duration,
}

impl Connector {
    /// Looks up names with `resolver`.
    pub(super) const fn new(resolver: Resolver) -> Self {
        Self {
            resolver,
            delay: DELAY,
        }
    }

    /// Waits only for `delay` before it tries the next address, for callers that have little time.
    pub(crate) fn with_delay(&self, delay: Duration) -> Self {
        Self {
            delay,
            ..self.clone()
        }
    }

    pub(super) const fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Connects to the address of `host` that accepts a connection first. An address that is silent delays the next one only
    /// shortly.
    ///
    /// # Errors
    /// When the name cannot be resolved, or no address accepts a connection.
    pub(crate) async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let addresses = interleaved(&self.resolver.look_up(host).await?);
        let attempt = async |address: IpAddr| {
            let address = SocketAddr::from((address, port));
            let connected = TcpStream::connect(address).await;
            connected.map_err(|error| (address, error))
        };
        let stream = first_success(addresses, self.delay, attempt)
            .await
            .map_err(joined)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Alternates between the address families, beginning with IPv6.
fn interleaved(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let family = |six| {
        let addresses = addresses.iter().copied();
        addresses.filter(move |address| address.is_ipv6() == six)
    };
    let (mut v6, mut v4) = (family(true), family(false));
    let mut ordered = Vec::with_capacity(addresses.len());
    while ordered.len() < addresses.len() {
        ordered.extend(v6.next());
        ordered.extend(v4.next());
    }
    ordered
}

/// One error for the errors of all addresses.
fn joined(mut errors: Vec<(SocketAddr, io::Error)>) -> io::Error {
    let texts: Vec<String> = errors.iter().map(|(_, error)| error.to_string()).collect();
    if texts.windows(2).all(|pair| pair[0] == pair[1])
        && let Some((_, error)) = errors.pop()
    {
        return error;
    }
    let each: Vec<String> = errors
        .iter()
        .map(|(address, error)| format!("{address}: {error}"))
        .collect();
    io::Error::other(each.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternates_between_the_address_families() {
        let addresses = |text: &str| -> Vec<IpAddr> {
            let addresses = text.split_ascii_whitespace();
            addresses.map(|address| address.parse().unwrap()).collect()
        };
        for (found, ordered) in [
            ("", ""),
            ("::1 ::2", "::1 ::2"),
            ("1.1.1.1 ::1 ::2 ::3 2.2.2.2", "::1 1.1.1.1 ::2 2.2.2.2 ::3"),
            ("::1 1.1.1.1 2.2.2.2 3.3.3.3", "::1 1.1.1.1 2.2.2.2 3.3.3.3"),
        ] {
            assert_eq!(interleaved(&addresses(found)), addresses(ordered));
        }
    }

    #[test]
    fn names_the_address_of_each_error_if_they_differ() {
        let error = |octet, kind| {
            (
                SocketAddr::from(([127, 0, 0, octet], 1)),
                io::Error::from(kind),
            )
        };
        let (refused, timed_out) = (io::ErrorKind::ConnectionRefused, io::ErrorKind::TimedOut);
        let text = |errors| joined(errors).to_string();
        assert_eq!(
            text(vec![error(1, refused), error(2, refused)]),
            "connection refused"
        );
        assert_eq!(
            text(vec![error(1, refused), error(2, timed_out)]),
            "127.0.0.1:1: connection refused; 127.0.0.2:1: timed out"
        );
    }
}
