//! A healthy service that uses only the standard library.

use std::io::{Read, Write};
use std::net::TcpListener;

fn main() {
    println!("listening");
    let listener = TcpListener::bind(("0.0.0.0", 8000)).expect("the port is free");
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut request = [0; 1024];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(answer().as_bytes());
    }
}

fn answer() -> String {
    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok".to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn answers_with_200() {
        assert!(super::answer().contains(" 200 "));
    }
}
