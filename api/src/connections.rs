//! Limits the number of connections, their memory and their duration.
//!
//! This layer is below actix-web, which can only stop accepting connections at a limit; this one responds to excess connections
//! with 503.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    num::NonZero,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    thread,
    time::{Duration, SystemTime},
};

use actix_http::{HttpService, KeepAlive, Request};
use actix_server::GracefulShutdownSignal;
use actix_service::{Service as _, ServiceFactory, apply_fn_factory};
use actix_web::{
    body::{BodySize, BoxBody, MessageBody},
    dev::ServiceResponse,
    http::{ConnectionType, Method, StatusCode, header::HttpDate},
    rt,
    web::Bytes,
};
use futures_util::TryFutureExt as _;
use rustix::{
    io::Errno,
    process::{Resource, getrlimit, setrlimit},
};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep, timeout},
};

use crate::{
    memory,
    problem::{PROBLEM_JSON, Problem},
};

/// How long a client may leave sent data unacknowledged.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait until a rejected client closes the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The maximum size of a request head: the limit of Node.js, and twice the limit of nginx for a line.
const MAX_HEAD: usize = 16 * 1024;

/// The size of the chunks in which response bodies are written. Together with [`WRITE_BUFFER`], a chunk fits into 16 KiB. The buffer
/// of a connection has 8 KiB at first, grows with the largest chunk and never shrinks. `/api/v1/checks` with 20 checks is 9 KB:
/// written in two chunks, it is a quarter slower.
const WRITE_CHUNK: usize = 15 * 1024;

/// The size of the write buffer of actix-http, in bytes.
const WRITE_BUFFER: usize = 1024;

/// The number of bytes per read. Requests are passed to actix-http one at a time, because it would parse all requests that it
/// has, 8 KiB each, before it responds to the first.
const READ_CHUNK: usize = 1024;

/// The size in bytes up to which a request head needs no permit for a large connection.
const SMALL_REQUEST: usize = 4 * 1024;

/// The memory of the service without connections, and of the kernel for data in flight, in bytes.
const BASE_MEMORY: u64 = 16 << 20;

/// The maximum memory of a connection. Measured: 10 KiB in the process when idle, most of it buffers of actix-http, 16 KiB more
/// when both buffers are full, and 3 KiB in the kernel.
const PER_CONNECTION: u64 = 32 << 10;

/// The memory of a connection with a large request head, or whose client does not read the response.
const PER_LARGE_CONNECTION: u64 = 64 << 10;

/// The memory that is assumed if the system does not report any.
const ASSUMED_MEMORY: u64 = 256 << 20;

/// The maximum default limit; a status service has few clients.
const MAX_CONNECTIONS: u64 = 50_000;

/// The number of file descriptors for the service itself and its checks.
const RESERVED_FILES: u64 = 256;

/// The maximum number of workers; more would only cost memory.
const MAX_WORKERS: usize = 4;

thread_local! {
    /// The connection that this worker is polling.
    static CURRENT: RefCell<Option<Rc<ClientSocket>>> = const { RefCell::new(None) };
}

/// Limits the number of open connections, and how long they may be idle.
#[derive(Clone, Debug)]
pub struct ConnectionLimiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: usize,
    workers: usize,
    request_timeout: Duration,
    permits: Arc<Semaphore>,
    /// Permits for connections with a large request head or a slow client.
    large: Arc<Semaphore>,
    /// Permits for rejected connections that wait for the client to close.
    leaving: Arc<Semaphore>,
}

impl ConnectionLimiter {
    /// Limits connections to `configured`, or to the number that the memory and the maximum of open files allow. Raises the limit
    /// of open files to its hard limit. A client may take `request_timeout` to send a request, or to be idle.
    #[must_use]
    pub fn new(configured: Option<usize>, request_timeout: Duration) -> Self {
        let memory = memory::limit();
        let files = raise_open_files();
        let connections = configured.unwrap_or_else(|| fitting(memory, files));
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        tracing::info!(
            connections,
            asked = configured.is_some(),
            memory,
            files,
            "limited connections"
        );
        let large = memory.unwrap_or(ASSUMED_MEMORY) / 8 / PER_LARGE_CONNECTION;
        Self(Arc::new(Inner {
            connections,
            workers: workers.min(MAX_WORKERS),
            request_timeout,
            permits: semaphore(connections),
            large: semaphore(large.clamp(16, 4096) as usize),
            leaving: semaphore(leaving(connections)),
        }))
    }

