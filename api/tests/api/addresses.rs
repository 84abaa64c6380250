//! Hosts with several addresses, of which the first is silent: RFC 8305.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use api::checks::{Clients, NameServers, Target, http, postgres, redis, tcp, tls};
use hickory_proto::rr::{
    RData, RecordType,
    rdata::{A, AAAA},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    history::settings,
    probes::{
        listen,
        over_dns::{add, serve},
        over_redis,
        over_tls::Authority,
        probe_with, url,
    },
};

/// Longer than all delays, but shorter than the time after which the system gives up to connect.
const SOON: Duration = Duration::from_secs(4);

/// The address that is silent while [`Silent`] lives.
const SILENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// An address that does not respond to new connections, because its queue is full.
struct Silent {
    _listener: Socket,
    _queued: Vec<Socket>,
}

impl Silent {
    fn start(port: u16) -> Self {
        let address = SocketAddr::from((SILENT, port)).into();
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let listener = socket();
        listener.bind(&address).unwrap();
        listener.listen(0).unwrap();
        let queued = (0..3)
            .map(|_| {
                let queued = socket();
                queued.set_nonblocking(true).unwrap();
                // In progress, or never.
                let _ = queued.connect(&address);
                queued
            })
            .collect();
        Self {
            _listener: listener,
            _queued: queued,
        }
    }
}

/// Clients that resolve every name to `addresses`.
async fn clients_for(addresses: &[IpAddr], authority: Option<&Authority>) -> Clients {
    let addresses = addresses.to_vec();
    let server = serve(move |message, _| {
        let kind = message.queries[0].query_type;
        for address in &addresses {
            match address {
                IpAddr::V4(address) if kind == RecordType::A => add(message, RData::A(A(*address))),
                IpAddr::V6(address) if kind == RecordType::AAAA => {
                    add(message, RData::AAAA(AAAA(*address)));
                }
                _ => {}
            }
        }
    })
    .await;
    let name_servers = NameServers {
        servers: vec![server],
        search: Vec::new(),
        ndots: 1,
    };
    let file = authority.map(|authority| authority.file.path());
    Clients::with_name_servers(file, name_servers).unwrap()
}

/// Asserts that a probe succeeds although the first address of its host is silent.
async fn assert_succeeds(target: Target, port: u16, authority: Option<&Authority>) {
    let _silent = Silent::start(port);
    let alone = clients_for(&[SILENT.into()], authority).await;
    let hanging = timeout(
        Duration::from_millis(500),
        probe_with(target.clone(), &alone),
    );
    hanging.await.expect_err("the address is silent");
    let clients = clients_for(&[SILENT.into(), Ipv4Addr::LOCALHOST.into()], authority).await;
    let answer = timeout(SOON, probe_with(target, &clients)).await;
    assert_eq!(answer.expect("soon"), Ok(()));
}

fn tcp(port: u16) -> Target {
    Target::Tcp(tcp::Target {
        host: "host.test".into(),
        port,
    })
}

#[actix_web::test]
async fn tcp_check_tries_the_next_address() {
    let port = listen(async |_| ()).await;
    assert_succeeds(tcp(port), port, None).await;
}

/// Starts a TLS server for `host.test` and returns its port.
async fn listen_with_tls(authority: &Authority) -> u16 {
    let end = SystemTime::now() + Duration::from_secs(86_400);
    let acceptor = authority.acceptor("host.test", end);
    listen(move |stream| {
        let acceptor = acceptor.clone();
        async move { drop(acceptor.accept(stream).await) }
    })
    .await
}

#[actix_web::test]
async fn tls_check_tries_the_next_address() {
    let authority = Authority::new();
    let port = listen_with_tls(&authority).await;
    let target = Target::Tls(tls::Target {
        host: "host.test".into(),
        port,
    });
    assert_succeeds(target, port, Some(&authority)).await;
}

#[actix_web::test]
async fn check_with_its_own_tls_options_tries_the_next_address() {
    let authority = Authority::new();
    let port = listen_with_tls(&authority).await;
    let _silent = Silent::start(port);
    let clients = clients_for(&[SILENT.into(), Ipv4Addr::LOCALHOST.into()], None).await;
    let mut check = settings(None).checks.remove(0);
    check.target = Target::Tls(tls::Target {
        host: "host.test".into(),
        port,
    });
    check.tls.ca_file = Some(authority.file.path().into());
    let answer = timeout(SOON, check.probe(&clients).run()).await;
    assert_eq!(answer.expect("soon"), Ok(()));
}

#[actix_web::test]
async fn http_check_tries_the_next_address() {
    let port = listen(async |mut stream| {
        let _ = stream.read(&mut [0; 1024]).await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    })
    .await;
    let target = http::Target::get(url(&format!("http://host.test:{port}/")));
    assert_succeeds(Target::Http(target), port, None).await;
}

#[actix_web::test]
async fn redis_check_tries_the_next_address() {
    let port = listen(|stream| over_redis::serve(stream, &["+PONG\r\n"; 3])).await;
    let target = Target::Redis(redis::Target {
        url: url(&format!("redis://host.test:{port}")),
    });
    assert_succeeds(target, port, None).await;
}

/// Accepts every login, and responds to every query with nothing.
async fn serve_postgres(mut stream: TcpStream) {
    const READY: &[u8] = b"Z\0\0\0\x05I";
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let answer = match &buffer[..length] {
            // A request for TLS.
            [0, 0, 0, 8, ..] => b"N".to_vec(),
            [0, ..] => [b"R\0\0\0\x08\0\0\0\0", READY].concat(),
            [b'Q', ..] => [b"C\0\0\0\x0dSELECT 0\0", READY].concat(),
            _ => return,
        };
        stream.write_all(&answer).await.unwrap();
    }
}

#[actix_web::test]
async fn postgres_check_tries_the_next_address() {
    let port = listen(serve_postgres).await;
    let target = Target::Postgres(postgres::Target {
        url: url(&format!("postgresql://app@host.test:{port}/app")),
    });
    assert_succeeds(target, port, None).await;
}

#[actix_web::test]
async fn tries_the_other_address_family() {
    let port = listen(async |_| ()).await;
    // An address for documentation, to which there is no route, or a silent one.
    let unreachable: Ipv6Addr = "2001:db8::1".parse().unwrap();
    let clients = clients_for(&[unreachable.into(), Ipv4Addr::LOCALHOST.into()], None).await;
    let answer = timeout(SOON, probe_with(tcp(port), &clients)).await;
    assert_eq!(answer.expect("soon"), Ok(()));
}

#[actix_web::test]
async fn reports_the_errors_of_all_addresses() {
    let port = listen(async |_| ()).await;
    let addresses = [Ipv4Addr::new(127, 0, 0, 3), Ipv4Addr::new(127, 0, 0, 4)];
    let clients = clients_for(&addresses.map(Into::into), None).await;
    let answer = probe_with(tcp(port), &clients).await;
    assert_eq!(answer, Err("Connection refused (os error 111)".into()));
}
