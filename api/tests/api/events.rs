//! Server-sent events: live changes, missed changes, and the limit of streams.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use api::{
    Application, Settings,
    board::Board,
    checks::{Check, Target, TlsOptions, tcp},
};
use reqwest::{Response, StatusCode, header::CONTENT_TYPE};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Starts a service with one check, whose results the test records.
fn start(streams: usize) -> (String, Arc<Board>) {
    let check = Check {
        name: "cache".into(),
        display_name: None,
        target: Target::Tcp(tcp::Target {
            host: "127.0.0.1".into(),
            port: 1,
        }),
        critical: false,
        interval: Duration::from_secs(3600),
        jitter: Duration::ZERO,
        timeout: Duration::from_secs(1),
        failures: std::num::NonZeroU32::MAX,
        successes: std::num::NonZeroU32::MIN,
        degraded_above: None,
        tls: TlsOptions::default(),
        group: None,
        hide_target: false,
    };
    let application = Application::build(Settings {
        address: ([127, 0, 0, 1], 0).into(),
        checks: vec![check],
        streams,
        ..Settings::default()
    })
    .unwrap();
    let (url, board) = (
        format!("http://{}/events", application.address()),
        application.board(),
    );
    actix_web::rt::spawn(application.run_until_stopped());
    (url, board)
}

fn up(board: &Board) {
    board.record(0, SystemTime::now(), Duration::from_millis(1), Ok(()));
}

/// An event stream, with the text that is not parsed yet.
struct Stream(Response, String);

impl Stream {
    async fn open(url: &str, last: Option<&str>) -> Self {
        let mut request = crate::client().get(url);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
        Self(response, String::new())
    }

    /// The ID and the data of the next event; ignores comments and other fields.
    async fn next(&mut self) -> (String, Value) {
        loop {
            while let Some((block, rest)) = self.1.split_once("\n\n") {
                let field = |name: &str| {
                    block
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .map(str::to_owned)
                };
                let (id, kind, data) = (field("id: "), field("event: "), field("data: "));
                self.1 = rest.to_owned();
                if let (Some(id), Some(data)) = (id, data) {
                    assert_eq!(kind.as_deref(), Some("change"));
                    return (id, serde_json::from_str(&data).unwrap());
                }
            }
            let chunk = self.0.chunk().await.unwrap().expect("the stream ended");
            self.1.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[actix_web::test]
async fn sends_a_change_to_all_listeners() {
    let (url, board) = start(2);
    let mut streams = [
        Stream::open(&url, None).await,
        Stream::open(&url, None).await,
    ];
    up(&board);
    for stream in &mut streams {
        let (_, change) = stream.next().await;
        assert_eq!(
            (&change["check"], &change["from"], &change["to"]),
            (&"cache".into(), &"pending".into(), &"up".into())
        );
    }
}

#[actix_web::test]
async fn sends_missed_changes_after_a_reconnect() {
    let (url, board) = start(1);
    up(&board);
    let first = board.changes().id(1);
    let mut stream = Stream::open(&url, Some(&board.changes().id(0))).await;
    let (id, change) = stream.next().await;
    assert_eq!((id, &change["to"]), (first.clone(), &"up".into()));
    drop(stream);
    // An ID of another process: there are no missed changes.
    let again = loop {
        let request = crate::client()
            .get(&url)
            .header("Last-Event-ID", "1-7")
            .send();
        let response = request.await.unwrap();
        // The previous stream may still be open.
        if response.status() == StatusCode::OK {
            break response;
        }
    };
    let mut stream = Stream(again, String::new());
    let nothing = timeout(Duration::from_millis(200), stream.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
}

#[actix_web::test]
async fn rejects_streams_above_the_limit() {
    let (url, _board) = start(1);
    let _first = Stream::open(&url, None).await;
    let refused = crate::client().get(&url).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[CONTENT_TYPE], "application/problem+json");
    let problem: Value = refused.json().await.unwrap();
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("too many event streams"),
        "{problem}"
    );
}

#[actix_web::test]
async fn head_ends_at_once_keeps_the_connection_and_holds_no_stream() {
    let (url, _board) = start(1);
    let address = url.split('/').nth(2).unwrap();
    let mut connections = Vec::new();
    for _ in 0..3 {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let requests =
            "HEAD /events HTTP/1.1\r\nHost: a\r\n\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n";
        connection.write_all(requests.as_bytes()).await.unwrap();
        let mut received = String::new();
        let both = async {
            while !received.ends_with("\r\n\r\nok") {
                let mut buffer = [0; 1024];
                let count = connection.read(&mut buffer).await.unwrap();
                assert!(count > 0, "the connection ended: {received}");
                received.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            }
        };
        assert!(
            timeout(Duration::from_secs(10), both).await.is_ok(),
            "no response to the next request: {received}"
        );
        let (head, rest) = received.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("\r\ncontent-type: text/event-stream"),
            "{head}"
        );
        assert!(!head.contains("content-length"), "{head}");
        assert!(rest.starts_with("HTTP/1.1 200 OK\r\n"), "{rest}");
        connections.push(connection);
    }
    // The only stream is still free, although the connections are open.
    let _stream = Stream::open(&url, None).await;
    let refused = crate::client().head(&url).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
}
