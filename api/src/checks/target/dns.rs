//! DNS: that a name has records, or just these.

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

use crate::checks::trouble::Trouble;

/// Names the system's servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What is asked, and what is expected.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name.
    pub name: String,
    /// The type of the records.
    pub record: RecordType,
    /// Who is asked; the system's first server where nobody is named.
    pub server: Option<SocketAddr>,
    /// The records that have to be there, among others; where there are none, any will do.
    pub expected: Vec<String>,
}

impl Target {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// Where it can never be asked.
    pub fn validate(&self) -> Result<(), String> {
        self.query().map(drop)
    }

    fn query(&self) -> Result<Query, String> {
        let mut name = Name::from_utf8(&self.name)
            .map_err(|error| format!("{:?} is not a name: {error}", self.name))?;
        if self.name.is_empty() {
            return Err("expected a name".into());
        }
        // It is asked for as it stands, without the system's search list.
        name.set_fqdn(true);
        Ok(Query::query(name, self.record))
    }

    /// The text of a record as it is compared: names end without a dot, in either case, and addresses have their shortest form.
    fn normal(&self, record: &str) -> String {
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

/// Asks one target.
pub struct Probe {
    target: Target,
    query: Result<Query, Trouble>,
}

impl Probe {
    /// What asks `target`.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            query: target.query().map_err(Trouble),
            target,
        }
    }

    /// Asks once.
    ///
    /// # Errors
    /// Where the target does not answer, or not as expected.
    pub async fn ask(&mut self) -> Result<(), Trouble> {
        let query = self.query.as_ref().map_err(Clone::clone)?;
        let server = match self.target.server {
            Some(server) => server,
            None => system_server()?,
        };
        let answer = exchange(server, query)
            .await
            .map_err(|error| Trouble(format!("{server}: {}", Trouble::of(&error, None))))?;
        match answer.metadata.response_code {
            ResponseCode::NoError => self.judge(&answer),
            ResponseCode::NXDomain => Err(Trouble("the name does not exist (NXDOMAIN)".into())),
            code => Err(Trouble(format!("{server} answers: {code}"))),
        }
    }

    fn judge(&self, answer: &Message) -> Result<(), Trouble> {
        let found: Vec<String> = answer
            .answers
            .iter()
            .filter(|record| record.record_type() == self.target.record)
            .map(|record| self.target.normal(&record.data.to_string()))
            .collect();
        if found.is_empty() {
            return Err(Trouble(format!(
                "the name has no record of type {}",
                self.target.record
            )));
        }
        let mut expected = self.target.expected.iter();
        match expected.find(|expected| !found.contains(&self.target.normal(expected))) {
            Some(missing) => Err(Trouble::without(
                &format!("{missing} is not among the records: {}", found.join(", ")),
                None,
            )),
            None => Ok(()),
        }
    }
}

/// The first server that the system names. Read each time: it may change, and is short.
fn system_server() -> Result<SocketAddr, Trouble> {
    let text = fs::read(RESOLV_CONF)
        .map_err(|error| Trouble(format!("cannot read {RESOLV_CONF}: {error}")))?;
    let server = resolv_conf::Config::parse(&text)
        .ok()
        .and_then(|config| config.nameservers.into_iter().next())
        .ok_or_else(|| Trouble(format!("{RESOLV_CONF} names no server")))?;
    Ok((IpAddr::from(&server), 53).into())
}

/// Asks over UDP, and over TCP where the answer does not fit.
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
        // Anything else is somebody's who guesses, or late.
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
        .ok_or_else(|| io::Error::other("the answer is to another question"))
}

/// The message in `bytes`, if it answers `question`.
fn answer(bytes: &[u8], question: &Message) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    (message.metadata.id == question.metadata.id
        && message.metadata.message_type == MessageType::Response
        && message.queries == question.queries)
        .then_some(message)
}
