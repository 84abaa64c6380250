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

use actix_http::{HttpService, KeepAlive, Request, Response, body::MessageBody};
use actix_server::GracefulShutdownSignal;
use actix_service::{Service as _, ServiceFactory, ServiceFactoryExt as _, apply_fn_factory};
use actix_web::{
    body::BoxBody,
    dev::ServiceResponse,
    http::{ConnectionType, StatusCode, header::HttpDate},
    rt,
};
use rustix::process::{Resource, getrlimit, setrlimit};
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

/// What every connection may have us keep; more needs room of its own.
const USUAL: usize = 4 * 1024;

/// What the service takes without any connection, and what the kernel wants for what is in flight.
const BASE: u64 = 24 << 20;

/// What a connection takes: measured 11 KiB in the process (most of it actix-http's buffers) and 3 KiB in the kernel.
const EACH: u64 = 18 << 10;

/// What a connection takes that has a long head, or does not read what it asked for.
const LARGE: u64 = 128 << 10;

/// Where nothing says how much memory there is.
const UNKNOWN: u64 = 256 << 20;

/// More than this serves nobody: a status service has few clients.
const MOST: u64 = 50_000;

/// The files that are no clients': those of the service itself and of its checks.
const FILES: u64 = 256;

/// More workers than this would only cost memory.
const WORKERS: usize = 4;

thread_local! {
    /// Whether the connection that this worker is at ends with its first answer.
    static BRIEF: Cell<bool> = const { Cell::new(false) };
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
    use rustix::net::sockopt;

    // Who waits while all are served waits in the kernel.
    rustix::net::listen(listener, 4096)?;
    // Requests are small, and who does not read should be noticed before megabytes wait in the kernel.
    sockopt::set_socket_recv_buffer_size(listener, HEAD)?;
    sockopt::set_socket_send_buffer_size(listener, 64 * 1024)?;
    // Who does not take an answer for so long is gone.
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(listener, UNTAKEN.as_millis() as u32)?;
    Ok(())
}

/// Serves `app` to the connections for which there is room, until `drain`.
pub fn http<A, B>(
    gate: &Gate,
    drain: GracefulShutdownSignal,
    app: A,
) -> impl ServiceFactory<
    TcpStream,
    Config = (),
    Response = (),
    Error = actix_http::error::DispatchError,
    InitError = (),
> + use<A, B>
where
    A: ServiceFactory<
            Request,
            Config = (),
            Response = ServiceResponse<B>,
            Error = actix_web::Error,
            InitError = (),
        > + 'static,
    B: MessageBody + 'static,
{
    let app = app
        .map(|mut response: ServiceResponse<B>| {
            if BRIEF.get() {
                let head = response.response_mut().head_mut();
                head.set_connection_type(ConnectionType::Close);
            }
            response
        })
        .map_err(|error| Response::<BoxBody>::from(error.error_response()));
    let http = HttpService::build()
        .graceful_shutdown_signal(move || {
            let drain = drain.clone();
            async move { drain.notified().await }
        })
        .keep_alive(KeepAlive::Timeout(PATIENCE))
        // Its own limit is for the first request alone.
        .client_request_timeout(Duration::ZERO)
        .client_disconnect_timeout(FAREWELL)
        .h1(app);
    let gate = gate.clone();
    apply_fn_factory(http, move |socket: TcpStream, http| {
        let Ok(place) = gate.0.places.clone().try_acquire_owned() else {
            let answer = Some(Answer::Full);
            return Connection::TurnedAway(Box::pin(turn_away(socket, answer, gate.clone())));
        };
        let brief = gate.is_crowded();
        let peer: Option<SocketAddr> = socket.peer_addr().ok();
        let wire = Rc::new(Wire::new(socket, gate.clone()));
        Connection::Served {
            http: Box::pin(http.call((Stream(wire.clone()), peer))),
            wire,
            timer: None,
            brief,
            _place: place,
        }
    })
}

/// A connection, served or turned away.
enum Connection<H> {
    Served {
        // In a box, since the server's task would hold it twice.
        http: Pin<Box<H>>,
        wire: Rc<Wire>,
        timer: Option<Pin<Box<Sleep>>>,
        brief: bool,
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
                http,
                wire,
                timer,
                brief,
                ..
            } => {
                BRIEF.set(*brief);
                if let Poll::Ready(end) = http.as_mut().poll(cx) {
                    return Poll::Ready(end);
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
    /// Bytes that came since something was last sent.
    unanswered: Cell<usize>,
    /// Whether what came was looked at since the limit was reached.
    looked: Cell<bool>,
    /// Whether anything was sent.
    answered: Cell<bool>,
    large: RefCell<Option<OwnedSemaphorePermit>>,
}

impl Wire {
    fn new(socket: TcpStream, gate: Gate) -> Self {
        Self {
            socket: RefCell::new(Some(socket)),
            gate,
            unanswered: Cell::new(0),
            looked: Cell::new(false),
            answered: Cell::new(false),
            large: RefCell::new(None),
        }
    }

    /// Whether the client has begun a request, or owes its first.
    fn awaits_request(&self) -> bool {
        !self.answered.get() || self.unanswered.get() > 0
    }

    /// Takes room for more than the usual; false where there is none.
    fn grow(&self) -> bool {
        let mut large = self.large.borrow_mut();
        if large.is_none() {
            *large = self.gate.0.large.clone().try_acquire_owned().ok();
        }
        large.is_some()
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
        if wire.unanswered.get() >= HEAD {
            if !wire.looked.replace(true) {
                // There may be whole requests in it: they are answered before more is read.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            wire.end(Some(Answer::HeadTooLarge));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        match wire.socket.borrow_mut().as_mut() {
            Some(socket) => ready!(Pin::new(socket).poll_read(cx, buffer))?,
            None => return Poll::Ready(Ok(())),
        }
        let unanswered = wire.unanswered.get() + buffer.filled().len() - before;
        wire.unanswered.set(unanswered);
        if unanswered > USUAL && !wire.grow() {
            wire.end(Some(Answer::Full));
        }
        Poll::Ready(Ok(()))
    }
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
                wire.looked.set(false);
                if count == bytes.len() {
                    wire.large.replace(None);
                }
            }
            Poll::Pending if !wire.grow() => {
                return Poll::Ready(Err(io::Error::other("too many clients read slowly")));
            }
            _ => {}
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
    let mut discarded = [0; 512];
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
