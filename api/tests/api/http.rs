//! HTTP checks of servers that speak HTTP/2 only, compress their bodies, or send what no specification allows.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use api::{
    checks::{Target, http},
    secret::SecretText,
};
use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder, ZlibEncoder};
use h2::Reason;
use hyper::{Response, body::Bytes};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::yield_now,
};
use tokio_rustls::TlsAcceptor;

use crate::probes::{
    clients, listen,
    over_tls::{Authority, serve_ok},
    probe_with, url,
};

fn get(port: u16) -> http::Target {
    http::Target::get(url(&format!("http://127.0.0.1:{port}/path?query")))
}

async fn probe(target: http::Target) -> Result<(), String> {
    probe_with(Target::Http(target), &clients()).await
}

/// Sends `response` to each request, then closes the connection. Returns the port and the requests.
async fn serve(response: impl AsRef<[u8]> + 'static) -> (u16, Arc<Mutex<Vec<String>>>) {
    let (response, requests) = (Arc::new(response), Arc::new(Mutex::new(Vec::new())));
    let seen = requests.clone();
    let port = listen(move |mut stream| {
        let (response, seen) = (response.clone(), seen.clone());
        async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => return,
                }
            }
            let request = String::from_utf8(request).unwrap();
            seen.lock().unwrap().push(request);
            // Fails if the client has closed the connection.
            let _ = stream.write_all((*response).as_ref()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    (port, requests)
}

mod versions {
    use super::*;

    /// Serves HTTP/2 only. Returns each request as text.
    async fn serve_http2(
        stream: impl AsyncRead + AsyncWrite + Unpin,
        seen: &Mutex<Vec<String>>,
    ) -> Result<(), h2::Error> {
        let mut connection = h2::server::handshake(stream).await?;
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request?;
            let (head, _) = request.into_parts();
            let headers = format!("{} {}\n{:?}", head.method, head.uri, head.headers);
            seen.lock().unwrap().push(headers);
            let mut body = respond.send_response(Response::new(()), false)?;
            body.send_data(Bytes::from_static(b"all is well"), true)?;
        }
        Ok(())
    }

    /// Starts a server that speaks HTTP/2 only, with `acceptor` over TLS.
    async fn start(acceptor: Option<TlsAcceptor>) -> (u16, Arc<Mutex<Vec<String>>>) {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let port = listen(move |stream| {
            let (acceptor, seen) = (acceptor.clone(), seen.clone());
            async move {
                // Fails if the client speaks HTTP/1.
                let _ = match acceptor {
                    None => serve_http2(stream, &seen).await,
                    Some(acceptor) => match acceptor.accept(stream).await {
                        Ok(stream) => serve_http2(stream, &seen).await,
                        Err(_) => Ok(()),
                    },
                };
            }
        })
        .await;
        (port, requests)
    }

    /// An acceptor that selects one of these protocols.
    fn acceptor(authority: &Authority, protocols: &[&[u8]]) -> TlsAcceptor {
        let end = SystemTime::now() + Duration::from_secs(86_400);
        let acceptor = authority.acceptor("localhost", end);
        let mut config = (**acceptor.config()).clone();
        config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
        Arc::new(config).into()
    }

    const VERSIONS: [http::Version; 3] = [
        http::Version::Any,
        http::Version::Http1,
        http::Version::Http2,
    ];

    #[actix_web::test]
    async fn negotiates_http2_over_tls() {
        let authority = Authority::new();
        let (port, requests) = start(Some(acceptor(&authority, &[b"h2"]))).await;
        for version in VERSIONS {
            let target = http::Target {
                version,
                body: Some("is well".into()),
                ..http::Target::get(url(&format!("https://localhost:{port}/path?query")))
            };
            let answer = probe_with(Target::Http(target), &authority.clients()).await;
            assert_eq!(
                answer.is_ok(),
                version != http::Version::Http1,
                "{answer:?}"
            );
        }
        let requests = requests.lock().unwrap();
        assert_eq!(requests.len(), 2);
        for request in requests.iter() {
            let expected = format!("GET https://localhost:{port}/path?query\n");
            assert!(request.starts_with(&expected), "{request}");
        }
    }

    #[actix_web::test]
    async fn negotiates_http1_over_tls() {
        let authority = Authority::new();
        let acceptor = acceptor(&authority, &[b"http/1.1"]);
        let port = serve_ok(acceptor).await;
        for version in VERSIONS {
            let target = http::Target {
                version,
                ..http::Target::get(url(&format!("https://localhost:{port}/")))
            };
            let answer = probe_with(Target::Http(target), &authority.clients()).await;
            assert_eq!(
                answer.is_ok(),
                version != http::Version::Http2,
                "{answer:?}"
            );
        }
    }

    #[actix_web::test]
    async fn speaks_http2_without_tls_to_servers_that_speak_nothing_else() {
        let (port, requests) = start(None).await;
        for (version, method) in [
            (http::Version::Any, "GET"),
            (http::Version::Any, "POST"),
            (http::Version::Http2, "GET"),
            (http::Version::Http2, "HEAD"),
        ] {
            let target = http::Target {
                version,
                method: method.into(),
                headers: vec![("Host".into(), SecretText::new("other.test".into()))],
                ..get(port)
            };
            assert_eq!(probe(target).await, Ok(()));
            let request = requests.lock().unwrap().pop().unwrap();
            let expected = format!("{method} http://other.test/path?query\n");
            assert!(request.starts_with(&expected), "{request}");
            let has_length = request.contains("\"content-length\": \"0\"");
            assert_eq!(has_length, method == "POST", "{request}");
            assert!(!request.contains("\"host\""), "{request}");
        }
        let target = http::Target {
            version: http::Version::Http1,
            ..get(port)
        };
        probe(target).await.unwrap_err();
    }

    #[actix_web::test]
    async fn remembers_that_a_server_speaks_http2_only() {
        let connections = Arc::new(Mutex::new(0));
        let counter = connections.clone();
        let port = listen(move |stream| {
            *counter.lock().unwrap() += 1;
            async move {
                let _ = serve_http2(stream, &Mutex::default()).await;
            }
        })
        .await;
        let mut probe = Target::Http(get(port)).probe(&clients());
        for expected in [2, 3, 4] {
            assert_eq!(probe.run().await.map_err(|error| error.0), Ok(()));
            assert_eq!(*connections.lock().unwrap(), expected);
        }
    }

    #[actix_web::test]
    async fn speaks_http2_to_servers_that_close_other_connections() {
        // Unread data resets the connection.
        for reads in [false, true] {
            let port = listen(move |mut stream| async move {
                let mut start = [0; 3];
                stream.peek(&mut start).await.unwrap();
                if start == *b"PRI" {
                    let _ = serve_http2(stream, &Mutex::default()).await;
                } else if reads {
                    let _ = stream.read(&mut [0; 4096]).await;
                }
            })
            .await;
            assert_eq!(probe(get(port)).await, Ok(()));
        }
        // The error of a server that closes every connection is that of the first one.
        let port = listen(async |mut stream| {
            let _ = stream.read(&mut [0; 4096]).await;
        })
        .await;
        let error = probe(get(port)).await.unwrap_err();
        assert_eq!(error, "connection closed before message completed");
    }

    #[actix_web::test]
    async fn speaks_http1_if_the_server_requires_it() {
        let authority = Authority::new();
        let acceptor = acceptor(&authority, &[b"h2", b"http/1.1"]);
        let port = listen(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                    let _ = stream.read(&mut [0; 1024]).await;
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                    return;
                }
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_reset(Reason::HTTP_1_1_REQUIRED);
                }
            }
        })
        .await;
        let target = http::Target::get(url(&format!("https://localhost:{port}/")));
        assert_eq!(
            probe_with(Target::Http(target), &authority.clients()).await,
            Ok(())
        );
    }
}

