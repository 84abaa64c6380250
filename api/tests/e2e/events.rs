//! An event stream without events.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::harness::Service;

#[test]
fn sends_comments_on_a_silent_stream() {
    let service = Service::start("", &[]);
    let mut socket = TcpStream::connect(("127.0.0.1", service.port)).unwrap();
    // A comment comes every 15 seconds.
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    socket
        .write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let (mut seen, mut buffer) = (String::new(), [0; 1024]);
    while seen.matches(": keep-alive\n\n").count() < 2 {
        let count = socket.read(&mut buffer).unwrap();
        assert!(count > 0, "the stream ended: {seen}");
        seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
}
