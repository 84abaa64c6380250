//! The service's speed and memory beside those of a bare Actix handler and of a FastAPI application, all in one run.
//!
//! `just bench` builds the service as the image has it. A word such as `requests` runs the parts whose name begins so. A bound that
//! is missed ends it with 1.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measurement that fails is none, and its figures are printed"
)]
#![expect(dead_code, reason = "the harness is that of the tests, too")]

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

/// Each candidate in turn, so often: what else the machine does then hits all alike.
const ROUNDS: usize = 5;

/// How long one round of one candidate takes.
const ROUND: Duration = Duration::from_secs(3);

/// What comes with `main`'s argument `--bare PORT`.
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
    let asked = arguments.iter().find(|argument| !argument.starts_with('-'));
    let parts: [Part; 6] = [
        ("start", start),
        ("requests", requests),
        ("memory", memory),
        ("connections", connections),
        ("checks", checks),
        ("image", image),
    ];
    let mut table = Table::default();
    for (name, measure) in parts {
        if asked.is_none_or(|asked| name.starts_with(asked.as_str())) {
            measure(&mut table);
        }
    }
    ExitCode::from(u8::from(table.missed))
}

/// What is measured, by its name.
type Part = (&'static str, fn(&mut Table));

/// A handler and nothing else, in a server as Actix makes it.
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

/// A program that is measured.
struct Candidate {
    id: u32,
    port: u16,
    /// Ends it.
    _running: Box<dyn Any>,
}

/// A program that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Candidate {
    fn ours(configuration: &str) -> Self {
        // None of the others logs requests either.
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
        // As `pip install fastapi uvicorn` and uvicorn's own defaults have it: one process.
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

    /// Bytes that are in memory.
    fn resident(&self) -> u64 {
        self.process().rss_bytes().get()
    }

    /// Seconds that the processor worked for it.
    fn processor(&self) -> f64 {
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
            line.unwrap_or_else(|| panic!("wrk says nothing of {name}:\n{report}"))
                .trim()
        };
        assert!(!report.contains("Non-2xx"), "{report}");
        Load {
            rate: figure("Requests/sec:").parse().unwrap(),
            p99: in_seconds(figure("99%")),
        }
    }
}

/// `1.23ms` and the like.
fn in_seconds(text: &str) -> f64 {
    let digits = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        _ => 1.0,
    };
    digits.parse::<f64>().unwrap() * unit
}

/// What wrk says.
#[derive(Clone, Copy)]
struct Load {
    rate: f64,
    p99: f64,
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Twenty checks of what is there, asked every ten seconds.
fn twenty_checks(ports: [u16; 2]) -> String {
    many_checks(20, ports)
}

/// Checks of which one half opens connections and the other asks over HTTP.
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
        while ask(port).is_none() {
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
        let took = begun.elapsed().as_secs_f64() * 1e3;
        drop(program);
        took
    };
    let times = (0..11).map(|_| first()).collect();
    table.at_most("first 200 after exec", median(times), 25.0, " ms");
}

/// One request of a connection of its own.
fn ask(port: u16) -> Option<()> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    request(&mut socket)
}

/// One request; its answer fits one buffer.
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
    // Of what /health says, the checks are most: the same answer as the bare handler's comes from a service without.
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
        table.say(
            &format!("{name}: requests a second, p99"),
            format!("{rate:.0}, {:.2} ms", p99 * 1e3),
        );
    }
    // Within each round, so that a slow moment of the machine is in both.
    let ratio = |of: usize, to: usize| {
        let pairs = loads[of].iter().zip(&loads[to]);
        median(
            pairs
                .map(|(of, to): (&Load, &Load)| of.rate / to.rate)
                .collect(),
        )
    };
    table.at_least(
        "/health, of the bare handler's requests a second",
        ratio(2, 0),
        0.85,
        "",
    );
    table.at_least(
        "/health, of FastAPI's requests a second",
        ratio(2, 1),
        30.0,
        "",
    );
    table.at_most(
        "/health, of the bare handler's p99",
        p99s[2] / p99s[0],
        2.0,
        "",
    );
    table.at_least(
        "/api/v1/checks, of the bare handler's requests a second",
        ratio(3, 0),
        0.6,
        "",
    );
}

fn memory(table: &mut Table) {
    let bare = Candidate::bare();
    let ours = Candidate::ours(&twenty_checks([bare.port; 2]));
    sleep(Duration::from_secs(25));
    let resident = ours.resident() as f64 / MIB;
    table.say(
        "resident, bare handler",
        format!("{:.2} MiB", bare.resident() as f64 / MIB),
    );
    table.at_most("resident, idle with 20 checks", resident, 8.0, " MiB");
}

/// What an idle connection costs after its first request.
fn connections(table: &mut Table) {
    const MANY: usize = 10_000;
    let cost = |candidate: &Candidate| {
        // So that what the first ones cost once is not in it.
        let before: Vec<_> = (0..100).map(|_| open(candidate)).collect();
        let idle = candidate.resident();
        let begun = Instant::now();
        let open: Vec<_> = (0..MANY).map(|_| open(candidate)).collect();
        let took = begun.elapsed();
        assert!(
            took < Duration::from_secs(5),
            "the first are closed by now: {took:?}"
        );
        let resident = candidate.resident();
        drop((before, open));
        (resident - idle) as f64 / MANY as f64
    };
    let bare = cost(&Candidate::bare());
    // By default it takes fewer, if the memory is little.
    let ours = cost(&Candidate::ours("connections = 12000\n"));
    table.say(
        "a connection, bare handler",
        format!("{:.2} KiB", bare / 1024.0),
    );
    table.say("a connection", format!("{:.2} KiB", ours / 1024.0));
    table.at_most("a connection, of the bare handler's", ours / bare, 1.1, "");
}

fn open(candidate: &Candidate) -> TcpStream {
    let address = SocketAddr::from(([127, 0, 0, 1], candidate.port));
    let mut socket = TcpStream::connect(address).unwrap();
    request(&mut socket).expect("an answer");
    socket
}

fn checks(table: &mut Table) {
    const WINDOW: Duration = Duration::from_secs(40);
    let bare = Candidate::bare();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = silent.local_addr().unwrap().port();
    thread::spawn(move || silent.incoming().for_each(drop));
    let ours = Candidate::ours(&many_checks(1000, [tcp, bare.port]));
    // Beyond their beginning.
    sleep(Duration::from_secs(12));
    let (cpu, begun) = (ours.processor(), Instant::now());
    sleep(WINDOW);
    let share = (ours.processor() - cpu) / begun.elapsed().as_secs_f64() * 100.0;
    table.at_most("1,000 checks every 10 s, of one core", share, 5.0, " %");
    table.say(
        "resident with them",
        format!("{:.2} MiB", ours.resident() as f64 / MIB),
    );
}

/// The image is the program and nothing else, compressed as `ci` does it.
fn image(table: &mut Table) {
    let program = tempfile::NamedTempFile::new().unwrap();
    let archive = program.path().with_extension("gz");
    fs::copy(env!("CARGO_BIN_EXE_api"), program.path()).unwrap();
    run(Command::new("gzip")
        .args(["--best", "--stdout"])
        .arg(program.path())
        .stdout(fs::File::create(&archive).unwrap()));
    let size = |path: &Path| fs::metadata(path).unwrap().len() as f64 / MIB;
    table.say("the program", format!("{:.2} MiB", size(program.path())));
    table.at_most("the image, compressed", size(&archive), 6.0, " MiB");
    fs::remove_file(archive).unwrap();
}