    /// The number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.0.workers
    }

    /// The number of connections that each worker accepts, including rejected ones; further connections wait in the kernel.
    #[must_use]
    pub fn each_worker(&self) -> usize {
        (self.0.connections + leaving(self.0.connections)).div_ceil(self.0.workers)
    }

    /// The number of open connections.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.connections - self.0.permits.available_permits()
    }

    /// Whether the limit is almost reached, so that a new connection is closed after its first response.
    fn is_crowded(&self) -> bool {
        self.0.permits.available_permits() <= self.0.connections / 8
    }
}

fn semaphore(permits: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits))
}

fn leaving(connections: usize) -> usize {
    connections.clamp(16, 1024)
}

/// The number of connections that fit into `memory` bytes and `files` descriptors.
fn fitting(memory: Option<u64>, files: Option<u64>) -> usize {
    let memory = memory.unwrap_or(ASSUMED_MEMORY);
    // One eighth is reserved for large connections. The clamp below leaves some connections even with hardly any memory.
    let by_memory = (memory - memory / 8).saturating_sub(BASE_MEMORY) / PER_CONNECTION;
    // Rejected connections need a file descriptor, too.
    let by_files = files.map_or(MAX_CONNECTIONS, |files| {
        let files = files.saturating_sub(RESERVED_FILES);
        (files / 2).max(files.saturating_sub(1024))
    });
    by_memory.min(by_files).clamp(64, MAX_CONNECTIONS) as usize
}

/// Raises the limit of open files to its hard limit, and returns the limit.
fn raise_open_files() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        Err(_) => before,
    }
}

/// Listens on `address`. `[::]` means every IPv6 and IPv4 address; on a system without IPv6, every IPv4 address.
///
/// # Errors
/// When the address is in use or not permitted.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = if address.ip() == Ipv6Addr::UNSPECIFIED {
        bind_both(address).or_else(|error| match Errno::from_io_error(&error) {
            Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port()))
            }
            _ => Err(error),
        })
    } else {
        TcpListener::bind(address)
    }?;
    prepare(&listener)?;
    Ok(listener)
}

/// Binds an IPv6 address and the IPv4 address that corresponds to it, whatever the default of the system is.
fn bind_both(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    // As the standard library does, so that a restart does not wait for old connections.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Starts listening, and sets the options of the listener, which its connections inherit.
fn prepare(listener: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(listener);
    // The backlog for clients that connect while all workers are at their limit.
    socket.listen(4096)?;
    // Requests are small.
    socket.set_recv_buffer_size(2 * MAX_HEAD)?;
    // Responses are written in chunks; the last one must not wait for an acknowledgement.
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        // Limits the kernel memory of responses that a client does not read.
        socket.set_tcp_notsent_lowat(WRITE_CHUNK as u32)?;
        // Closes the connection of a client that does not acknowledge data.
        socket.set_tcp_user_timeout(Some(SEND_TIMEOUT))?;
    }
    Ok(())
}

/// Serves `app` to connections within the limit, until `drain`.
pub fn http<A>(
    limiter: &ConnectionLimiter,
    drain: GracefulShutdownSignal,
    app: A,
) -> impl ServiceFactory<
    TcpStream,
    Config = (),
    Response = (),
    Error = actix_http::error::DispatchError,
    InitError = (),
