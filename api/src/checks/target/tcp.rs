//! TCP: that a connection is accepted.

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

use crate::checks::trouble::Trouble;

/// What is asked, and what is expected.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name or address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Target {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// Where it can never be asked.
    pub fn validate(&self) -> Result<(), String> {
        validate(&self.host, self.port)
    }
}

/// Says what is wrong with a place to connect to.
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

/// Writes `host:port`, with the brackets that an address of IPv6 needs.
pub(super) fn display(host: &str, port: u16, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    if host.contains(':') {
        write!(formatter, "[{host}]:{port}")
    } else {
        write!(formatter, "{host}:{port}")
    }
}

/// Asks one target.
pub struct Probe {
    target: Target,
}

impl Probe {
    /// What asks `target`.
    #[must_use]
    pub const fn new(target: Target) -> Self {
        Self { target }
    }

    /// Asks once.
    ///
    /// # Errors
    /// Where the target does not answer, or not as expected.
    pub async fn ask(&mut self) -> Result<(), Trouble> {
        connect(&self.target.host, self.target.port)
            .await
            .map(drop)
            .map_err(|error| Trouble::of(&error, None))
    }
}

/// A connection to the first address of `host` that accepts one.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut refusal = None;
    for address in look_up(host).await?.iter() {
        match TcpStream::connect((*address, port)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.unwrap_or_else(|| io::Error::other("the name has no address")))
}

type Addresses = Result<Arc<[IpAddr]>, Arc<str>>;

/// The look-ups under way. One that hangs keeps a thread and cannot be ended: nobody begins a second one for the same name.
static LOOK_UPS: LazyLock<Mutex<HashMap<String, Shared<BoxFuture<'static, Addresses>>>>> =
    LazyLock::new(Mutex::default);

/// The addresses of `host`, as the system knows them.
pub(super) async fn look_up(host: &str) -> io::Result<Arc<[IpAddr]>> {
    if let Ok(address) = host.parse() {
        return Ok(Arc::new([address]));
    }
    let under_way = look_ups()
        .entry(host.to_owned())
        .or_insert_with(|| ask_system(host.to_owned()).boxed().shared())
        .clone();
    under_way
        .await
        .map_err(|reason| io::Error::other(reason.to_string()))
}

/// Ends the entry of a look-up: also where its thread never began.
struct Entry(String);

impl Drop for Entry {
    fn drop(&mut self) {
        look_ups().remove(&self.0);
    }
}

async fn ask_system(host: String) -> Addresses {
    spawn_blocking(move || {
        let host = Entry(host);
        match (host.0.as_str(), 0).to_socket_addrs() {
            Ok(addresses) => Ok(addresses.map(|address| address.ip()).collect()),
            Err(error) => Err(error.to_string().into()),
        }
    })
    .await
    .unwrap_or_else(|_| Err("the service ends".into()))
}

fn look_ups() -> MutexGuard<'static, HashMap<String, Shared<BoxFuture<'static, Addresses>>>> {
    LOOK_UPS.lock().unwrap_or_else(PoisonError::into_inner)
}
