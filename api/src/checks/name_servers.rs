//! Queries to name servers, of which some may be slow, silent or broken.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{Record, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::race::first_success;

/// How long to wait for a response before the query is sent again, because a packet was lost. The sum is shorter than the default
/// timeout of a check, so that the reason of the failure is reported.
const WAITS: [Duration; 4] = [
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(1200),
    Duration::from_millis(2400),
];

/// How long to wait for a server before the next one is asked as well.
const NEXT_SERVER: Duration = Duration::from_millis(300);

/// The time limit of a query over TCP.
const TCP_LIMIT: Duration = Duration::from_millis(4500);

/// The maximum size of a response over UDP. No server sends more than 512 bytes unless asked to.
const MAX_UDP: usize = 4096;

/// A response with the answer of the zone: records, none of the requested type (no data), or that the name does not exist.
pub(super) struct Answer {
    message: Message,
}

impl Answer {
    /// Whether the name does not exist, with any type of records.
    pub(super) fn is_unknown_name(&self) -> bool {
        self.message.metadata.response_code == ResponseCode::NXDomain
    }

    /// The answer records, which include those of aliases.
    pub(super) fn records(&self) -> &[Record] {
        &self.message.answers
    }
}

/// Sends `query` to `servers` until one of them answers: first to the first, to the next one if a server is slow or fails, and
/// again to those that do not respond.
///
/// # Errors
/// When no server answers.
pub(super) async fn ask(servers: &[SocketAddr], query: &Query) -> Result<Answer, Unanswered> {
    let attempt = async |server: &SocketAddr| {
        let failed = |failure| (*server, failure);
        ask_one(*server, query).await.map_err(failed)
    };
    match first_success(servers, NEXT_SERVER, attempt).await {
        Ok(message) => Ok(Answer { message }),
        Err(failures) => Err(Unanswered {
            is_silent: failures
                .iter()
                .all(|(_, failure)| matches!(failure, Failure::Silent)),
            failures: failures
                .iter()
                .map(|(server, failure)| format!("{server}{failure}"))
                .collect(),
        }),
    }
}

/// That no server answered. The text is what each of them responded instead, or that it did not respond.
#[derive(Debug, thiserror::Error)]
#[error("{}", failures.join("; "))]
pub(super) struct Unanswered {
    failures: Vec<String>,
    /// Whether no server responded at all.
    pub(super) is_silent: bool,
}

/// Why a server did not answer a query; the text follows its address.
enum Failure {
    /// Nothing was received.
    Silent,
    /// The packets did not reach the server, or the connection failed.
    Io(io::Error),
    /// It responded with an error.
    Code(ResponseCode),
    /// It does not look up names for others, and knows nothing about this one.
    Referral,
    /// It sent something else than a DNS message.
    Malformed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => formatter.write_str(": no response"),
            Self::Io(error) => write!(formatter, ": {error}"),
            Self::Code(code) => write!(formatter, " responded with {}", mnemonic(*code)),
            Self::Referral => formatter.write_str(
                " responded with a referral: it neither has the zone nor looks up names for clients",
            ),
            Self::Malformed(reason) => write!(formatter, " sent a malformed response: {reason}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The name of a response code, as in RFC 1035 and RFC 2136.
fn mnemonic(code: ResponseCode) -> String {
    match code {
        ResponseCode::FormErr => "FORMERR (the query is malformed)".into(),
        ResponseCode::ServFail => "SERVFAIL (server failure)".into(),
        ResponseCode::NotImp => "NOTIMP (not implemented)".into(),
        ResponseCode::Refused => "REFUSED (query refused)".into(),
        other => format!("the error code {} ({other})", u16::from(other)),
    }
}

/// What a message is to the sender of a query.
enum Received {
    Answer(Message),
    /// The rest follows over TCP.
    Truncated,
    Failure(Failure),
}

async fn ask_one(server: SocketAddr, query: &Query) -> Result<Message, Failure> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(query.clone());
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let received = match over_udp(server, &question, &bytes).await? {
        Received::Truncated => timeout(TCP_LIMIT, over_tcp(server, &question, &bytes))
            .await
            .unwrap_or(Err(Failure::Silent))?,
        received => received,
    };
    match received {
        Received::Answer(answer) => Ok(answer),
        Received::Failure(failure) => Err(failure),
        Received::Truncated => Err(Failure::Malformed("truncated over TCP".into())),
    }
}

/// Sends the query, repeatedly if there is no response.
async fn over_udp(
    server: SocketAddr,
    question: &Message,
    bytes: &[u8],
) -> Result<Received, Failure> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Each query has its own port, which is difficult to guess.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    for wait in WAITS {
        socket.send(bytes).await?;
        if let Ok(received) = timeout(wait, receive(&socket, question)).await {
            return received.map_err(Failure::Io);
        }
    }
    Err(Failure::Silent)
}

/// Receives the response to `question`; ignores late and forged responses.
async fn receive(socket: &UdpSocket, question: &Message) -> io::Result<Received> {
    loop {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            refused(socket)?;
        }
        // Not across the wait, so that many pending queries need no memory for it.
        let mut buffer = [0; MAX_UDP];
        match socket.try_recv(&mut buffer) {
            Ok(length) => {
                if let Some(received) = classify(&buffer[..length], question) {
                    return Ok(received);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns the error of a socket, such as that nothing listens on the port.
fn refused(socket: &UdpSocket) -> io::Result<()> {
    let error = || {
        Err(socket
            .take_error()?
            .unwrap_or(io::ErrorKind::WouldBlock.into()))
    };
    match socket.try_io(Interest::ERROR, error) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn over_tcp(
    server: SocketAddr,
    question: &Message,
    bytes: &[u8],
) -> Result<Received, Failure> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], bytes].concat())
        .await?;
    let mut buffer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut buffer).await?;
    let other = || Failure::Malformed("it is not a response to the query".into());
    classify(&buffer, question).ok_or_else(other)
}

/// What `bytes` is, if it is a response to `question`.
fn classify(bytes: &[u8], question: &Message) -> Option<Received> {
    // The first three bytes of a message: the ID, and flags.
    let [first, second, flags, ..] = *bytes else {
        return None;
    };
    if u16::from_be_bytes([first, second]) != question.metadata.id || flags & 0x80 == 0 {
        return None;
    }
    let truncated = flags & 0x02 != 0;
    let message = match Message::from_vec(bytes) {
        Ok(message) => message,
        // Cut in the middle of a record.
        Err(_) if truncated => return Some(Received::Truncated),
        Err(error) => return Some(Received::Failure(Failure::Malformed(error.to_string()))),
    };
    let code = message.metadata.response_code;
    let is_answer = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
    // Some servers do not repeat a query that they reject.
    let repeated =
        message.queries == question.queries || (message.queries.is_empty() && !is_answer);
    if message.metadata.message_type != MessageType::Response || !repeated {
        return None;
    }
    Some(if truncated {
        Received::Truncated
    } else if !is_answer {
        Received::Failure(Failure::Code(code))
    } else if is_referral(&message) {
        Received::Failure(Failure::Referral)
    } else {
        Received::Answer(message)
    })
}

/// Whether the message only names the servers of the zone.
fn is_referral(message: &Message) -> bool {
    let types = |record: &Record| record.record_type();
    message.metadata.response_code == ResponseCode::NoError
        && !message.metadata.authoritative
        && !message.metadata.recursion_available
        && message.answers.is_empty()
        && !message
            .authorities
            .iter()
            .map(types)
            .any(|it| it == RecordType::SOA)
        && message
            .authorities
            .iter()
            .map(types)
            .any(|it| it == RecordType::NS)
}