> + use<A>
where
    A: ServiceFactory<
            Request,
            Config = (),
            Response = ServiceResponse,
            Error = actix_web::Error,
            InitError = (),
        > + 'static,
{
    let app = apply_fn_factory(app, |request, app: &A::Service| {
        let active = ActiveRequest::new();
        app.call(request)
            .map_ok(|response| active.respond(response))
    });
    let http = HttpService::build()
        .graceful_shutdown_signal(move || {
            let drain = drain.clone();
            async move { drain.notified().await }
        })
        .keep_alive(KeepAlive::Timeout(limiter.0.request_timeout))
        // The timeout of actix-http applies only to the first request; `Connection` has its own.
        .client_request_timeout(Duration::ZERO)
        .client_disconnect_timeout(CLOSE_TIMEOUT)
        // Otherwise a disconnected event listener is noticed only at the second heartbeat.
        .h1_allow_half_closed(false)
        .h1_write_buffer_size(WRITE_BUFFER)
        .h1(app);
    let limiter = limiter.clone();
    apply_fn_factory(http, move |socket: TcpStream, http| {
        let Ok(permit) = limiter.0.permits.clone().try_acquire_owned() else {
            let rejection = Some(Rejection::Full);
            return Connection::Rejected(Box::pin(reject(socket, rejection, limiter.clone())));
        };
        let peer: Option<SocketAddr> = socket.peer_addr().ok();
        let client = Rc::new(ClientSocket::new(socket, limiter.clone()));
        Connection::Served {
            http: Box::pin(http.call((Stream(client.clone()), peer))),
            client,
            timer: None,
            _permit: permit,
        }
    })
}

/// Marks the connection as busy until the response is complete.
struct ActiveRequest(Option<Rc<ClientSocket>>);

impl ActiveRequest {
    fn new() -> Self {
        let client = CURRENT.with_borrow(Clone::clone);
        if let Some(client) = &client {
            client.busy.set(true);
        }
        Self(client)
    }

    fn respond(self, mut response: ServiceResponse) -> ServiceResponse<ChunkedBody> {
        if self.0.as_ref().is_some_and(|client| client.brief) {
            let head = response.response_mut().head_mut();
            head.set_connection_type(ConnectionType::Close);
        }
        let without_body = response.request().method() == Method::HEAD;
        response.map_body(|_, body| ChunkedBody {
            body: if without_body {
                BoxBody::new(OmittedBody(body.size()))
            } else {
                body
            },
            rest: Bytes::new(),
            _active: self,
        })
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if let Some(client) = &self.0 {
            client.busy.set(false);
        }
    }
}

/// A response body that is sent in chunks of [`WRITE_CHUNK`] bytes.
struct ChunkedBody {
    body: BoxBody,
    rest: Bytes,
    _active: ActiveRequest,
}

impl MessageBody for ChunkedBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_next(cx)) {
                Some(Ok(bytes)) => self.rest = bytes,
                end => return Poll::Ready(end),
            }
        }
        let size = self.rest.len().min(WRITE_CHUNK);
        Poll::Ready(Some(Ok(self.rest.split_to(size))))
    }
}

/// The body of a response to `HEAD`, of which only the size is sent. The real body is dropped at once, because actix-http would
/// wait for its end before it reads the next request, and an event stream has none.
struct OmittedBody(BodySize);

impl MessageBody for OmittedBody {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        self.0
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        Poll::Ready(None)
    }
}

/// A served or rejected connection.
enum Connection<H> {
    Served {
        // Boxed, because the task of the server would hold it twice.
        http: Pin<Box<H>>,
        client: Rc<ClientSocket>,
        timer: Option<Pin<Box<Sleep>>>,
        _permit: OwnedSemaphorePermit,
    },
    Rejected(Pin<Box<dyn Future<Output = ()>>>),
}

impl<H: Future<Output = Result<(), E>>, E> Future for Connection<H> {
    type Output = Result<(), E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Rejected(future) => future.as_mut().poll(cx).map(Ok),
            Self::Served {
                http,
                client,
                timer,
                ..
            } => {
                CURRENT.set(Some(client.clone()));
                let end = http.as_mut().poll(cx);
                CURRENT.set(None);
                if let Poll::Ready(end) = end {
                    if end.is_err() {
                        // The request was not read completely: closing now would send a reset, which may overtake the response.
                        client.end(None);
                    }
                    return Poll::Ready(end);
                }
                if client.has_more() {
                    cx.waker().wake_by_ref();
                }
                // A timer is created only if the request does not arrive and complete at once.
                if !client.awaits_request() {
                    *timer = None;
                    return Poll::Pending;
                }
                ready!(
                    timer
                        .get_or_insert_with(|| Box::pin(sleep(client.limiter.0.request_timeout)))
                        .as_mut()
                        .poll(cx)
                );
                client.end((client.unanswered.get() > 0).then_some(Rejection::Late));
                // Polls again, so that the HTTP service sees the end of the stream.
                http.as_mut().poll(cx)
            }
        }
    }
}