#[actix_web::test]
async fn post_tells_that_it_has_no_body() {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for (method, headers, count) in [
        ("POST", &[][..], 1),
        ("POST", &[("Content-Length", "0")], 1),
        (
            "POST",
            &[("Content-Length", "7"), ("Transfer-Encoding", "chunked")],
            1,
        ),
        ("GET", &[], 0),
        ("HEAD", &[], 0),
    ] {
        let (port, requests) = serve(OK).await;
        let target = http::Target {
            method: method.into(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).into(), SecretText::new((*value).into())))
                .collect(),
            ..get(port)
        };
        assert_eq!(probe(target).await, Ok(()));
        let request = requests.lock().unwrap().concat();
        assert_eq!(
            request.matches("content-length: 0\r\n").count(),
            count,
            "{request}"
        );
        assert_eq!(
            request.matches("content-length").count(),
            count,
            "{request}"
        );
        assert!(!request.contains("transfer-encoding"), "{request}");
    }
}

mod bodies {
    use super::*;

    async fn all(mut encoder: impl AsyncRead + Unpin) -> Vec<u8> {
        let mut encoded = Vec::new();
        encoder.read_to_end(&mut encoded).await.unwrap();
        encoded
    }

    async fn encode(encoding: &str, body: &[u8]) -> Vec<u8> {
        match encoding {
            "gzip" | "x-gzip" => all(GzipEncoder::new(body)).await,
            "br" => all(BrotliEncoder::new(body)).await,
            "deflate" => all(ZlibEncoder::new(body)).await,
            _ => body.to_vec(),
        }
    }

