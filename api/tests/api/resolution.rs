//! Name servers that are silent, lose packets or fail: how checks look up names, and what they report.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use api::checks::{Clients, NameServers, Target, dns, tcp};
use futures_util::future::join_all;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS},
    },
};
use tokio::{
    net::UdpSocket,
    time::{Instant, pause, timeout},
};

use crate::probes::{
    listen,
    over_dns::{add, clients_of, name, serve},
    probe_with,
};

/// Longer than any look-up that succeeds, but shorter than the timeouts of silent ones.
const SOON: Duration = Duration::from_secs(4);

fn record(name: &str) -> Target {
    Target::Dns(dns::Target {
        name: name.into(),
        record: RecordType::A,
        server: None,
        expected: Vec::new(),
    })
}

fn tcp(host: &str, port: u16) -> Target {
    Target::Tcp(tcp::Target {
        host: host.into(),
        port,
    })
}

async fn probe_soon(target: Target, clients: &Clients) -> Result<(), String> {
    timeout(SOON, probe_with(target, clients))
        .await
        .expect("soon")
}

/// A name server that receives queries and responds with what `respond` returns, if anything.
async fn raw(respond: impl Fn(&[u8]) -> Option<Vec<u8>> + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    actix_web::rt::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            if let Some(answer) = respond(&buffer[..length]) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    });
    address
}

/// A name server that receives queries and never responds.
async fn silent() -> SocketAddr {
    raw(|_| None).await
}

/// Adds the IPv4 loopback address, and no IPv6 address.
fn add_loopback(message: &mut Message) {
    if message.queries[0].query_type == RecordType::A {
        add(message, RData::A(A(Ipv4Addr::LOCALHOST)));
    }
}

/// A name server that responds with the loopback address.
async fn working() -> SocketAddr {
    serve(|message, _| add_loopback(message)).await
}

/// A name server that responds with an error.
async fn failing(code: ResponseCode) -> SocketAddr {
    serve(move |message, _| message.metadata.response_code = code).await
}

/// A port of the loopback interface on which nothing listens.
async fn closed() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.local_addr().unwrap()
}

/// The response to `question` after `change`.
fn response(question: &[u8], change: impl Fn(&mut Message)) -> Vec<u8> {
    let mut message = Message::from_vec(question).unwrap();
    message.metadata.message_type = hickory_proto::op::MessageType::Response;
    change(&mut message);
    message.to_vec().unwrap()
}

#[actix_web::test]
async fn a_silent_zone_does_not_delay_other_names() {
    let server = raw(|question| {
        let question = Message::from_vec(question).unwrap();
        let bad = name("bad.test.").zone_of(&question.queries[0].name);
        (!bad).then(|| response(&question.to_vec().unwrap(), add_loopback))
    })
    .await;
    let clients = clients_of(&[server]);
    let port = listen(async |_| ()).await;
    let bad = (0..200).map(|index| {
        let target = tcp(&format!("h{index}.bad.test"), port);
        probe_with(target, &clients)
    });
    let mut bad = std::pin::pin!(join_all(bad));
    let good = async {
        for index in 0..20 {
            let target = tcp(&format!("h{index}.good.test"), port);
            assert_eq!(probe_soon(target, &clients).await, Ok(()));
        }
    };
    tokio::select! {
        _ = &mut bad => panic!("the bad names are slower"),
        () = good => {}
    }
}

#[actix_web::test]
async fn finds_every_name_as_soon_as_a_silent_server_responds_again() {
    let responds = Arc::new(AtomicBool::new(false));
    let works = responds.clone();
    let server = raw(move |question| {
        (works.load(Ordering::Relaxed)).then(|| response(question, add_loopback))
    })
    .await;
    let clients = clients_of(&[server]);
    let port = listen(async |_| ()).await;
    let target = |index| tcp(&format!("h{index}.test"), port);
    let silent = (0..200).map(|index| {
        let probe = probe_with(target(index), &clients);
        timeout(Duration::from_millis(300), probe)
    });
    assert!(join_all(silent).await.iter().all(Result::is_err));
    responds.store(true, Ordering::Relaxed);
    // The next probe of each check succeeds: no look-up of the time before is waited for, and no failure is remembered.
    let found = join_all((0..200).map(|index| probe_soon(target(index), &clients))).await;
    assert!(found.iter().all(Result::is_ok), "{found:?}");
}

