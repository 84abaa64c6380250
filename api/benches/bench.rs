//! What the service costs, beside a bare Actix handler and a FastAPI equivalent in the same run, and whether that is within bounds.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "nobody but a person at a terminal runs it"
)]

#[expect(dead_code, reason = "the tests need more of it")]
#[path = "../tests/e2e/harness.rs"]
mod harness;

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use actix_web::{App, HttpResponse, HttpServer, web};

/// Rounds of load, in each of which every candidate has its turn.
const ROUNDS: usize = 5;

/// The argument by which this program is the bare handler.
const BARE: &str = "--bare";

const FASTAPI: &str = "0.165.0";
const BESIDE_FASTAPI: [&str; 2] = ["uvicorn[standard]==0.54.0", "prometheus-client==0.26.0"];

const MIB: f64 = 1024.0 * 1024.0;

/// A part of the measurement.
type Part = (&'static str, fn(&mut Report));

const PARTS: [Part; 6] = [
    ("requests", requests),
    ("start", start),
    ("memory", memory),
    ("connections", connections),
    ("checks", checks),
    ("image", image),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    if let [flag, port, body] = &arguments[..]
        && flag == BARE
    {
        bare(port.parse().unwrap(), body.clone());
        return ExitCode::SUCCESS;
    }
    let known = |argument: &String| PARTS.iter().any(|(name, _)| name == argument);
    if !arguments.iter().all(known) {
        let names = PARTS.map(|(name, _)| name).join(", ");
        eprintln!("error: the parts are {names}; without any, all are measured");
        return ExitCode::from(2);
    }
    let mut report = Report::default();
    for (name, measure) in PARTS {
        if arguments.is_empty() || arguments.iter().any(|argument| argument == name) {
            eprintln!("measuring {name} …");
            measure(&mut report);
        }
    }
    print!("{}", report.table());
    if report.0.iter().all(Line::is_within) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The handler that everything is compared to.
#[actix_web::main]
async fn bare(port: u16, body: String) {
    let body = web::Bytes::from(body);
    let server = HttpServer::new(move || {
        let body = body.clone();
        let answer = move || {
            let body = body.clone();
            async move {
                HttpResponse::Ok()
                    .content_type("application/health+json")
                    .body(body)
            }
        };
        App::new().route("/health", web::get().to(answer))
    })
    // Its idle connections are to last until they are counted.
    .keep_alive(Duration::from_secs(60))
    .bind(("127.0.0.1", port));
    server.unwrap().run().await.unwrap();
}

#[derive(Default)]
struct Report(Vec<Line>);

struct Line {
    what: String,
    value: f64,
    unit: &'static str,
    bound: Option<Bound>,
}

#[derive(Clone, Copy)]
enum Bound {
    Least(f64),
    Most(f64),
}

impl Line {
    fn is_within(&self) -> bool {
        match self.bound {
            None => true,
            Some(Bound::Least(least)) => self.value >= least,
            Some(Bound::Most(most)) => self.value <= most,
        }
    }
}

impl Report {
    fn add(&mut self, what: &str, value: f64, unit: &'static str, bound: Option<Bound>) {
        self.0.push(Line {
            what: what.to_owned(),
            value,
            unit,
            bound,
        });
    }

    fn table(&self) -> String {
        let width = self.0.iter().map(|line| line.what.len()).max().unwrap_or(0);
        let mut table = String::new();
        for line in &self.0 {
            let Line {
                what, value, unit, ..
            } = line;
            let value = format!("{value:.*}", if *value < 100.0 { 2 } else { 0 });
            let bound = match line.bound {
                None => String::new(),
                Some(Bound::Least(least)) => format!("at least {least}"),
                Some(Bound::Most(most)) => format!("at most {most}"),
            };
            let verdict = match (line.bound, line.is_within()) {
                (None, _) => "",
                (_, true) => "ok",
                (_, false) => "MISSED",
            };
            writeln!(
                table,
                "{what:width$}  {value:>9} {unit:6}  {bound:14}  {verdict}"
            )
            .unwrap();
        }
        table
    }
}

/// A server that is measured; killed when that is done.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts `command`, which listens on `port`, and returns when it answers.
    fn start(mut command: Command, port: u16) -> Self {
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let server = Self { child, port };
        let start = Instant::now();
        while server.get("/health").is_none() {
            assert!(start.elapsed() < Duration::from_secs(30), "{command:?}");
            thread::sleep(Duration::from_micros(200));
        }
        server
    }

    fn service(configuration: &str) -> Self {
        let port = harness::free_port();
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{port}.toml"));
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_api"));
        command
            .args(["serve", "--config"])
            .arg(&file)
            .env_clear()
            .env("PORT", port.to_string());
        let server = Self::start(command, port);
        fs::remove_file(file).unwrap();
        server
    }

    fn bare(body: &str) -> Self {
        let port = harness::free_port();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([BARE, &port.to_string(), body]);
        Self::start(command, port)
    }

    fn fastapi(app: &str) -> Self {
        let folder = harness::venv("fastapi", FASTAPI, &BESIDE_FASTAPI);
        let port = harness::free_port();
        let mut command = Command::new(folder.join("bin/uvicorn"));
        command
            .arg(format!("fastapi_app:{app}"))
            .args(["--no-access-log", "--log-level", "error"])
            .args(["--loop", "uvloop", "--http", "httptools"])
            .args(["--port", &port.to_string()])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Self::start(command, port)
    }

    /// The body of a good answer; none where it does not listen yet.
    fn get(&self, path: &str) -> Option<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        let body = answer
            .strip_prefix("HTTP/1.1 200 OK\r\n")?
            .split_once("\r\n\r\n")?
            .1;
        Some(body.to_owned())
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// Bytes in memory.
    fn resident(&self) -> f64 {
        let status = self.proc("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kilobytes * 1024.0
    }

    /// Processor time so far, in seconds.
    fn processor(&self) -> f64 {
        let stat = self.proc("stat");
        // The name may have spaces; after it, utime and stime are the 12th and 13th, in hundredths on every Linux.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2);
        ticks
            .map(|ticks| ticks.parse::<f64>().unwrap())
            .sum::<f64>()
            / 100.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// So many TCP checks of a port of ours, which is there as long as the listener.
fn configuration(checks: usize) -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let accepting = listener.try_clone().unwrap();
    thread::spawn(move || for _ in accepting.incoming() {});
    let mut text = "connections = 12000\n".to_owned();
    for number in 0..checks {
        writeln!(
            text,
            "[[checks]]\nname = \"check-{number}\"\ntcp = \"{target}\"\ninterval = \"10s\""
        )
        .unwrap();
    }
    (text, listener)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Requests a second, and the milliseconds that 99 of 100 take at most.
fn load(server: &Server, path: &str, seconds: u32) -> (f64, f64) {
    let output = Command::new("wrk")
        .args(["--threads", "2", "--connections", "64", "--latency"])
        .arg(format!("--duration={seconds}s"))
        .arg(format!("http://127.0.0.1:{}{path}", server.port))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for trouble in ["Socket errors", "Non-2xx"] {
        assert!(!text.contains(trouble), "{text}");
    }
    let field = |name: &str| {
        let mut lines = text.lines();
        lines
            .find_map(|line| line.trim().strip_prefix(name))
            .unwrap()
            .trim()
    };
    let p99 = field("99%");
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    let p99 = units
        .iter()
        .find_map(|(unit, factor)| Some(p99.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
        .unwrap();
    (field("Requests/sec:").parse().unwrap(), p99)
}

fn requests(report: &mut Report) {
    harness::install(&[harness::package("wrk", "wrk")]);
    let (with_checks, _listener) = configuration(20);
    let service = Server::service("");
    let checked = Server::service(&with_checks);
    let bare = Server::bare(&service.get("/health").unwrap());
    let fastapi = Server::fastapi("app");
    let bare_fastapi = Server::fastapi("bare");
    let candidates = [
        (&bare, "/health"),
        (&service, "/health"),
        (&checked, "/api/v1/checks"),
        (&fastapi, "/health"),
        (&bare_fastapi, "/health"),
    ];
    let mut rates = [const { Vec::new() }; 5];
    let mut tails = [const { Vec::new() }; 5];
    for (server, path) in candidates {
        load(server, path, 1);
    }
    for _ in 0..ROUNDS {
        for (index, (server, path)) in candidates.into_iter().enumerate() {
            let (rate, p99) = load(server, path, 3);
            rates[index].push(rate);
            tails[index].push(p99);
        }
    }
    let [bare, health, list, fastapi, bare_fastapi] = rates.map(median);
    let [
        bare_p99,
        health_p99,
        list_p99,
        fastapi_p99,
        bare_fastapi_p99,
    ] = tails.map(median);
    for (what, rate, p99) in [
        ("bare handler", bare, bare_p99),
        ("/health", health, health_p99),
        ("/api/v1/checks, 20 checks", list, list_p99),
        ("FastAPI, the same duties", fastapi, fastapi_p99),
        ("FastAPI, bare handler", bare_fastapi, bare_fastapi_p99),
    ] {
        report.add(what, rate, "1/s", None);
        report.add(&format!("{what}, p99"), p99, "ms", None);
    }
    let least = |least| Some(Bound::Least(least));
    report.add("/health to bare", health / bare, "", least(0.85));
    report.add("/health to FastAPI", health / fastapi, "", least(30.0));
    report.add(
        "p99 of /health to bare",
        health_p99 / bare_p99,
        "",
        Some(Bound::Most(2.0)),
    );
    report.add("/api/v1/checks to bare", list / bare, "", least(0.6));
}

fn start(report: &mut Report) {
    let (configuration, _listener) = configuration(20);
    let took = (0..20)
        .map(|_| {
            let start = Instant::now();
            drop(Server::service(&configuration));
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    let most = Some(Bound::Most(25.0));
    report.add("first 200 after exec", median(took), "ms", most);
}

fn memory(report: &mut Report) {
    let (configuration, _listener) = configuration(20);
    let service = Server::service(&configuration);
    // Every check has run.
    thread::sleep(Duration::from_secs(12));
    let resident = service.resident() / MIB;
    let most = Some(Bound::Most(8.0));
    report.add("resident, idle, 20 checks", resident, "MiB", most);
}

/// The bytes that each of many idle connections takes, after one request.
fn each_connection(server: &Server) -> f64 {
    const THREADS: usize = 4;
    const EACH: usize = 2_500;

    let open = || {
        (0..EACH)
            .map(|_| {
                let mut socket = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
                socket
                    .write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                    .unwrap();
                let count = socket.read(&mut [0; 4096]).unwrap();
                assert!(count > 0);
                socket
            })
            .collect::<Vec<_>>()
    };
    // What is made at the first request is no connection's.
    load(server, "/health", 1);
    let before = server.resident();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..THREADS).map(|_| scope.spawn(open)).collect();
        let sockets: Vec<_> = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect();
        let after = server.resident();
        let files = fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap();
        assert!(files.count() >= sockets.len(), "some are closed already");
        (after - before) / sockets.len() as f64
    })
}

fn connections(report: &mut Report) {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    harness::install(&[harness::package("wrk", "wrk")]);
    let service = Server::service("connections = 12000");
    let bare = Server::bare(&service.get("/health").unwrap());
    let (bare, service) = (each_connection(&bare), each_connection(&service));
    report.add("connection, bare", bare / 1024.0, "KiB", None);
    report.add("connection", service / 1024.0, "KiB", None);
    let most = Some(Bound::Most(1.1));
    report.add("connection to bare", service / bare, "", most);
}

fn checks(report: &mut Report) {
    let (configuration, _listener) = configuration(1_000);
    let service = Server::service(&configuration);
    thread::sleep(Duration::from_secs(10));
    let before = service.processor();
    thread::sleep(Duration::from_secs(60));
    let share = (service.processor() - before) / 60.0 * 100.0;
    let most = Some(Bound::Most(5.0));
    report.add("1,000 checks, share of a core", share, "%", most);
}

fn image(report: &mut Report) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let image = target.join("ci/image.tar");
    // Before the first run of the pipeline: all else in the image is a few KiB.
    let (what, file) = match image.exists() {
        true => ("image, compressed", image.as_path()),
        false => ("program, compressed", Path::new(env!("CARGO_BIN_EXE_api"))),
    };
    let gzip = Command::new("gzip")
        .args(["--best", "--stdout"])
        .arg(file)
        .output()
        .unwrap();
    let most = Some(Bound::Most(6.0));
    report.add(what, gzip.stdout.len() as f64 / MIB, "MiB", most);
}