    fn response(headers: &str, body: &[u8]) -> Vec<u8> {
        let head = format!(
            "HTTP/1.1 200 OK\r\n{headers}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    }

    async fn search(response: Vec<u8>, text: &str, body_limit: u64) -> Result<(), String> {
        let (port, _) = serve(response).await;
        let target = http::Target {
            body: Some(text.into()),
            body_limit,
            ..get(port)
        };
        probe(target).await
    }

    #[actix_web::test]
    async fn decodes_compressed_bodies() {
        let long = [&vec![b'x'; 100_000][..], b"all is well"].concat();
        for (header, codings) in [
            ("gzip", &["gzip"][..]),
            ("x-gzip", &["gzip"]),
            ("GZIP", &["gzip"]),
            ("br", &["br"]),
            ("deflate", &["deflate"]),
            ("gzip, br", &["gzip", "br"]),
            ("identity", &[]),
            // Not the name of an encoding, but sent by some servers.
            ("utf-8", &[]),
        ] {
            let mut body = long.clone();
            for coding in codings {
                body = encode(coding, &body).await;
            }
            let answer = response(&format!("Content-Encoding: {header}"), &body);
            assert_eq!(
                search(answer.clone(), "all is well", http::BODY_LIMIT).await,
                Ok(()),
                "{header}"
            );
            let missing = search(answer.clone(), "all is lost", http::BODY_LIMIT).await;
            assert!(
                missing
                    .unwrap_err()
                    .starts_with("the body does not contain \"all is lost\"")
            );
            // The limit holds for the decoded body.
            let error = search(answer, "all is well", 1000).await.unwrap_err();
            assert_eq!(
                error,
                "the body does not contain \"all is well\" in its first 1000 B, the body-limit"
            );
        }
    }

    #[actix_web::test]
    async fn reads_several_members_and_unfinished_bodies() {
        let body = [
            encode("gzip", b"all is").await,
            encode("gzip", b" well").await,
        ]
        .concat();
        let answer = response("Content-Encoding: gzip", &body);
        assert_eq!(search(answer, "all is well", 100).await, Ok(()));
        // The end is missing, but not needed.
        let body = encode("gzip", b"all is well").await;
        let answer = response("Content-Encoding: gzip", &body[..body.len() - 8]);
        assert_eq!(search(answer, "is w", 100).await, Ok(()));
    }

    #[actix_web::test]
    async fn reports_bodies_that_cannot_be_decoded() {
        for (header, error) in [
            ("gzip", "cannot decode the body (gzip): "),
            ("br", "cannot decode the body (br): "),
            (
                "zstd",
                "the body does not contain \"is well\"; its content encoding zstd is not supported",
            ),
        ] {
            let answer = response(
                &format!("Content-Encoding: {header}"),
                b"\xff\xffnot encoded",
            );
            let message = search(answer, "is well", 100).await.unwrap_err();
            assert!(message.starts_with(error), "{message}");
        }
    }

    #[actix_web::test]
    async fn stops_decoding_at_the_limit() {
        // 20 MB of zeros in 20 KB.
        let bomb = encode("gzip", &vec![0; 20_000_000]).await;
        let answer = response("Content-Encoding: gzip", &bomb);
        let error = search(answer, "well", 64 * 1024).await.unwrap_err();
        assert!(error.contains("in its first 64 KiB"), "{error}");
    }

    #[actix_web::test]
    async fn finds_text_at_every_position() {
        for before in [0, 1, 8 * 1024 - 5, 8 * 1024, 16 * 1024 - 1, 500_000] {
            let body = [&vec![b'x'; before][..], b"all is well", &vec![b'y'; 9000]].concat();
            let answer = response("Content-Type: text/plain", &body);
            assert_eq!(
                search(answer, "all is well", http::BODY_LIMIT).await,
                Ok(())
            );
        }
    }

    #[actix_web::test]
    async fn finds_text_in_latin_1() {
        let answer = response(
            "Content-Type: text/html; charset=ISO-8859-1",
            b"gr\xf6\xdfe",
        );
        assert_eq!(search(answer, "größe", 100).await, Ok(()));
        let answer = response("Content-Type: text/html", "größe".as_bytes());
        assert_eq!(search(answer, "größe", 100).await, Ok(()));
    }
}

#[actix_web::test]
async fn accepts_what_curl_accepts() {
    let many: String = (0..500)
        .map(|number| format!("X-{number}: y\r\n"))
        .collect();
    let big = format!("Set-Cookie: a={}\r\n", "x".repeat(100_000));
    for (head, headers) in [
        ("HTTP/1.1 200 OK", ""),
        ("HTTP/1.1 200", ""),
        ("HTTP/1.0 200 OK", ""),
        ("HTTP/2 200", ""),
        ("HTTP/2.0 200 OK", ""),
        ("HTTP/3 200 OK", ""),
        ("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK", ""),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", ""),
        ("HTTP/1.1 200 OK", "X-A: v   \r\n"),
        ("HTTP/1.1 200 OK", "Server : x\r\n"),
        ("HTTP/1.1 200 OK", "X-A: one\r\n two\r\n"),
        ("HTTP/1.1 200 OK", "X-A: a\u{1}b\r\n"),
        ("HTTP/1.1 200 OK", "X@(A): b\r\n"),
        ("HTTP/1.1 200 OK", "Garbage\r\n"),
        ("HTTP/1.1 200 OK", ": no name\r\n"),
        ("HTTP/1.1 200 OK", "X-Name: Müller\r\n"),
        ("HTTP/1.1 200 OK", "Content-Length: 2\r\n"),
        ("HTTP/1.1 200 OK", &many),
        ("HTTP/1.1 200 OK", &big),
    ] {
        let answer = format!("{head}\r\n{headers}Content-Length: 2\r\n\r\nok");
        for answer in [answer.clone(), answer.replace("\r\n", "\n")] {
            let (port, _) = serve(answer.clone()).await;
            let target = http::Target {
                body: Some("ok".into()),
                ..get(port)
            };
            let start: String = answer.chars().take(80).collect();
            assert_eq!(probe(target).await, Ok(()), "{start:?}");
        }
    }
}

#[actix_web::test]
async fn accepts_a_status_line_in_pieces() {
    for line in ["HTTP/2 200 OK", "HTTP/1.1 200 OK"] {
        let port = listen(async move |mut stream| {
            let _ = stream.read(&mut [0; 4096]).await;
            for byte in line.bytes() {
                stream.write_u8(byte).await.unwrap();
                yield_now().await;
            }
            stream.write_all(b"\r\n\r\n").await.unwrap();
        })
        .await;
        assert_eq!(probe(get(port)).await, Ok(()));
    }
}

#[actix_web::test]
async fn rejects_what_is_not_http() {
    for answer in [
        "",
        "SSH-2.0-OpenSSH_9.2p1\r\n",
        "220 mail.test ESMTP\r\n",
        "HTTP/1.1\r\n\r\n",
    ] {
        let (port, _) = serve(answer).await;
        probe(get(port)).await.unwrap_err();
    }
}
