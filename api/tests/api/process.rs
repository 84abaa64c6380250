//! The program as a process: environment variables, signals, log and exit codes.

use std::{
    io::{BufRead, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::StatusCode;
use serde_json::Value;

/// The program with only these environment variables.
pub fn api(environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_api"));
    command.env_clear().envs(environment.iter().copied());
    command
}

/// The running program, which is killed when dropped.
pub struct Service {
    child: Child,
    log: Lines<BufReader<ChildStdout>>,
    pub port: u64,
}

impl Service {
    pub fn start(environment: &[(&str, &str)]) -> Self {
        let mut child = api(environment)
            .env("PORT", "0")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = log
            .by_ref()
            .map(|line| {
                serde_json::from_str::<Value>(&line.unwrap()).expect("every log line is JSON")
            })
            .find(|line| line["message"] == "listening")
            .and_then(|line| line["port"].as_u64())
            .expect("the log contains the port");
        Self { child, log, port }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the exit; returns the exit code and the log lines since the start.
    fn wait(mut self) -> (Option<i32>, Vec<Value>) {
        let log = self
            .log
            .by_ref()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(environment: &[(&str, &str)]) -> Output {
    api(environment).output().unwrap()
}

#[actix_web::test]
async fn sigterm_stops_the_service_despite_an_idle_connection() {
    let service = Service::start(&[]);
    let client = crate::client();
    let response = client.get(service.url("/health")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);

    let start = Instant::now();
    service.signal(Signal::SIGTERM);
    let (code, log) = service.wait();
    assert_eq!(code, Some(0));
    assert_eq!(log.last().unwrap()["message"], "stopped");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "took {:?}",
        start.elapsed()
    );
}

#[actix_web::test]
async fn after_sigterm_the_service_is_not_ready_and_closes_connections_and_streams() {
    let service = Service::start(&[]);
    let client = crate::client();
    let stream = client.get(service.url("/events")).send().await.unwrap();
    assert_eq!(stream.status(), StatusCode::OK);
    service.signal(Signal::SIGTERM);
    let refusing = loop {
        let response = client.get(service.url("/readyz")).send().await.unwrap();
        if response.status() != StatusCode::OK {
            break response;
        }
    };
    assert_eq!(refusing.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refusing.headers()["connection"], "close");
    assert_eq!(
        refusing.text().await.unwrap(),
        "[-]shutdown the service is shutting down\nreadyz check failed\n"
    );
    // Other requests are still served.
    for path in ["/livez", "/health", "/"] {
        let response = client.get(service.url(path)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
    assert!(stream.text().await.unwrap().starts_with("retry: "));
    assert_eq!(service.wait().0, Some(0));
}

#[test]
fn second_signal_exits_immediately() {
    for (first, second) in [
        (Signal::SIGTERM, Signal::SIGTERM),
        (Signal::SIGTERM, Signal::SIGINT),
    ] {
        let mut service = Service::start(&[]);
        service.signal(first);
        let line = service
            .log
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains("shutting down"));
        assert!(line.is_some());
        service.signal(second);
        let (code, log) = service.wait();
        assert_eq!(code, Some(130));
        assert_eq!(
            log.last().unwrap()["message"],
            "second signal, exiting immediately"
        );
    }
}

#[actix_web::test]
async fn logs_requests_without_their_query_and_probes_at_debug_level() {
    let services = [("info", 0), ("debug", 1)].map(|(level, probes)| {
        let service = Service::start(&[("RUST_LOG", level)]);
        (service, probes)
    });
    for (service, _) in &services {
        for path in ["/health", "/?secret=1"] {
            crate::client().get(service.url(path)).send().await.unwrap();
        }
    }
    // Each waits for its clients, so all end at the same time.
    for (service, _) in &services {
        service.signal(Signal::SIGTERM);
    }
    for (service, probes) in services {
        let (_, log) = service.wait();
        let requests = |path| {
            log.iter()
                .filter(|line| line["message"] == "request" && line["path"] == path)
                .count()
        };
        assert_eq!((requests("/health"), requests("/")), (probes, 1), "{log:?}");
        assert!(!format!("{log:?}").contains("secret"));
    }
}

#[test]
fn invalid_variable_exits_with_code_2_and_one_line() {
    for (name, value) in [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("RUST_LOG", "api=loud"),
    ] {
        let output = run(&[(name, value)]);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(output.stdout, b"");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            stderr.starts_with(&format!("{name}={value:?}: expected ")),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn port_in_use_exits_with_code_1() {
    // The service must not serve only one of the protocols while the other one is taken.
    for taken in ["0.0.0.0:0", "[::]:0"] {
        let taken = TcpListener::bind(taken).unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let output = run(&[("PORT", &port)]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            stderr.starts_with(&format!("error: cannot listen on [::]:{port}: ")),
            "{stderr}"
        );
    }
}

#[actix_web::test]
async fn listens_on_ipv6_and_ipv4_unless_host_selects_an_address() {
    for (host, v4, v6) in [
        ("", true, true),
        ("::", true, true),
        ("0.0.0.0", true, false),
        ("127.0.0.1", true, false),
        ("::1", false, true),
    ] {
        let service = Service::start(&[("HOST", host)]);
        for (address, expected) in [("127.0.0.1", v4), ("[::1]", v6)] {
            let url = format!("http://{address}:{}/livez", service.port);
            let response = crate::client().get(url).send().await;
            assert_eq!(response.is_ok(), expected, "HOST={host} {address}");
        }
        let port = service.port.to_string();
        let healthcheck = api(&[("HOST", host), ("PORT", &port)])
            .arg("healthcheck")
            .output()
            .unwrap();
        assert!(healthcheck.status.success(), "HOST={host} {healthcheck:?}");
    }
}
