//! Slow, large and malformed requests, and excess connections.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

use api::{Application, Settings};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

/// Longer than every timeout of the service.
const LONG: Duration = Duration::from_secs(25);

/// A limit for tests that wait until it is over.
const SHORT: Duration = Duration::from_secs(3);

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";

/// Settings with this limit for slow and idle clients.
fn with_request_timeout(limit: Duration) -> Settings {
    Settings {
        request_timeout: limit,
        ..Settings::default()
    }
}

fn start() -> SocketAddr {
    start_with(Settings::default())
}

fn start_with(settings: Settings) -> SocketAddr {
    let settings = Settings {
        address: ([127, 0, 0, 1], 0).into(),
        ..settings
    };
    let application = Application::build(settings).unwrap();
    let address = application.address();
    actix_web::rt::spawn(application.run_until_stopped());
    address
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// Sends `sent` and reads until the service closes the connection.
async fn exchange(address: SocketAddr, sent: impl AsRef<[u8]>) -> String {
    let mut socket = connect(address).await;
    // Fails if the service closes the connection early.
    let _ = socket.write_all(sent.as_ref()).await;
    to_the_end(&mut socket).await
}

async fn to_the_end(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let end = timeout(LONG, socket.read_to_end(&mut answer)).await;
    end.expect("the service closes the connection").unwrap();
    String::from_utf8(answer).unwrap()
}

/// Reads one response of a connection that stays open.
async fn read_response(socket: &mut TcpStream) -> String {
    let mut answer = String::new();
    let mut buffer = [0; 4096];
    let read = async {
        loop {
            let count = socket.read(&mut buffer).await.unwrap();
            answer.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            let Some((head, body)) = answer.split_once("\r\n\r\n") else {
                assert!(count > 0, "{answer:?}");
                continue;
            };
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_lowercase()
                        .strip_prefix("content-length: ")?
                        .parse()
                        .ok()
                })
                .unwrap_or(0);
            if body.len() >= length || count == 0 {
                break;
            }
        }
    };
    timeout(LONG, read).await.unwrap();
    answer
}

async fn assert_serves(address: SocketAddr) {
    let mut socket = connect(address).await;
    socket.write_all(HEALTH.as_bytes()).await.unwrap();
    let answer = read_response(&mut socket).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[actix_web::test]
async fn rejects_malformed_requests_with_400_and_closes_the_connection() {
    let address = start();
    for request in [
        "nonsense\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GE T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /health\r\n\r\n",
        "GET /health HTTP/9.9\r\nHost: a\r\n\r\n",
        "GET /health HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET /health HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: a\r\nbad name: b\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: a\r\nname : b\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: a\r\nname: b\0c\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: a\r\nname: b\rc\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
        // A TLS client hello.
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = exchange(address, request).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{request:?}: {answer:?}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?}");
    }
    // RFC 9112 allows a single line feed as line terminator.
    let request = "GET /health HTTP/1.1\nHost: a\nConnection: close\n\n";
    let answer = exchange(address, request).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer:?}");
    assert_serves(address).await;
}

#[actix_web::test]
async fn rejects_ambiguous_framing() {
    let address = start();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for headers in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 18446744073709551616",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: \u{b}chunked",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n0\r\n\r\n{smuggled}");
        let answer = exchange(address, &request).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{headers:?}: {answer:?}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers:?}");
    }
    // Chunks with a wrong size.
    for body in [
        "5\r\nhello0\r\n\r\n",
        "g\r\n",
        "ffffffffffffffffff\r\n",
        "5;\nhello\r\n",
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}{smuggled}"
        );
        let answer = exchange(address, &request).await;
        assert!(!answer.contains("404 Not Found"), "{body:?}: {answer:?}");
    }
    assert_serves(address).await;
}

#[actix_web::test]
async fn rejects_heads_above_the_limit_and_accepts_many_cookies() {
    let address = start();
    let head = |size: usize| {
        let cookies = "c".repeat(size - 60);
        format!("GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nCookie: {cookies}\r\n\r\n")
    };
    for size in [1_000, 4_000, 8_000, 16_000] {
        let answer = exchange(address, head(size)).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n"),
            "{size}: {answer}"
        );
    }
    for size in [40_000, 130_000, 500_000] {
        let answer = exchange(address, head(size)).await;
        assert!(
            answer.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"),
            "{size}: {answer}"
        );
        assert!(answer.contains("content-type: application/problem+json\r\n"));
        assert!(answer.contains("connection: close\r\n"));
    }
    let many = "X: y\r\n".repeat(1_000);
    let answer = exchange(
        address,
        format!("GET /health HTTP/1.1\r\nHost: a\r\n{many}\r\n"),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_serves(address).await;
}

#[actix_web::test]
async fn closes_the_connection_after_a_large_second_head() {
    let address = start();
    let mut socket = connect(address).await;
    socket.write_all(HEALTH.as_bytes()).await.unwrap();
    assert!(read_response(&mut socket).await.starts_with("HTTP/1.1 200"));
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(60_000));
    let _ = socket.write_all(head.as_bytes()).await;
    assert_eq!(to_the_end(&mut socket).await, "");
}

