//! DNS: a name has records, optionally specific ones.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use hickory_proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use crate::checks::probe_error::ProbeError;

/// Lists the name servers of the system.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A target, with the expected response.
#[derive(Clone, Debug)]
pub struct Target {
    /// The domain name that is looked up.
    pub name: String,
    /// The type of the records.
    pub record: RecordType,
    /// The name server; `None` selects the first one of the system.
    pub server: Option<SocketAddr>,
    /// Records that must be in the response, which may contain others; if empty, any record is enough.
    pub expected: Vec<String>,
}

impl Target {
    /// Checks the target without connecting to anything.
    ///
    /// # Errors
    /// When the target can never be probed.
    pub fn validate(&self) -> Result<(), String> {
        self.query().map(drop)
    }

    fn query(&self) -> Result<Query, String> {
        let mut name = Name::from_utf8(&self.name)
            .map_err(|error| format!("{:?} is not a domain name: {error}", self.name))?;
        if self.name.is_empty() {
            return Err("expected a domain name".into());
        }
        // Fully qualified, so that the search list of the system does not apply.
        name.set_fqdn(true);
        Ok(Query::query(name, self.record))
    }

    /// Normalizes the text of a record for comparison: names in lower case without a trailing dot, addresses in their shortest
    /// form.
    fn normalize(&self, record: &str) -> String {
        if self.record == RecordType::TXT {
            return record.trim_matches('"').to_owned();
        }
        match record.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => record.trim_end_matches('.').to_ascii_lowercase(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.name, self.record)
    }
}

/// Probes one target.
pub struct Probe {
    target: Target,
    query: Result<Query, ProbeError>,
}

impl Probe {
    /// Creates a probe of `target`.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            query: target.query().map_err(ProbeError),
            target,
        }
    }

    /// Probes the target once.
    ///
    /// # Errors
    /// When the target does not respond as expected.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        let query = self.query.as_ref().map_err(Clone::clone)?;
        let server = match self.target.server {
            Some(server) => server,
            None => system_server()?,
        };
        let answer = exchange(server, query)
            .await
            .map_err(|error| ProbeError(format!("{server}: {}", ProbeError::of(&error, None))))?;
        match answer.metadata.response_code {
            ResponseCode::NoError => self.judge(&answer),
            ResponseCode::NXDomain => Err(ProbeError("the name does not exist (NXDOMAIN)".into())),
            code => Err(ProbeError(format!("{server} responded: {code}"))),
        }
    }

    fn judge(&self, answer: &Message) -> Result<(), ProbeError> {
        let found: Vec<String> = answer
            .answers
            .iter()
            .filter(|record| record.record_type() == self.target.record)
            .map(|record| self.target.normalize(&record.data.to_string()))
            .collect();
        if found.is_empty() {
            return Err(ProbeError(format!(
                "the name has no record of type {}",
                self.target.record
            )));
        }
        let mut expected = self.target.expected.iter();
        match expected.find(|expected| !found.contains(&self.target.normalize(expected))) {
            Some(missing) => Err(ProbeError::without(
                &format!("{missing} is not among the records: {}", found.join(", ")),
                None,
            )),
            None => Ok(()),
        }
    }
}

/// The first name server of the system. The file is read for each probe, because it may change.
fn system_server() -> Result<SocketAddr, ProbeError> {
    let text = fs::read(RESOLV_CONF)
        .map_err(|error| ProbeError(format!("cannot read {RESOLV_CONF}: {error}")))?;
    let server = resolv_conf::Config::parse(&text)
        .ok()
        .and_then(|config| config.nameservers.into_iter().next())
        .ok_or_else(|| ProbeError(format!("{RESOLV_CONF} lists no name server")))?;
    Ok((IpAddr::from(&server), 53).into())
}

/// Queries over UDP, and over TCP if the response is truncated.
async fn exchange(server: SocketAddr, query: &Query) -> io::Result<Message> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(query.clone());
    let bytes = question.to_vec().map_err(io::Error::other)?;

    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    let answer = loop {
        let length = socket.recv(&mut buffer).await?;
        // Ignores late and forged responses.
        if let Some(answer) = answer(&buffer[..length], &question) {
            break answer;
        }
    };
    if !answer.metadata.truncation {
        return Ok(answer);
    }

    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], &bytes].concat())
        .await?;
    let length = stream.read_u16().await?;
    buffer.resize(length.into(), 0);
    stream.read_exact(&mut buffer).await?;
    self::answer(&buffer, &question)
        .ok_or_else(|| io::Error::other("the response does not match the query"))
}

/// The message in `bytes`, if it is a response to `question`.
fn answer(bytes: &[u8], question: &Message) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    (message.metadata.id == question.metadata.id
        && message.metadata.message_type == MessageType::Response
        && message.queries == question.queries)
        .then_some(message)
}