#[actix_web::test]
async fn asks_the_next_server_if_one_is_silent_or_fails() {
    let port = listen(async |_| ()).await;
    let working = working().await;
    for other in [
        silent().await,
        closed().await,
        failing(ResponseCode::ServFail).await,
        failing(ResponseCode::Refused).await,
        failing(ResponseCode::NotImp).await,
    ] {
        for servers in [
            &[other, working][..],
            &[other, other, working],
            &[working, other],
        ] {
            let clients = clients_of(servers);
            for target in [record("host.test"), tcp("host.test", port)] {
                assert_eq!(probe_soon(target, &clients).await, Ok(()), "{servers:?}");
            }
        }
    }
}

#[actix_web::test]
async fn a_name_that_does_not_exist_is_an_answer() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let second = serve(move |message, _| {
        seen.fetch_add(1, Ordering::Relaxed);
        add_loopback(message);
    })
    .await;
    for (code, error) in [
        (ResponseCode::NXDomain, "the name does not exist (NXDOMAIN)"),
        (ResponseCode::NoError, "the name has no record of type A"),
    ] {
        let clients = clients_of(&[failing(code).await, second]);
        assert_eq!(
            probe_soon(record("host.test"), &clients).await,
            Err(error.into())
        );
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[actix_web::test]
async fn repeats_a_query_whose_packet_is_lost() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let server = raw(move |question| {
        let lost = seen.fetch_add(1, Ordering::Relaxed) < 2;
        (!lost).then(|| response(question, add_loopback))
    })
    .await;
    assert_eq!(
        probe_soon(record("host.test"), &clients_of(&[server])).await,
        Ok(())
    );
    assert_eq!(count.load(Ordering::Relaxed), 3);
}

#[actix_web::test]
async fn reports_what_each_server_responded() {
    let (refusing, closed) = (failing(ResponseCode::Refused).await, closed().await);
    let error = probe_soon(record("host.test"), &clients_of(&[refusing, closed]))
        .await
        .unwrap_err();
    assert_eq!(
        error,
        format!(
            "{refusing} responded with REFUSED (query refused); {closed}: Connection refused (os error 111)"
        )
    );
    let error = probe_soon(tcp("host.test", 1), &clients_of(&[refusing]))
        .await
        .unwrap_err();
    assert_eq!(
        error,
        format!("cannot resolve host.test: {refusing} responded with REFUSED (query refused)")
    );
}

#[actix_web::test]
async fn reports_a_server_that_does_not_respond() {
    let server = silent().await;
    // Time passes as soon as nothing else happens.
    pause();
    for target in [record("host.test"), tcp("host.test", 1)] {
        let error = probe_with(target, &clients_of(&[server]))
            .await
            .unwrap_err();
        assert!(
            error.ends_with(&format!("{server}: no response")),
            "{error}"
        );
    }
}

#[actix_web::test]
async fn does_not_wait_for_a_server_that_is_not_running() {
    let clients = clients_of(&[closed().await]);
    // Time passes only if there is nothing else to wait for.
    pause();
    let start = Instant::now();
    let error = probe_with(record("host.test"), &clients).await.unwrap_err();
    assert!(error.contains("Connection refused"), "{error}");
    assert!(start.elapsed() < Duration::from_millis(100));
}

#[actix_web::test]
async fn distinguishes_answers_that_are_not_well_formed_from_silence() {
    type Change = fn(&[u8]) -> Vec<u8>;
    let cases: [(Change, &str); 4] = [
        // BIND repeats the query, other servers send only the header.
        (
            |question| {
                response(question, |message| {
                    message.metadata.response_code = ResponseCode::Refused;
                    message.queries.clear();
                })
            },
            "responded with REFUSED (query refused)",
        ),
        (
            |question| {
                response(question, |message| {
                    let data = RData::NS(NS(name("ns.test.")));
                    let record = Record::from_rdata(name("test."), 60, data);
                    message.add_authority(record);
                    message.metadata.recursion_available = false;
                })
            },
            "responded with a referral",
        ),
        (
            |question| {
                let mut bytes = response(question, add_loopback);
                bytes.truncate(bytes.len() - 2);
                bytes
            },
            "sent a malformed response",
        ),
        (
            |question| [&question[..2], &[0x80, 0, 0xff]].concat(),
            "sent a malformed response",
        ),
    ];
    for (change, error) in cases {
        let server = raw(move |question| Some(change(question))).await;
        let message = probe_soon(record("host.test"), &clients_of(&[server])).await;
        let message = message.unwrap_err();
        assert!(message.contains(error), "{message}");
    }
}

