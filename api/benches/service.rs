//! Compares speed and memory of the service with a bare Actix handler and a FastAPI application, all in one run.
//!
//! `just bench` builds the service like the image does. An argument such as `requests` runs only the parts whose name starts with
//! it. If a bound is missed, the exit code is 1.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark may panic, and prints its results"
)]
#![expect(dead_code, reason = "the tests use the harness, too")]

#[path = "../tests/e2e/harness.rs"]
mod harness;
#[path = "../../ci/benches/common/table.rs"]
mod table;

use std::{
    any::Any,
    env,
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use actix_web::{App, HttpResponse, HttpServer, web};
use common::pins;
use procfs::{
    WithCurrentSystemInfo as _,
    process::{Process, Stat},
};

use harness::{Service, free_port, install, package, run, venv};
use table::Table;

const MIB: f64 = 1024.0 * 1024.0;

/// The number of rounds. Each round measures all candidates, so that other load on the machine affects all of them.
const ROUNDS: usize = 5;

/// The duration of one round of one candidate.
const ROUND: Duration = Duration::from_secs(3);

/// `--bare PORT` runs the bare handler instead of the benchmark.
const BARE: &str = "--bare";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [first, port] = arguments.as_slice()
        && first == BARE
    {
        bare(port.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    // cargo adds --bench.
    let selected = arguments.iter().find(|argument| !argument.starts_with('-'));
    let parts: [Part; 7] = [
        ("start", start),
        ("requests", requests),
        ("hits", hits),
        ("memory", memory),
        ("connections", connections),
        ("checks", checks),
        ("image", image),
    ];
    let mut table = Table::default();
    for (name, measure) in parts {
        if selected.is_none_or(|selected| name.starts_with(selected.as_str())) {
            measure(&mut table);
        }
    }
    ExitCode::from(u8::from(table.missed))
}

/// A part of the benchmark: its name and function.
type Part = (&'static str, fn(&mut Table));

/// Serves a handler with a fixed response and the default settings of Actix.
fn bare(port: u16) {
    let answer = || async {
        HttpResponse::Ok()
            .content_type("application/health+json")
            .body(r#"{"status":"pass","version":"0.1.0","serviceId":"api"}"#)
    };
    actix_web::rt::System::new()
        .block_on(
            HttpServer::new(move || App::new().route("/health", web::get().to(answer)))
                .bind(("127.0.0.1", port))
                .unwrap()
                .run(),
        )
        .unwrap();
}

/// A program under measurement.
struct Candidate {
    id: u32,
    port: u16,
    /// Stops the program when dropped.
    _running: Box<dyn Any>,
}

/// A program that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Candidate {
    fn ours(configuration: &str) -> Self {
        // Without request logs, like the other candidates.
        let service = Service::start(configuration, &[("RUST_LOG", "warn,api::startup=info")]);
        Self {
            id: service.child.id(),
            port: service.port,
            _running: Box::new(service),
        }
    }

    fn bare() -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        let port = free_port();
        command.args([BARE, &port.to_string()]);
        Self::other(command, port)
    }

    fn fastapi() -> Self {
        // Installed like `pip install fastapi uvicorn`, with the defaults of uvicorn: one process.
        let uvicorn = format!("uvicorn=={}", pins::UVICORN);
        let client = format!("prometheus-client=={}", pins::PROMETHEUS_CLIENT);
        let tool = venv("fastapi", pins::FASTAPI, &[&uvicorn, &client]);
        let mut command = Command::new(tool.join("bin/uvicorn"));
        let port = free_port();
        command
            .args([
                "fastapi_app:app",
                "--no-access-log",
                "--log-level",
                "warning",
            ])
            .args(["--port", &port.to_string()])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches"));
        Self::other(command, port)
    }

    fn other(mut command: Command, port: u16) -> Self {
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let id = child.id();
        let running = Box::new(Running(child));
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            sleep(Duration::from_millis(10));
        }
        Self {
            id,
            port,
            _running: running,
        }
    }

    fn process(&self) -> Stat {
        Process::new(self.id.try_into().unwrap())
            .unwrap()
            .stat()
            .unwrap()
    }

    /// The resident memory in bytes.
    fn resident(&self) -> u64 {
        self.process().rss_bytes().get()
    }

    /// The CPU time in seconds.
    fn cpu_time(&self) -> f64 {
        let stat = self.process();
        (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
    }

    fn load(&self, path: &str) -> Load {
        let output = Command::new("wrk")
            .args(["--threads", "1", "--connections", "64", "--latency"])
            .args(["--duration", &format!("{}s", ROUND.as_secs())])
            .arg(format!("http://127.0.0.1:{}{path}", self.port))
            .output()
            .unwrap();
        let report = String::from_utf8(output.stdout).unwrap();
        let figure = |name: &str| {
            let line = report
                .lines()
                .find_map(|line| line.trim().strip_prefix(name));
            line.unwrap_or_else(|| panic!("the output of wrk has no {name}:\n{report}"))
                .trim()
        };
        assert!(!report.contains("Non-2xx"), "{report}");
        Load {
            rate: figure("Requests/sec:").parse().unwrap(),
            p99: in_seconds(figure("99%")),
        }
    }
}

/// Parses a duration of wrk such as `1.23ms`.
fn in_seconds(text: &str) -> f64 {
    let digits = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        _ => 1.0,
    };
    digits.parse::<f64>().unwrap() * unit
}

/// The results of wrk: requests per second, and the 99th percentile in seconds.
#[derive(Clone, Copy)]
struct Load {
    rate: f64,
    p99: f64,
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The configuration of twenty checks that are up, with an interval of 10 s.
fn twenty_checks(ports: [u16; 2]) -> String {
    many_checks(20, ports)
}

/// The configuration of `count` checks, half of them TCP and half HTTP.
fn many_checks(count: usize, [tcp, http]: [u16; 2]) -> String {
    let mut text = String::from("[defaults]\ninterval = \"10s\"\ntimeout = \"2s\"\n");
    for at in 0..count {
        let target = if at % 2 == 0 {
            format!("tcp = \"127.0.0.1:{tcp}\"")
        } else {
            format!("http = \"http://127.0.0.1:{http}/health\"")
        };
        writeln!(text, "[[checks]]\nname = \"check-{at}\"\n{target}").unwrap();
    }
    text
}

/// The time from exec to the first 200.
fn start(table: &mut Table) {
    let port = free_port();
    let first = || {
        let begun = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_api"))
            .env_clear()
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let program = Running(child);
        while request_once(port).is_none() {
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
        let took = begun.elapsed().as_secs_f64() * 1e3;
        drop(program);
        took
    };
    let times = (0..11).map(|_| first()).collect();
    table.at_most(
        "time from exec to the first 200",
        median(times),
        25.0,
        " ms",
    );
}

/// Sends one request on a new connection.
fn request_once(port: u16) -> Option<()> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    request(&mut socket)
}

/// Sends one request, whose response fits into one buffer.
fn request(socket: &mut TcpStream) -> Option<()> {
    socket
        .write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        .ok()?;
    let mut buffer = [0; 4096];
    let count = socket.read(&mut buffer).ok()?;
    buffer[..count].starts_with(b"HTTP/1.1 200").then_some(())
}

fn requests(table: &mut Table) {
    install(&[package("wrk", "wrk")]);
    let (bare, fastapi) = (Candidate::bare(), Candidate::fastapi());
    let ports = [bare.port; 2];
    // Without checks, the response of /health is the same as that of the bare handler.
    let (ours, with_checks) = (Candidate::ours(""), Candidate::ours(&twenty_checks(ports)));
    sleep(Duration::from_secs(1));
    let candidates = [
        ("bare Actix handler", &bare, "/health"),
        ("FastAPI, uvicorn", &fastapi, "/health"),
        ("/health", &ours, "/health"),
        ("/api/v1/checks, 20 checks", &with_checks, "/api/v1/checks"),
    ];
    let mut loads = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for ((_, candidate, path), loads) in candidates.iter().zip(&mut loads) {
            loads.push(candidate.load(path));
        }
    }
    let rates = loads
        .each_ref()
        .map(|loads| median(loads.iter().map(|load| load.rate).collect()));
    let p99s = loads
        .each_ref()
        .map(|loads| median(loads.iter().map(|load| load.p99).collect()));
    for (((name, ..), rate), p99) in candidates.iter().zip(rates).zip(p99s) {
        table.print(
            &format!("{name}: requests per second, p99"),
            format!("{rate:.0}, {:.2} ms", p99 * 1e3),
        );
    }
    // Per round, so that a slow phase of the machine affects both values.
    let ratio = |of: usize, to: usize| {
        let pairs = loads[of].iter().zip(&loads[to]);
        median(
            pairs
                .map(|(of, to): (&Load, &Load)| of.rate / to.rate)
                .collect(),
        )
    };
    table.at_least(
        "requests per second: /health divided by bare handler",
        ratio(2, 0),
        0.85,
        "",
    );
    table.at_least(
        "requests per second: /health divided by FastAPI",
        ratio(2, 1),
        30.0,
        "",
    );
    table.at_most(
        "p99: /health divided by bare handler",
        p99s[2] / p99s[0],
        2.0,
        "",
    );
    table.at_least(
        "requests per second: /api/v1/checks divided by bare handler",
        ratio(3, 0),
        0.6,
        "",
    );
}

/// The slowest response of `/hits` while Redis accepts connections and never responds.
fn hits(table: &mut Table) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    thread::spawn(move || silent.incoming().flatten().collect::<Vec<_>>());
    let ours = Candidate::ours(&format!("[redis]\nurl = \"redis://{address}\"\n"));
    let request = || {
        let begun = Instant::now();
        let mut socket = TcpStream::connect(("127.0.0.1", ours.port)).unwrap();
        socket
            .write_all(b"GET /hits HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let mut buffer = [0; 4096];
        let count = socket.read(&mut buffer).unwrap();
        assert!(buffer[..count].starts_with(b"HTTP/1.1 503"));
        begun.elapsed().as_secs_f64() * 1e3
    };
    let slowest = (0..20).map(|_| request()).fold(0.0, f64::max);
    table.at_most(
        "slowest of 20 /hits while Redis is silent",
        slowest,
        250.0,
        " ms",
    );
}

fn memory(table: &mut Table) {
    let bare = Candidate::bare();
    let ours = Candidate::ours(&twenty_checks([bare.port; 2]));
    sleep(Duration::from_secs(25));
    let resident = ours.resident() as f64 / MIB;
    table.print(
        "resident memory, bare handler",
        format!("{:.2} MiB", bare.resident() as f64 / MIB),
    );
    table.at_most(
        "resident memory, idle with 20 checks",
        resident,
        8.0,
        " MiB",
    );
}

/// The memory of an idle connection after its first request.
fn connections(table: &mut Table) {
    const MANY: usize = 10_000;
    let cost = |candidate: &Candidate| {
        // Excludes one-time costs of the first connections.
        let before: Vec<_> = (0..100).map(|_| open(candidate)).collect();
        let idle = candidate.resident();
        let begun = Instant::now();
        let open: Vec<_> = (0..MANY).map(|_| open(candidate)).collect();
        let took = begun.elapsed();
        assert!(
            took < Duration::from_secs(5),
            "the first connections are closed by now: {took:?}"
        );
        let resident = candidate.resident();
        drop((before, open));
        (resident - idle) as f64 / MANY as f64
    };
    let bare = cost(&Candidate::bare());
    // The default limit may be lower, depending on the memory.
    let ours = cost(&Candidate::ours("connections = 12000\n"));
    table.print(
        "memory per connection, bare handler",
        format!("{:.2} KiB", bare / 1024.0),
    );
    table.print("memory per connection", format!("{:.2} KiB", ours / 1024.0));
    table.at_most(
        "memory per connection: divided by bare handler",
        ours / bare,
        1.1,
        "",
    );
}

fn open(candidate: &Candidate) -> TcpStream {
    let address = SocketAddr::from(([127, 0, 0, 1], candidate.port));
    let mut socket = TcpStream::connect(address).unwrap();
    request(&mut socket).expect("a response");
    socket
}

fn checks(table: &mut Table) {
    const WINDOW: Duration = Duration::from_secs(40);
    let bare = Candidate::bare();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = silent.local_addr().unwrap().port();
    thread::spawn(move || silent.incoming().for_each(drop));
    let ours = Candidate::ours(&many_checks(1000, [tcp, bare.port]));
    // Skips the start phase.
    sleep(Duration::from_secs(12));
    let (cpu, begun) = (ours.cpu_time(), Instant::now());
    sleep(WINDOW);
    let share = (ours.cpu_time() - cpu) / begun.elapsed().as_secs_f64() * 100.0;
    table.at_most(
        "CPU of 1,000 checks every 10 s, percent of one core",
        share,
        5.0,
        " %",
    );
    table.print(
        "resident memory with 1,000 checks",
        format!("{:.2} MiB", ours.resident() as f64 / MIB),
    );
}

/// The image contains only the program, compressed in the same way as by `ci`.
fn image(table: &mut Table) {
    let program = tempfile::NamedTempFile::new().unwrap();
    let archive = program.path().with_extension("gz");
    fs::copy(env!("CARGO_BIN_EXE_api"), program.path()).unwrap();
    run(Command::new("gzip")
        .args(["--best", "--stdout"])
        .arg(program.path())
        .stdout(fs::File::create(&archive).unwrap()));
    let size = |path: &Path| fs::metadata(path).unwrap().len() as f64 / MIB;
    table.print(
        "size of the program",
        format!("{:.2} MiB", size(program.path())),
    );
    table.at_most("size of the compressed image", size(&archive), 6.0, " MiB");
    fs::remove_file(archive).unwrap();
}
