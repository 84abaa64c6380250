//! The connections: no more than the memory takes, and none for longer than it is of use.
//!
//! This is below actix-web, which counts connections only in order to stop accepting them: here one too many is told so.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
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
    http::{ConnectionType, StatusCode, header::HttpDate},
    rt,
    web::Bytes,
};
use futures_util::TryFutureExt as _;
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::SockRef;
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

/// How long a client may take for a request, and how long a connection without one is kept.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a client may not take what it asked for.
const UNTAKEN: Duration = Duration::from_secs(20);

/// How long one that is turned away may take to notice.
const FAREWELL: Duration = Duration::from_secs(1);

/// The longest head of a request: what Node.js takes, twice what nginx takes for a line.
const HEAD: usize = 16 * 1024;

/// The piece in which answers are written. With what is there before it, it fits the 8 KiB that a connection has from the beginning,
/// which would else grow with the largest answer and stay so.
const PIECE: usize = 7 * 1024;

/// How much may be there before a piece.
const BEFORE: usize = 1024;

/// What is read at once. Of that, one request after the other is given to actix-http, which would make all that it can of what it
/// has, 8 KiB each, before it answers the first.
const STEP: usize = 1024;

/// What every connection may have us keep; more needs room of its own.
const USUAL: usize = 4 * 1024;

/// What the service takes without any connection, and what the kernel wants for what is in flight.
const BASE: u64 = 16 << 20;

/// What a connection takes at most: measured 10 KiB in the process when idle, most of it actix-http's buffers, 8 KiB more when both
/// of them are full, and 3 KiB in the kernel.
const EACH: u64 = 24 << 10;

/// What a connection takes that has a long head, or does not read what it asked for.
const LARGE: u64 = 64 << 10;

/// Where nothing says how much memory there is.
const UNKNOWN: u64 = 256 << 20;

/// More than this serves nobody: a status service has few clients.
const MOST: u64 = 50_000;

/// The files that are no clients': those of the service itself and of its checks.
const FILES: u64 = 256;

/// More workers than this would only cost memory.
const WORKERS: usize = 4;

thread_local! {
    /// The connection that this worker is at.
    static CURRENT: RefCell<Option<Rc<Wire>>> = const { RefCell::new(None) };
}

/// How many connections there may be.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Limits>);

#[derive(Debug)]
struct Limits {
    connections: usize,
    workers: usize,
    places: Arc<Semaphore>,
    /// Places of those that need more than the usual.
    large: Arc<Semaphore>,
    /// Places of those that are turned away.
    leaving: Arc<Semaphore>,
}

impl Gate {
    /// Room for as many connections as were `asked` for, or else as the memory and the open files allow, which are
    /// raised to what the system grants.
    #[must_use]
    pub fn new(asked: Option<usize>) -> Self {
        let memory = memory::limit();
        let files = raise_open_files();
        let connections = asked.unwrap_or_else(|| fitting(memory, files));
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        tracing::info!(
            connections,
            asked = asked.is_some(),
            memory,
            files,
            "room for connections"
        );
        let large = memory.unwrap_or(UNKNOWN) / 8 / LARGE;
        Self(Arc::new(Limits {
            connections,
            workers: workers.min(WORKERS),
            places: semaphore(connections),
            large: semaphore(large.clamp(16, 4096) as usize),
            leaving: semaphore(leaving(connections)),
        }))
    }

    /// How many workers serve them.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.0.workers
    }

    /// How many connections each worker accepts, with those that are turned away; all others wait in the kernel.
    #[must_use]
    pub fn each_worker(&self) -> usize {
        (self.0.connections + leaving(self.0.connections)).div_ceil(self.0.workers)
    }

    /// How many connections there are.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.connections - self.0.places.available_permits()
    }

    /// Whether so few places are left that who takes one has to give it back after an answer.
    fn is_crowded(&self) -> bool {
        self.0.places.available_permits() <= self.0.connections / 8
    }
}

fn semaphore(places: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(places))
}

fn leaving(connections: usize) -> usize {
    connections.clamp(16, 1024)
}