#[actix_web::test]
async fn a_server_that_is_silent_for_one_address_family_delays_only_shortly() {
    let port = listen(async |_| ()).await;
    let only = async |kind: RecordType| {
        raw(move |question| {
            let message = Message::from_vec(question).unwrap();
            (message.queries[0].query_type == kind).then(|| {
                response(question, |message| {
                    add(message, RData::A(A(Ipv4Addr::LOCALHOST)));
                    add(message, RData::AAAA(AAAA(Ipv6Addr::LOCALHOST)));
                })
            })
        })
        .await
    };
    for kind in [RecordType::A, RecordType::AAAA] {
        let clients = clients_of(&[only(kind).await]);
        assert_eq!(probe_soon(tcp("host.test", port), &clients).await, Ok(()));
    }
}

#[actix_web::test]
async fn follows_aliases_and_search_domains() {
    let port = listen(async |_| ()).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let names = seen.clone();
    let server = serve(move |message, _| {
        let asked = message.queries[0].name.clone();
        names.lock().unwrap().push(asked.to_string());
        if asked == name("db.second.test.") {
            add(message, RData::CNAME(CNAME(name("real.test."))));
            if message.queries[0].query_type == RecordType::A {
                let data = RData::A(A(Ipv4Addr::LOCALHOST));
                message.add_answer(Record::from_rdata(name("real.test."), 60, data));
            }
        } else if asked == name("db.first.test.") {
            // Such a failure must not hide the other domains.
            message.metadata.response_code = ResponseCode::ServFail;
        } else {
            message.metadata.response_code = ResponseCode::NXDomain;
        }
    })
    .await;
    let name_servers = NameServers {
        servers: vec![server],
        search: vec!["first.test".into(), "second.test".into()],
        ndots: 1,
    };
    let clients = Clients::with_name_servers(None, name_servers).unwrap();
    assert_eq!(probe_soon(tcp("db", port), &clients).await, Ok(()));
    let error = probe_soon(tcp("db.", port), &clients).await.unwrap_err();
    assert!(error.contains("NXDOMAIN"), "{error}");
    // A DNS check names exactly one name.
    seen.lock().unwrap().clear();
    probe_soon(record("db"), &clients).await.unwrap_err();
    assert_eq!(*seen.lock().unwrap(), ["db."]);
}

#[actix_web::test]
async fn localhost_needs_no_name_server() {
    let port = listen(async |_| ()).await;
    let clients = clients_of(&[closed().await]);
    for host in ["localhost", "LOCALHOST.", "app.localhost"] {
        assert_eq!(
            probe_soon(tcp(host, port), &clients).await,
            Ok(()),
            "{host}"
        );
    }
}

#[actix_web::test]
async fn concurrent_look_ups_of_a_name_are_one() {
    let port = listen(async |_| ()).await;
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let server = serve(move |message, _| {
        seen.fetch_add(1, Ordering::Relaxed);
        add_loopback(message);
    })
    .await;
    let clients = clients_of(&[server]);
    let all = (0..50).map(|_| probe_soon(tcp("host.test", port), &clients));
    assert!(join_all(all).await.iter().all(Result::is_ok));
    // One for each address family.
    assert_eq!(count.load(Ordering::Relaxed), 2);
    // Nothing is cached: a check sees changes at once.
    assert_eq!(probe_soon(tcp("host.test", port), &clients).await, Ok(()));
    assert_eq!(count.load(Ordering::Relaxed), 4);
}

#[actix_web::test]
async fn sends_every_name_that_dns_allows() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let names = seen.clone();
    let server = serve(move |message, _| {
        names.lock().unwrap().push(message.queries[0].name.clone());
        add_loopback(message);
    })
    .await;
    let clients = clients_of(&[server]);
    for (text, labels) in [
        (".", &[][..]),
        (
            "_dmarc.r4---sn_.test",
            &[&b"_dmarc"[..], b"r4---sn_", b"test"],
        ),
        (
            "0/26.2.0.192.in-addr.arpa",
            &[b"0/26", b"2", b"0", b"192", b"in-addr", b"arpa"],
        ),
        (
            r"My\032Printer\. 1._ipp._tcp.test",
            &[b"My Printer. 1", b"_ipp", b"_tcp", b"test"],
        ),
        ("*.bücher.test", &[b"*", b"xn--bcher-kva", b"test"]),
    ] {
        assert_eq!(probe_soon(record(text), &clients).await, Ok(()), "{text}");
        let sent: Name = seen.lock().unwrap().pop().unwrap();
        assert_eq!(sent.iter().collect::<Vec<_>>(), labels);
    }
}
