//! W3C Trace Context, level 1: <https://www.w3.org/TR/trace-context/>.

use std::fmt;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

/// The header of requests and responses that contains the trace.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The trace of a request, which is that of the caller or a new one, and the span of this service in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    trace: u128,
    span: u64,
    flags: u8,
}

impl Trace {
    /// The trace of a request with these headers; a missing or invalid header starts a new trace.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let (trace, flags) = headers
            .get(TRACEPARENT)
            .and_then(|value| parse(value.as_bytes()))
            // Flags 0: a new trace is not sampled.
            .unwrap_or_else(|| (fastrand::u128(1..), 0));
        Self {
            trace,
            span: fastrand::u64(1..),
            flags,
        }
    }

    /// The ID of the trace.
    #[must_use]
    pub const fn id(&self) -> Hex {
        Hex(self.trace)
    }

    /// The value of the `traceparent` header of the response.
    #[must_use]
    pub fn header(&self) -> Option<HeaderValue> {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(&mut text[3..35], self.trace);
        hex(&mut text[36..52], self.span.into());
        hex(&mut text[53..55], self.flags.into());
        HeaderValue::from_bytes(&text).ok()
    }
}

/// A trace ID, displayed as 32 hexadecimal digits.
pub struct Hex(u128);

impl fmt::Display for Hex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// Writes `value` in hexadecimal. Ten times as fast as `format!`, which matters because every response has the header.
fn hex(digits: &mut [u8], mut value: u128) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

/// Parses the ID and the flags of the trace.
fn parse(value: &[u8]) -> Option<(u128, u8)> {
    let [version, trace, parent, flags] = [0..2, 3..35, 36..52, 53..55].map(|range| {
        let digits = value.get(range)?;
        // The specification requires lower case, and from_str_radix accepts a sign.
        if !digits
            .iter()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        {
            return None;
        }
        u128::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    });
    let (version, trace, parent, flags) = (version?, trace?, parent?, flags?);
    let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
    // Later versions may have more fields after another dash.
    let ends = match value.get(55) {
        None => true,
        Some(b'-') => version != 0,
        Some(_) => false,
    };
    let known = version != 0xff && trace != 0 && parent != 0;
    // Level 1 defines only the first flag: sampled.
    (dashes && ends && known).then_some((trace, (flags & 1) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;

    #[test]
    fn accepts_valid_headers() {
        for (header, flags) in [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", 1),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", 0),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff", 1),
            (
                "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-holds",
                1,
            ),
        ] {
            assert_eq!(parse(header.as_bytes()), Some((TRACE, flags)), "{header}");
        }
    }

    #[test]
    fn rejects_invalid_headers() {
        for header in [
            "",
            "00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parse(header.as_bytes()), None, "{header}");
        }
    }

    #[test]
    fn response_header_has_the_trace_and_a_new_span() {
        let mut headers = HeaderMap::new();
        let sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert(TRACEPARENT, HeaderValue::from_static(sent));
        let trace = Trace::of(&headers);
        assert_eq!(trace.id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        let header = trace.header().unwrap();
        assert_eq!(parse(header.as_bytes()), Some((TRACE, 1)));
        assert_ne!(header, sent);
        assert_ne!(
            Trace::of(&HeaderMap::new()).trace,
            Trace::of(&HeaderMap::new()).trace
        );
    }
}