/// How many connections fit.
fn fitting(memory: Option<u64>, files: Option<u64>) -> usize {
    let memory = memory.unwrap_or(UNKNOWN);
    // An eighth is for those that need more than the usual; and where there is hardly any memory, some have to do.
    let by_memory = (memory - memory / 8).saturating_sub(BASE) / EACH;
    // Those that are turned away need a file, too.
    let by_files = files.map_or(MOST, |files| {
        let files = files.saturating_sub(FILES);
        (files / 2).max(files.saturating_sub(1024))
    });
    by_memory.min(by_files).clamp(64, MOST) as usize
}

/// Raises the limit of open files to what the system grants, and gives it.
fn raise_open_files() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let was = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        Err(_) => was,
    }
}

/// Prepares the listener; what it is told, its connections inherit.
///
/// # Errors
/// Where the system does not know such a setting.
pub fn prepare(listener: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(listener);
    // Who waits while all are served waits in the kernel.
    socket.listen(4096)?;
    // Requests are small.
    socket.set_recv_buffer_size(2 * HEAD)?;
    // An answer is written in pieces, of which the last shall not wait for the others.
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        // What a client does not read is not to fill the kernel's memory either.
        socket.set_tcp_notsent_lowat(PIECE as u32)?;
        // Who does not take an answer for so long is gone.
        socket.set_tcp_user_timeout(Some(UNTAKEN))?;
    }
    Ok(())
}

/// Serves `app` to the connections for which there is room, until `drain`.
pub fn http<A>(
    gate: &Gate,
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
        let busy = Busy::new();
        app.call(request).map_ok(|response| busy.answer(response))
    });
    let http = HttpService::build()
        .graceful_shutdown_signal(move || {
            let drain = drain.clone();
            async move { drain.notified().await }
        })
        .keep_alive(KeepAlive::Timeout(PATIENCE))
        // Its own limit is for the first request alone.
        .client_request_timeout(Duration::ZERO)
        .client_disconnect_timeout(FAREWELL)
        // Else a listener to events who has gone is noticed only at the next heartbeat but one.
        .h1_allow_half_closed(false)
        .h1_write_buffer_size(BEFORE)
        .h1(app);
    let gate = gate.clone();
    apply_fn_factory(http, move |socket: TcpStream, http| {
        let Ok(place) = gate.0.places.clone().try_acquire_owned() else {
            let answer = Some(Answer::Full);
            return Connection::TurnedAway(Box::pin(turn_away(socket, answer, gate.clone())));
        };
        let peer: Option<SocketAddr> = socket.peer_addr().ok();
        let wire = Rc::new(Wire::new(socket, gate.clone()));
        Connection::Served {
            http: Box::pin(http.call((Stream(wire.clone()), peer))),
            wire,
            timer: None,
            _place: place,
        }
    })
}

/// A request that is being answered; until its end.
struct Busy(Option<Rc<Wire>>);

impl Busy {
    fn new() -> Self {
        let wire = CURRENT.with_borrow(Clone::clone);
        if let Some(wire) = &wire {
            wire.busy.set(true);
        }
        Self(wire)
    }

    fn answer(self, mut response: ServiceResponse) -> ServiceResponse<Pieces> {
        if self.0.as_ref().is_some_and(|wire| wire.brief) {
            let head = response.response_mut().head_mut();
            head.set_connection_type(ConnectionType::Close);
        }
        response.map_body(|_, body| Pieces {
            body,
            rest: Bytes::new(),
            _busy: self,
        })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(wire) = &self.0 {
            wire.busy.set(false);
        }
    }
}

/// The body of an answer, in pieces.
struct Pieces {
    body: BoxBody,
    rest: Bytes,
    _busy: Busy,
}

impl MessageBody for Pieces {
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
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(self.rest.split_to(piece))))
    }
}

/// A connection, served or turned away.
enum Connection<H> {
    Served {
        // In a box, since the server's task would hold it twice.
        http: Pin<Box<H>>,
        wire: Rc<Wire>,
        timer: Option<Pin<Box<Sleep>>>,
        _place: OwnedSemaphorePermit,
    },
    TurnedAway(Pin<Box<dyn Future<Output = ()>>>),
}