/// The socket of a client, and the state of its connection.
struct ClientSocket {
    /// `None` after the client is rejected.
    socket: RefCell<Option<TcpStream>>,
    limiter: ConnectionLimiter,
    /// Whether the connection is closed after its first response.
    brief: bool,
    /// Whether a request is being processed.
    busy: Cell<bool>,
    /// Whether the client does not read the response.
    stalled: Cell<bool>,
    /// Received bytes that must wait until the connection is neither busy nor stalled.
    rest: RefCell<Vec<u8>>,
    /// The number of bytes received since the last write.
    unanswered: Cell<usize>,
    /// Whether received bytes are processed before the next read.
    pause: Cell<bool>,
    /// Whether any response was sent.
    answered: Cell<bool>,
    large: RefCell<Option<OwnedSemaphorePermit>>,
}

impl ClientSocket {
    fn new(socket: TcpStream, limiter: ConnectionLimiter) -> Self {
        Self {
            socket: RefCell::new(Some(socket)),
            brief: limiter.is_crowded(),
            limiter,
            busy: Cell::new(false),
            stalled: Cell::new(false),
            rest: RefCell::default(),
            unanswered: Cell::new(0),
            pause: Cell::new(false),
            answered: Cell::new(false),
            large: RefCell::new(None),
        }
    }

    /// Whether the client has started a request or has not sent its first one.
    fn awaits_request(&self) -> bool {
        !self.busy.get() && (!self.answered.get() || self.unanswered.get() > 0)
    }

    /// Whether the next request must wait.
    fn is_held(&self) -> bool {
        self.busy.get() || self.stalled.get()
    }

    /// Whether a received request can be processed now.
    fn has_more(&self) -> bool {
        !self.is_held() && !self.rest.borrow().is_empty()
    }

    /// Acquires a permit for a large connection; returns false if there is none.
    fn grow(&self) -> bool {
        let mut large = self.large.borrow_mut();
        if large.is_none() {
            *large = self.limiter.0.large.clone().try_acquire_owned().ok();
        }
        large.is_some()
    }

    /// Passes the first request in `bytes`, or its beginning, to the HTTP service. Returns the number of bytes.
    fn hand_over(&self, bytes: &[u8], buffer: &mut ReadBuf<'_>) -> usize {
        let size = end_of_head(bytes).min(buffer.remaining());
        let unanswered = self.unanswered.get() + size;
        self.unanswered.set(unanswered);
        if unanswered > MAX_HEAD {
            self.end(Some(Rejection::HeadTooLarge));
        } else if unanswered > SMALL_REQUEST && !self.grow() {
            self.end(Some(Rejection::Full));
        } else {
            buffer.put_slice(&bytes[..size]);
        }
        size
    }

    /// Rejects the client; for the HTTP service, the connection has ended.
    fn end(&self, rejection: Option<Rejection>) {
        if let Some(socket) = self.socket.borrow_mut().take() {
            // After a response, the client could mistake a rejection for the response to its next request.
            let rejection = rejection.filter(|_| !self.answered.get());
            rt::spawn(reject(socket, rejection, self.limiter.clone()));
        }
    }
}

