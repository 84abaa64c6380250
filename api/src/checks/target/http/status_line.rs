//! Status lines that hyper rejects although curl accepts them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The number of bytes of a version.
const LENGTH: usize = "HTTP/1.1".len();

/// A connection over HTTP/1 whose server may call the version of its response `HTTP/2`, as some servers and proxies do.
pub(super) struct Lenient<S> {
    stream: S,
    /// The first bytes, as long as there are fewer than [`LENGTH`].
    start: Option<Vec<u8>>,
    /// The first bytes that were not read yet, with a version of HTTP/1.
    replaced: Vec<u8>,
}

impl<S> Lenient<S> {
    pub(super) const fn new(stream: S) -> Self {
        Self {
            stream,
            start: Some(Vec::new()),
            replaced: Vec::new(),
        }
    }
}

/// Replaces the version in the first bytes of a response.
fn replaced(start: Vec<u8>) -> Vec<u8> {
    match start.as_slice() {
        b"HTTP/2.0" | b"HTTP/3.0" => b"HTTP/1.1".into(),
        [b'H', b'T', b'T', b'P', b'/', b'2' | b'3', b' ', first] => {
            [b"HTTP/1.1 ", &[*first][..]].concat()
        }
        _ => start,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while let Some(start) = &mut this.start {
            let mut bytes = [0; LENGTH];
            let mut more = ReadBuf::new(&mut bytes[start.len()..]);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut more))?;
            let more = more.filled();
            start.extend_from_slice(more);
            if more.is_empty() || start.len() == LENGTH {
                this.replaced = replaced(this.start.take().unwrap_or_default());
            }
        }
        if this.replaced.is_empty() {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let length = this.replaced.len().min(buffer.remaining());
        buffer.put_slice(&this.replaced[..length]);
        this.replaced.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