impl<H: Future<Output = Result<(), E>>, E> Future for Connection<H> {
    type Output = Result<(), E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::TurnedAway(farewell) => farewell.as_mut().poll(cx).map(Ok),
            Self::Served {
                http, wire, timer, ..
            } => {
                CURRENT.set(Some(wire.clone()));
                let end = http.as_mut().poll(cx);
                CURRENT.set(None);
                if let Poll::Ready(end) = end {
                    if end.is_err() {
                        // It was refused half-way: to close now would be a reset, which may overtake the answer.
                        wire.end(None);
                    }
                    return Poll::Ready(end);
                }
                if wire.has_more() {
                    cx.waker().wake_by_ref();
                }
                // Few requests are not answered at once; only those cost a timer.
                if !wire.awaits_request() {
                    *timer = None;
                    return Poll::Pending;
                }
                ready!(
                    timer
                        .get_or_insert_with(|| Box::pin(sleep(PATIENCE)))
                        .as_mut()
                        .poll(cx)
                );
                wire.end((wire.unanswered.get() > 0).then_some(Answer::Late));
                // It sees the end of the stream now.
                http.as_mut().poll(cx)
            }
        }
    }
}

/// A socket and what came and went over it.
struct Wire {
    /// Until the client is turned away.
    socket: RefCell<Option<TcpStream>>,
    gate: Gate,
    /// Whether it ends with its first answer.
    brief: bool,
    /// Whether a request is being answered.
    busy: Cell<bool>,
    /// Whether the client does not take what is sent.
    stalled: Cell<bool>,
    /// What came and has to wait for the end of that.
    rest: RefCell<Vec<u8>>,
    /// Bytes that came since something was last sent.
    unanswered: Cell<usize>,
    /// Whether what came is looked at before more is read.
    pause: Cell<bool>,
    /// Whether anything was sent.
    answered: Cell<bool>,
    large: RefCell<Option<OwnedSemaphorePermit>>,
}

impl Wire {
    fn new(socket: TcpStream, gate: Gate) -> Self {
        Self {
            socket: RefCell::new(Some(socket)),
            brief: gate.is_crowded(),
            gate,
            busy: Cell::new(false),
            stalled: Cell::new(false),
            rest: RefCell::default(),
            unanswered: Cell::new(0),
            pause: Cell::new(false),
            answered: Cell::new(false),
            large: RefCell::new(None),
        }
    }

    /// Whether the client has begun a request, or owes its first.
    fn awaits_request(&self) -> bool {
        !self.busy.get() && (!self.answered.get() || self.unanswered.get() > 0)
    }

    /// Whether a next request has to wait.
    fn is_held(&self) -> bool {
        self.busy.get() || self.stalled.get()
    }

    /// Whether there is a next request that need not wait any more.
    fn has_more(&self) -> bool {
        !self.is_held() && !self.rest.borrow().is_empty()
    }

    /// Takes room for more than the usual; false where there is none.
    fn grow(&self) -> bool {
        let mut large = self.large.borrow_mut();
        if large.is_none() {
            *large = self.gate.0.large.clone().try_acquire_owned().ok();
        }
        large.is_some()
    }

    /// Gives the first request in `bytes` to the HTTP service, or what there is of it; gives its size.
    fn hand_over(&self, bytes: &[u8], buffer: &mut ReadBuf<'_>) -> usize {
        let size = end_of_head(bytes).min(buffer.remaining());
        let unanswered = self.unanswered.get() + size;
        self.unanswered.set(unanswered);
        if unanswered > HEAD {
            self.end(Some(Answer::HeadTooLarge));
        } else if unanswered > USUAL && !self.grow() {
            self.end(Some(Answer::Full));
        } else {
            buffer.put_slice(&bytes[..size]);
        }
        size
    }

    /// Turns the client away; for the HTTP service, the connection has ended.
    fn end(&self, answer: Option<Answer>) {
        if let Some(socket) = self.socket.borrow_mut().take() {
            // What follows an answer could be taken for the answer to a next request.
            let answer = answer.filter(|_| !self.answered.get());
            rt::spawn(turn_away(socket, answer, self.gate.clone()));
        }
    }
}

