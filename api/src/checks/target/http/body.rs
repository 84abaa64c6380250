//! Searches the body of a response.

use std::io;

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZlibDecoder};
use futures_util::TryStreamExt as _;
use http_body_util::BodyDataStream;
use hyper::{
    HeaderMap, Response,
    body::Incoming,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use memchr::memmem;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt as _, BufReader};
use tokio_util::io::StreamReader;

use crate::checks::probe_error::ProbeError;

/// How much of the decoded body is searched at once.
const BLOCK: u64 = 8 * 1024;

/// How a search without a match ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Searched {
    Found,
    /// The whole body does not contain the text. It may have an encoding that is not decoded.
    Missing(Option<String>),
    /// The body is longer than the limit.
    MissingUpToLimit,
}

/// Searches the first `limit` bytes of the decoded body for `expected`.
///
/// # Errors
/// When the body cannot be received or decoded.
pub(super) async fn search(
    response: Response<Incoming>,
    expected: &str,
    limit: u64,
) -> Result<Searched, ProbeError> {
    let (head, body) = response.into_parts();
    let needles = needles(expected, &head.headers);
    let encodings = encodings(&head.headers);
    let body = BodyDataStream::new(body).map_err(io::Error::other);
    let mut body = decoded(StreamReader::new(body), &encodings).take(limit);
    let overlap = needles.iter().map(Vec::len).max().unwrap_or_default();
    let mut window = Vec::new();
    loop {
        // A match may begin in an earlier block.
        window.drain(..window.len().saturating_sub(overlap));
        let mut block = (&mut body).take(BLOCK);
        let length = block.read_buf(&mut window).await.map_err(|error| {
            let error = ProbeError::of(&error, None);
            match encodings.as_slice() {
                [] => error,
                some => ProbeError::without(
                    &format!("cannot decode the body ({}): {error}", some.join(", ")),
                    None,
                ),
            }
        })?;
        if (needles.iter()).any(|needle| memmem::find(&window, needle).is_some()) {
            return Ok(Searched::Found);
        }
        if length == 0 {
            return Ok(match body.limit() {
                0 => Searched::MissingUpToLimit,
                _ => Searched::Missing(unsupported(&encodings)),
            });
        }
    }
}

/// The encodings of `expected` that may be in the body.
fn needles(expected: &str, headers: &HeaderMap) -> Vec<Vec<u8>> {
    let mut needles = vec![expected.as_bytes().to_vec()];
    let charset = headers.get(CONTENT_TYPE).and_then(|value| {
        let value = value.to_str().ok()?.to_ascii_lowercase();
        let (_, charset) = value.split_once("charset=")?;
        let charset = charset.split([';', ' ']).next()?;
        Some(charset.trim_matches('"').to_owned())
    });
    if let Some("iso-8859-1" | "latin1" | "windows-1252") = charset.as_deref()
        && !expected.is_ascii()
    {
        // The first 256 code points of Unicode are those of ISO 8859-1.
        let latin = expected.chars().map(u8::try_from);
        needles.extend(latin.collect::<Result<_, _>>().ok());
    }
    needles
}

/// The content encodings, in the order in which they were applied.
fn encodings(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|encoding| encoding.trim().to_ascii_lowercase())
        .filter(|encoding| !encoding.is_empty() && encoding != "identity")
        .collect()
}

/// Decodes `body`. An encoding that is not known is left as it is, because some servers put other things into the header.
fn decoded(
    body: impl AsyncBufRead + Send + Unpin + 'static,
    encodings: &[String],
) -> Box<dyn AsyncRead + Send + Unpin> {
    let mut body: Box<dyn AsyncBufRead + Send + Unpin> = Box::new(body);
    for encoding in encodings.iter().rev() {
        body = match encoding.as_str() {
            "gzip" | "x-gzip" => {
                let mut decoder = GzipDecoder::new(body);
                decoder.multiple_members(true);
                Box::new(BufReader::new(decoder))
            }
            "br" => Box::new(BufReader::new(BrotliDecoder::new(body))),
            "deflate" => Box::new(BufReader::new(ZlibDecoder::new(body))),
            _ => body,
        };
    }
    Box::new(body)
}

/// The first encoding that is not decoded.
fn unsupported(encodings: &[String]) -> Option<String> {
    let known = ["gzip", "x-gzip", "br", "deflate"];
    let mut unknown = encodings
        .iter()
        .filter(|encoding| !known.contains(&encoding.as_str()));
    unknown.next().cloned()
}