async fn does_not_wait_for_body(address: SocketAddr, headers: &str) {
    let mut socket = connect(address).await;
    let head = format!("POST /health HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = read_response(&mut socket).await;
    // "100 Continue" may arrive separately.
    if !answer.contains("HTTP/1.1 405") {
        answer = read_response(&mut socket).await;
    }
    assert!(answer.contains("HTTP/1.1 405"), "{headers}: {answer}");
    // Then the body arrives slowly.
    let (mut reads, mut writes) = socket.split();
    let trickle = async {
        while writes.write_all(b"1\r\nx\r\n").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let mut rest = Vec::new();
    tokio::select! {
        () = trickle => {}
        end = reads.read_to_end(&mut rest) => if let Err(error) = end {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{headers}");
        },
        () = sleep(LONG) => panic!("{headers}: still connected"),
    }
    assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"));
}

#[actix_web::test]
async fn does_not_wait_for_bodies() {
    let address = start_with(with_request_timeout(SHORT));
    // The service keeps each connection open for a while, so they wait together.
    futures_util::future::join_all(
        [
            "Content-Length: 1000000000",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue\r\nContent-Length: 1000000000",
        ]
        .map(|headers| does_not_wait_for_body(address, headers)),
    )
    .await;
    // A large body at once.
    let answer = exchange(
        address,
        format!(
            "POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n{}",
            "x".repeat(1_000_000)
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert_serves(address).await;
}

/// Sends the bytes slowly until the service responds. Returns the response and the elapsed time.
async fn trickle(mut socket: TcpStream, bytes: Vec<u8>) -> (String, Duration) {
    let start = Instant::now();
    for byte in bytes {
        if socket.write_all(&[byte]).await.is_err() {
            break;
        }
        let mut peeked = [0];
        if timeout(Duration::from_millis(100), socket.peek(&mut peeked))
            .await
            .is_ok()
        {
            break;
        }
    }
    (to_the_end(&mut socket).await, start.elapsed())
}

#[actix_web::test]
async fn times_out_slow_heads_and_idle_connections() {
    let limit = Duration::from_secs(2);
    let address = start_with(with_request_timeout(limit));
    let head = format!("GET /health HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(100));
    let first = async {
        let (answer, took) = trickle(connect(address).await, head.clone().into_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
            "{answer}"
        );
        assert!(took > limit / 2, "{took:?}");
    };
    let second = async {
        let mut socket = connect(address).await;
        socket.write_all(HEALTH.as_bytes()).await.unwrap();
        assert!(read_response(&mut socket).await.starts_with("HTTP/1.1 200"));
        let (answer, _) = trickle(socket, head.clone().into_bytes()).await;
        // The client would mistake a 408 for its second response.
        assert_eq!(answer, "");
    };
    let stops = async {
        let mut socket = connect(address).await;
        socket.write_all(HEALTH.as_bytes()).await.unwrap();
        assert!(read_response(&mut socket).await.starts_with("HTTP/1.1 200"));
        socket.write_all(b"GET /hea").await.unwrap();
        assert_eq!(to_the_end(&mut socket).await, "");
    };
    let silent = async {
        assert_eq!(to_the_end(&mut connect(address).await).await, "");
    };
    let idle = async {
        let mut socket = connect(address).await;
        socket.write_all(HEALTH.as_bytes()).await.unwrap();
        assert!(read_response(&mut socket).await.starts_with("HTTP/1.1 200"));
        assert_eq!(to_the_end(&mut socket).await, "");
    };
    tokio::join!(first, second, stops, silent, idle);
    assert_serves(address).await;
}

#[actix_web::test]
async fn answers_all_pipelined_requests() {
    let address = start();
    let count = 5_000;
    let requests =
        HEALTH.repeat(count - 1) + "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut socket = connect(address).await;
    let (mut reads, mut writes) = socket.split();
    let mut answers = String::new();
    let (written, read) = tokio::join!(
        writes.write_all(requests.as_bytes()),
        timeout(LONG, reads.read_to_string(&mut answers))
    );
    written.unwrap();
    read.unwrap().unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), count);
}

#[actix_web::test]
async fn rejects_excess_connections_and_serves_the_others() {
    let address = start_with(Settings {
        connections: Some(16),
        ..with_request_timeout(SHORT)
    });
    let mut served = Vec::new();
    for _ in 0..16 {
        served.push(connect(address).await);
    }
    // Waits until all of them are accepted.
    sleep(Duration::from_millis(200)).await;
    for request in ["", HEALTH, "GET /health HTTP/1.0\r\n\r\n"] {
        let answer = exchange(address, request).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{answer}"
        );
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        for header in [
            "content-type: application/problem+json",
            "retry-after: ",
            "connection: close",
        ] {
            assert!(head.contains(&format!("\r\n{header}")), "{head}");
        }
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["status"], 503);
    }
    for socket in &mut served {
        socket.write_all(HEALTH.as_bytes()).await.unwrap();
        let answer = read_response(socket).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    // The first connections stay open; those opened near the limit are closed after one response.
    served[0].write_all(HEALTH.as_bytes()).await.unwrap();
    let answer = read_response(&mut served[0]).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(to_the_end(&mut served[15]).await, "");
    assert_serves(address).await;
}

#[actix_web::test]
async fn serves_others_while_clients_do_not_read() {
    let address = start();
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut socket = connect(address).await;
        let asks = async {
            let requests = "GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
            while socket.write_all(requests.as_bytes()).await.is_ok() {}
        };
        let _ = timeout(Duration::from_millis(20), asks).await;
        clients.push(socket);
    }
    assert_serves(address).await;
}