/// The stream that the HTTP service reads and writes.
struct Stream(Rc<Wire>);

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &*self.0;
        if wire.pause.replace(false) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut rest = wire.rest.borrow_mut();
        loop {
            let held = wire.is_held();
            if !held && !rest.is_empty() {
                let size = wire.hand_over(&rest, buffer);
                *rest = rest.split_off(size);
                break;
            }
            if rest.len() >= STEP {
                return Poll::Pending;
            }
            let mut step = [0; STEP];
            let mut step = ReadBuf::new(&mut step[rest.len()..]);
            match wire.socket.borrow_mut().as_mut() {
                Some(socket) => ready!(Pin::new(socket).poll_read(cx, &mut step))?,
                None => return Poll::Ready(Ok(())),
            }
            let step = step.filled();
            if step.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if !held {
                let size = wire.hand_over(step, buffer);
                rest.extend_from_slice(&step[size..]);
                wire.pause.set(step.len() == STEP);
                break;
            }
            // It waits; but the end of the stream may be next.
            rest.extend_from_slice(step);
        }
        if !rest.is_empty() {
            wire.pause.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

/// Where the first head in `bytes` ends, or they do.
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
        let wire = &*self.0;
        let written = match wire.socket.borrow_mut().as_mut() {
            Some(socket) => Pin::new(socket).poll_write(cx, bytes),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        match written {
            Poll::Ready(Ok(count)) => {
                wire.answered.set(true);
                wire.unanswered.set(0);
                if count == bytes.len() {
                    wire.stalled.set(false);
                    wire.large.replace(None);
                }
            }
            Poll::Pending => {
                wire.stalled.set(true);
                if !wire.grow() {
                    return Poll::Ready(Err(io::Error::other("too many clients read slowly")));
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
            // To close now would be a reset, which may overtake the answer.
            self.0.end(None);
        }
        Poll::Ready(Ok(()))
    }
}

/// Why a client is turned away.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Full,
    HeadTooLarge,
    Late,
}

impl Answer {
    fn response(self) -> String {
        let (status, detail, retry) = match self {
            Self::Full => (
                StatusCode::SERVICE_UNAVAILABLE,
                "There are as many clients as this service can take.",
                "retry-after: 5\r\n",
            ),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "A request's head may have 16 KiB.",
                "",
            ),
            Self::Late => (
                StatusCode::REQUEST_TIMEOUT,
                "The request did not come in time.",
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

/// Says `answer` and closes the connection so that the client can read it: where something came that was not read, the
/// system would send a reset.
async fn turn_away(mut socket: TcpStream, answer: Option<Answer>, gate: Gate) {
    let place = gate.0.leaving.try_acquire();
    let mut discarded = [0; STEP];
    let farewell = async {
        if let Some(answer) = answer {
            socket.write_all(answer.response().as_bytes()).await?;
        }
        socket.shutdown().await?;
        if place.is_ok() {
            while socket.read(&mut discarded).await? > 0 {}
        } else {
            while socket.try_read(&mut discarded)? > 0 {}
        }
        Ok::<_, io::Error>(())
    };
    // Whether it noticed is its own affair.
    let _ = timeout(FAREWELL, farewell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_the_memory_and_the_open_files() {
        let (many, mib) = (Some(1 << 20), 1 << 20);
        let small = fitting(Some(64 * mib), many);
        assert!((1_000..3_000).contains(&small), "{small}");
        assert!(fitting(Some(128 * mib), many) > 2 * small);
        assert_eq!(fitting(Some(1 << 40), many), 50_000);
        assert_eq!(fitting(Some(1 << 40), None), 50_000);
        assert_eq!(fitting(Some(1 << 40), Some(20_000)), 20_000 - 256 - 1024);
        assert_eq!(fitting(Some(1 << 40), Some(1024)), 384);
        // Hardly anything is still something.
        assert_eq!(fitting(Some(mib), many), 64);
        assert_eq!(fitting(Some(0), Some(0)), 64);
    }

    #[test]
    fn who_is_turned_away_gets_a_problem_document() {
        for answer in [Answer::Full, Answer::HeadTooLarge, Answer::Late] {
            let response = answer.response();
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