/// The stream that the HTTP service reads and writes.
struct Stream(Rc<ClientSocket>);

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let client = &*self.0;
        if client.pause.replace(false) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut rest = client.rest.borrow_mut();
        loop {
            let held = client.is_held();
            if !held && !rest.is_empty() {
                let size = client.hand_over(&rest, buffer);
                *rest = rest.split_off(size);
                break;
            }
            if rest.len() >= READ_CHUNK {
                return Poll::Pending;
            }
            let mut step = [0; READ_CHUNK];
            let mut step = ReadBuf::new(&mut step[rest.len()..]);
            match client.socket.borrow_mut().as_mut() {
                Some(socket) => ready!(Pin::new(socket).poll_read(cx, &mut step))?,
                None => return Poll::Ready(Ok(())),
            }
            let step = step.filled();
            if step.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if !held {
                let size = client.hand_over(step, buffer);
                rest.extend_from_slice(&step[size..]);
                client.pause.set(step.len() == READ_CHUNK);
                break;
            }
            // The bytes must wait; but the next read may find the end of the stream.
            rest.extend_from_slice(step);
        }
        if !rest.is_empty() {
            client.pause.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

/// The size of the first request head in `bytes`, or of all bytes if it is incomplete.
fn end_of_head(bytes: &[u8]) -> usize {
    let mut size = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        size += line.len();
        if matches!(line, b"\r\n" | b"\n") {
            break;
        }
    }
    size
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let client = &*self.0;
        let written = match client.socket.borrow_mut().as_mut() {
            Some(socket) => Pin::new(socket).poll_write(cx, bytes),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        match written {
            Poll::Ready(Ok(count)) => {
                client.answered.set(true);
                client.unanswered.set(0);
                if count == bytes.len() {
                    client.stalled.set(false);
                    client.large.replace(None);
                }
            }
            Poll::Pending => {
                client.stalled.set(true);
                if !client.grow() {
                    return Poll::Ready(Err(io::Error::other("too many slow clients")));
                }
            }
            Poll::Ready(Err(_)) => {}
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let more = match self.0.socket.borrow_mut().as_mut() {
            Some(socket) => {
                ready!(Pin::new(&mut *socket).poll_shutdown(cx))?;
                matches!(socket.try_read(&mut [0; 16]), Ok(1..))
            }
            None => false,
        };
        if more {
            // Closing now would send a reset, which may overtake the response.
            self.0.end(None);
        }
        Poll::Ready(Ok(()))
    }
}

/// Why a client is rejected.
#[derive(Clone, Copy, Debug)]
enum Rejection {
    Full,
    HeadTooLarge,
    Late,
}

impl Rejection {
    fn response(self) -> String {
        let (status, detail, retry) = match self {
            Self::Full => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too many connections",
                "retry-after: 5\r\n",
            ),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the request head is larger than 16 KiB",
                "",
            ),
            Self::Late => (
                StatusCode::REQUEST_TIMEOUT,
                "the request was not received in time",
                "",
            ),
        };
        let body = serde_json::to_string(&Problem::new(status, detail)).unwrap_or_default();
        let (length, date) = (body.len(), HttpDate::from(SystemTime::now()));
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {length}\r\n\
             {retry}date: {date}\r\nconnection: close\r\n\r\n{body}"
        )
    }
}

/// Sends the response of `rejection`, and closes the connection without a reset, so that the client can read it. The system sends
/// a reset if received bytes are unread.
async fn reject(mut socket: TcpStream, rejection: Option<Rejection>, limiter: ConnectionLimiter) {
    let permit = limiter.0.leaving.try_acquire();
    let mut discarded = [0; READ_CHUNK];
    let close = async {
        if let Some(rejection) = rejection {
            socket.write_all(rejection.response().as_bytes()).await?;
        }
        socket.shutdown().await?;
        if permit.is_ok() {
            while socket.read(&mut discarded).await? > 0 {}
        } else {
            while socket.try_read(&mut discarded)? > 0 {}
        }
        Ok::<_, io::Error>(())
    };
    // Errors do not matter, because the connection ends anyway.
    let _ = timeout(CLOSE_TIMEOUT, close).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_connections_by_memory_and_open_files() {
        let (many, mib) = (Some(1 << 20), 1 << 20);
        let small = fitting(Some(64 * mib), many);
        assert!((1_000..3_000).contains(&small), "{small}");
        assert!(fitting(Some(128 * mib), many) > 2 * small);
        assert_eq!(fitting(Some(1 << 40), many), 50_000);
        assert_eq!(fitting(Some(1 << 40), None), 50_000);
        assert_eq!(fitting(Some(1 << 40), Some(20_000)), 20_000 - 256 - 1024);
        assert_eq!(fitting(Some(1 << 40), Some(1024)), 384);
        // The minimum applies even with hardly any memory.
        assert_eq!(fitting(Some(mib), many), 64);
        assert_eq!(fitting(Some(0), Some(0)), 64);
    }

    #[test]
    fn rejections_are_problem_documents() {
        for rejection in [Rejection::Full, Rejection::HeadTooLarge, Rejection::Late] {
            let response = rejection.response();
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            let problem: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(head.starts_with(&format!(
                "HTTP/1.1 {} {}\r\n",
                problem["status"],
                problem["title"].as_str().unwrap()
            )));
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
            assert!(head.ends_with("connection: close"));
        }
    }
}
