//! Many clients with little memory, and a shutdown under load.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use actix_web::rt;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, MutexGuard},
    time::{sleep, timeout},
};

use crate::harness::Service;

const MEMORY: u64 = 64 << 20;

/// Longer than every timeout of the service.
const LONG: Duration = Duration::from_secs(60);

/// Serializes tests that use all ports and file descriptors of the machine.
static TURN: Mutex<()> = Mutex::const_new(());

pub async fn turn() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().await;
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files).unwrap();
    turn
}

/// A control group with a memory limit, of version 1 or 2.
pub struct Group {
    folder: PathBuf,
    version_2: bool,
}

impl Group {
    pub fn new(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = |kind: &str| {
            let line = mounts.lines().find(|line| {
                let (_, source) = line.split_once(" - ").unwrap();
                source.starts_with(kind) && (kind == "cgroup2 " || source.ends_with(",memory"))
            })?;
            Some(Path::new(line.split(' ').nth(4)?))
        };
        let (top, version_2) = match mount("cgroup ") {
            Some(top) => (top, false),
            None => (
                mount("cgroup2 ").expect("this test needs a mounted control group hierarchy"),
                true,
            ),
        };
        if version_2 {
            fs::write(top.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        let folder = top.join(format!("api-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let group = Self { folder, version_2 };
        let (memory, swap, no_swap) = if version_2 {
            ("memory.max", "memory.swap.max", 0)
        } else {
            // In version 1, this is the limit of memory and swap together.
            (
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                MEMORY,
            )
        };
        fs::write(group.folder.join(memory), MEMORY.to_string()).unwrap();
        // Fails on kernels without swap accounting.
        let _ = fs::write(group.folder.join(swap), no_swap.to_string());
        group
    }

    pub fn start(&self) -> Service {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ > "$1" && exec "$2""#, "sh"])
            .arg(self.folder.join("cgroup.procs"))
            .arg(env!("CARGO_BIN_EXE_api"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin");
        Service::spawn(command)
    }

    fn read(&self, version_1: &str, version_2: &str) -> String {
        let file = if self.version_2 { version_2 } else { version_1 };
        fs::read_to_string(self.folder.join(file)).unwrap()
    }

    /// The number of processes that the OOM killer ended.
    fn killed(&self) -> u64 {
        let events = self.read("memory.oom_control", "memory.events");
        let count = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        count.unwrap().parse().unwrap()
    }

    /// Asserts that the service runs, and stayed well below the memory limit.
    pub fn assert_running(&self, service: &mut Service) {
        assert_eq!(self.killed(), 0);
        assert!(service.child.try_wait().unwrap().is_none());
        let peak = self.read("memory.max_usage_in_bytes", "memory.peak");
        let peak: u64 = peak.trim().parse().unwrap();
        assert!(peak < MEMORY / 10 * 9, "{peak} bytes");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A killed process remains in the group for a moment.
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The limit of connections that the service logged.
fn connection_limit(service: &Service) -> usize {
    let log = service.log();
    let line = log
        .iter()
        .find(|line| line["message"] == "limited connections")
        .unwrap();
    assert!(line["memory"].as_u64().unwrap() <= MEMORY, "{line}");
    line["connections"].as_u64().unwrap().try_into().unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A response, and the connection stays open.
    Kept,
    /// A response, and the connection is closed as announced.
    Closed,
    /// A 503 response.
    Rejected,
    /// The connection was closed without a response.
    NoResponse,
    /// A connection error.
    Failed,
    /// A timeout.
    TimedOut,
}

/// A client with one connection. Clients use several target addresses, because each has its own range of source ports.
pub struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
}

/// The status of a response, and whether the connection is closed after it.
struct Answer {
    status: u16,
    closes: bool,
}

impl Client {
    async fn connect(number: usize, port: u16) -> Option<Self> {
        let address = [127, 0, 0, u8::try_from(number % 4).unwrap() + 1];
        let address = SocketAddr::from((address, port));
        let connected = timeout(LONG, TcpStream::connect(address)).await.ok()?;
        let socket = connected.ok()?;
        Some(Self {
            socket,
            buffer: Vec::new(),
        })
    }

    /// Sends a request and reads the response; `None` if the connection is closed before the response starts.
    async fn get(&mut self, path: &str) -> std::io::Result<Option<Answer>> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: api\r\n\r\n");
        self.socket.write_all(request.as_bytes()).await?;
        loop {
            if let Some(answer) = self.take_answer() {
                return Ok(Some(answer));
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(std::io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    fn take_answer(&mut self) -> Option<Answer> {
        let text = std::str::from_utf8(&self.buffer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let head = head.to_lowercase();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let length: usize = header("content-length: ").unwrap().parse().unwrap();
        let answer = Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            closes: header("connection: ") == Some("close"),
        };
        (body.len() >= length).then(|| self.buffer.clear())?;
        Some(answer)
    }

    async fn outcome(&mut self) -> Outcome {
        match timeout(LONG, self.get("/health")).await {
            Err(_) => Outcome::TimedOut,
            Ok(Err(_)) => Outcome::Failed,
            Ok(Ok(None)) => Outcome::NoResponse,
            Ok(Ok(Some(Answer { status: 503, .. }))) => Outcome::Rejected,
            Ok(Ok(Some(Answer { status, closes }))) => {
                assert_eq!(status, 200);
                if closes {
                    Outcome::Closed
                } else {
                    Outcome::Kept
                }
            }
        }
    }
}

/// Runs `size` clients concurrently, and returns their results.
pub async fn crowd<T: 'static, F: Future<Output = T> + 'static>(
    size: usize,
    client: impl Fn(usize) -> F,
) -> Vec<T> {
    join_all((0..size).map(|number| rt::spawn(client(number))))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

/// Sends one request. A rejected client disconnects, others stay connected until they are dropped.
pub async fn visit(number: usize, port: u16) -> (Outcome, Option<Client>) {
    let Some(mut client) = Client::connect(number, port).await else {
        return (Outcome::Failed, None);
    };
    match client.outcome().await {
        Outcome::Rejected => (Outcome::Rejected, None),
        outcome => (outcome, Some(client)),
    }
}

/// Retries on new connections until a request succeeds.
pub async fn wait_until_served(port: u16) {
    let start = Instant::now();
    loop {
        let mut client = Client::connect(0, port).await.unwrap();
        if matches!(client.outcome().await, Outcome::Kept | Outcome::Closed) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20));
        sleep(Duration::from_millis(200)).await;
    }
}

#[actix_web::test]
async fn survives_fifteen_thousand_concurrent_clients_with_64_mib() {
    let _turn = turn().await;
    let group = Group::new("clients");
    let mut service = group.start();
    let (port, limit) = (service.port, connection_limit(&service));

    // An earlier client that continues to send requests.
    let over = Rc::new(AtomicBool::new(false));
    let before = rt::spawn({
        let over = over.clone();
        let mut client = Client::connect(0, port).await.unwrap();
        assert_eq!(client.outcome().await, Outcome::Kept);
        async move {
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                assert_eq!(client.outcome().await, Outcome::Kept);
                longest = longest.max(start.elapsed());
                sleep(Duration::from_millis(100)).await;
            }
            longest
        }
    });
    let all = crowd(15_000, move |number| visit(number, port)).await;
    over.store(true, Ordering::Relaxed);
    let longest = before.await.unwrap();

    let mut outcomes = BTreeMap::new();
    for (outcome, _) in &all {
        *outcomes.entry(*outcome).or_insert(0_usize) += 1;
    }
    group.assert_running(&mut service);
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    let count = |outcome| outcomes.get(&outcome).copied().unwrap_or(0);
    assert_eq!(count(Outcome::TimedOut), 0, "{outcomes:?}");
    // If too many clients are rejected at once, some connections are reset.
    assert!(count(Outcome::Failed) < 150, "{outcomes:?}");
    assert!(count(Outcome::Kept) >= limit / 2, "{outcomes:?}");
    drop(all);
    wait_until_served(port).await;
}

#[actix_web::test]
async fn survives_endless_request_heads_on_all_connections() {
    let _turn = turn().await;
    let group = Group::new("heads");
    let mut service = group.start();
    let (port, limit) = (service.port, connection_limit(&service));
    let ended = crowd(limit, move |number| async move {
        let Some(mut client) = Client::connect(number, port).await else {
            return true;
        };
        let _ = client
            .socket
            .write_all(b"GET /health HTTP/1.1\r\nX: ")
            .await;
        let trickle = async {
            // More than the limit of a request head.
            for _ in 0..128 {
                if client.socket.write_all(&[b'x'; 1024]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
            while let Ok(1..) = client.socket.read_buf(&mut client.buffer).await {}
        };
        timeout(LONG, trickle).await.is_ok()
    })
    .await;
    group.assert_running(&mut service);
    assert!(ended.into_iter().all(|ended| ended));
    wait_until_served(port).await;
}

#[actix_web::test]
async fn survives_clients_that_never_read_on_all_connections() {
    let _turn = turn().await;
    let group = Group::new("readers");
    let mut service = group.start();
    let (port, limit) = (service.port, connection_limit(&service));
    let clients = crowd(limit, move |number| async move {
        let mut client = Client::connect(number, port).await?;
        let asks = async {
            let requests = "GET /openapi.json HTTP/1.1\r\nHost: api\r\n\r\n".repeat(100);
            while client.socket.write_all(requests.as_bytes()).await.is_ok() {}
        };
        let _ = timeout(Duration::from_secs(10), asks).await;
        Some(client)
    })
    .await;
    group.assert_running(&mut service);
    drop(clients);
    wait_until_served(port).await;
}

#[actix_web::test]
async fn loses_no_request_during_a_shutdown_under_load() {
    let _turn = turn().await;
    let mut service = {
        let mut command = Command::new(env!("CARGO_BIN_EXE_api"));
        command.env_clear();
        Service::spawn(command)
    };
    let port = service.port;
    let clients = rt::spawn(crowd(64, move |number| async move {
        let mut answers = 0_usize;
        // Like a load balancer, stops sending requests when `/readyz` fails.
        while let Some(mut client) = Client::connect(number, port).await {
            let ready = client.get("/readyz").await.unwrap().unwrap();
            answers += 1;
            if ready.status != 200 {
                return answers;
            }
            let mut closes = ready.closes;
            while !closes {
                let answer = client.get("/health").await.unwrap().unwrap();
                assert_eq!(answer.status, 200);
                closes = answer.closes;
                answers += 1;
            }
        }
        answers
    }));
    sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    service.signal(Signal::SIGTERM);
    let answers: usize = timeout(LONG, clients).await.unwrap().unwrap().iter().sum();
    let status = loop {
        if let Some(status) = service.child.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < Duration::from_secs(20));
        sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(status.code(), Some(0));
    assert!(answers > 1_000, "{answers}");
}
