//! TCP: the server accepts a connection.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, ToSocketAddrs},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{net::TcpStream, task::spawn_blocking};

use crate::checks::probe_error::ProbeError;

/// A target, with the expected response.
#[derive(Clone, Debug)]
pub struct Target {
    /// The host name or IP address.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl Target {
    /// Checks the target without connecting to anything.
    ///
    /// # Errors
    /// When the target can never be probed.
    pub fn validate(&self) -> Result<(), String> {
        validate(&self.host, self.port)
    }
}

/// Validates a host and a port to connect to.
pub(super) fn validate(host: &str, port: u16) -> Result<(), String> {
    if host.is_empty() || host.contains(['/', '@', ' ']) {
        return Err("expected a host: a name or an address".into());
    }
    if port == 0 {
        return Err("expected a port from 1 to 65535".into());
    }
    Ok(())
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(&self.host, self.port, formatter)
    }
}

/// Writes `host:port`, with brackets around an IPv6 address.
pub(super) fn display(host: &str, port: u16, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    if host.contains(':') {
        write!(formatter, "[{host}]:{port}")
    } else {
        write!(formatter, "{host}:{port}")
    }
}

/// Probes one target.
pub struct Probe {
    target: Target,
}

impl Probe {
    /// Creates a probe of `target`.
    #[must_use]
    pub const fn new(target: Target) -> Self {
        Self { target }
    }

    /// Probes the target once.
    ///
    /// # Errors
    /// When the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        connect(&self.target.host, self.target.port)
            .await
            .map(drop)
            .map_err(|error| ProbeError::of(&error, None))
    }
}

/// Connects to the first address of `host` that accepts a connection.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last_error = None;
    for address in look_up(host).await?.iter() {
        match TcpStream::connect((*address, port)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last_error = Some(error),
        }
    }
    Err(last_error.unwrap_or_else(|| io::Error::other("the name has no address")))
}

type Addresses = Result<Arc<[IpAddr]>, Arc<str>>;

/// The pending look-ups. A look-up that hangs blocks a thread and cannot be cancelled, so there is only one per name.
static LOOK_UPS: LazyLock<Mutex<HashMap<String, Shared<BoxFuture<'static, Addresses>>>>> =
    LazyLock::new(Mutex::default);

/// Looks up the addresses of `host` with the resolver of the system.
pub(super) async fn look_up(host: &str) -> io::Result<Arc<[IpAddr]>> {
    if let Ok(address) = host.parse() {
        return Ok(Arc::new([address]));
    }
    let pending = look_ups()
        .entry(host.to_owned())
        .or_insert_with(|| look_up_with_system(host.to_owned()).boxed().shared())
        .clone();
    pending
        .await
        .map_err(|reason| io::Error::other(reason.to_string()))
}

/// Removes the entry of a look-up when dropped, even if its thread never started.
struct Entry(String);

impl Drop for Entry {
    fn drop(&mut self) {
        look_ups().remove(&self.0);
    }
}

async fn look_up_with_system(host: String) -> Addresses {
    spawn_blocking(move || {
        let host = Entry(host);
        match (host.0.as_str(), 0).to_socket_addrs() {
            Ok(addresses) => Ok(addresses.map(|address| address.ip()).collect()),
            Err(error) => Err(error.to_string().into()),
        }
    })
    .await
    .unwrap_or_else(|_| Err("the service is shutting down".into()))
}

fn look_ups() -> MutexGuard<'static, HashMap<String, Shared<BoxFuture<'static, Addresses>>>> {
    LOOK_UPS.lock().unwrap_or_else(PoisonError::into_inner)
}
