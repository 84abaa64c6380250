//! Domain names as text.

use std::mem;

use hickory_proto::rr::Name;

/// Parses `text` as an absolute domain name.
///
/// DNS allows any byte in a label (RFC 2181, section 11): `\` escapes a dot or another character, and `\DDD` is a byte in decimal,
/// as in zone files. A label with other than ASCII characters is converted by the rules for internationalized names.
///
/// # Errors
/// Returns a description of the problem, without `text`.
pub(crate) fn parse(text: &str) -> Result<Name, String> {
    if text == "." {
        return Ok(Name::root());
    }
    let mut name = Name::new();
    for label in split(text)? {
        if label.is_empty() {
            return Err("a label is empty".into());
        }
        name = name
            .append_label(to_ascii(label)?)
            .map_err(|error| error.to_string())?;
    }
    name.set_fqdn(true);
    Ok(name)
}

/// Converts a label with other than ASCII characters.
fn to_ascii(label: Vec<u8>) -> Result<Vec<u8>, String> {
    if label.is_ascii() {
        return Ok(label);
    }
    match String::from_utf8(label) {
        Ok(text) => idna::domain_to_ascii_cow(text.as_bytes(), idna::AsciiDenyList::EMPTY)
            .map(|text| text.into_owned().into_bytes())
            .map_err(|_| "a label contains characters that are not allowed".into()),
        // Escaped bytes, which are sent as they are.
        Err(error) => Ok(error.into_bytes()),
    }
}

/// Splits `text` into labels at the dots that are not escaped. A dot at the end is ignored.
fn split(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let text = match text.strip_suffix('.') {
        // An escaped dot belongs to the last label.
        Some(start) if !start.ends_with('\\') || start.ends_with("\\\\") => start,
        _ => text,
    };
    let (mut labels, mut label) = (Vec::new(), Vec::new());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'.' => labels.push(mem::take(&mut label)),
            b'\\' => label.push(escaped(&mut bytes)?),
            byte => label.push(byte),
        }
    }
    labels.push(label);
    Ok(labels)
}

/// The byte that follows a backslash.
fn escaped(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, String> {
    let error = || "expected a character or three digits after a backslash".to_owned();
    let first = bytes.next().ok_or_else(error)?;
    if !first.is_ascii_digit() {
        return Ok(first);
    }
    let digits = [Some(first), bytes.next(), bytes.next()];
    digits
        .into_iter()
        .try_fold(0_u16, |number, digit| {
            let digit = digit.filter(u8::is_ascii_digit)?;
            Some(number * 10 + u16::from(digit - b'0'))
        })
        .and_then(|number| u8::try_from(number).ok())
        .ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The labels of `text`, each with its bytes as characters.
    fn labels(text: &str) -> Result<Vec<String>, String> {
        let name = parse(text)?;
        Ok(name
            .iter()
            .map(|label| label.iter().map(|byte| char::from(*byte)).collect())
            .collect())
    }

    #[test]
    fn accepts_every_name_that_dns_allows() {
        for (text, expected) in [
            ("example.org", &["example", "org"][..]),
            ("example.org.", &["example", "org"]),
            (".", &[]),
            ("localhost", &["localhost"]),
            ("Example.ORG", &["Example", "ORG"]),
            ("_sip._tcp.example.org", &["_sip", "_tcp", "example", "org"]),
            ("a_.b_c.example", &["a_", "b_c", "example"]),
            ("*.example.org", &["*", "example", "org"]),
            ("a.*.example", &["a", "*", "example"]),
            ("r4---sn-4g5e.example", &["r4---sn-4g5e", "example"]),
            ("-a-.example", &["-a-", "example"]),
            // RFC 2317: reverse delegation of small networks.
            (
                "0/26.2.0.192.in-addr.arpa",
                &["0/26", "2", "0", "192", "in-addr", "arpa"],
            ),
            // RFC 6763: names of services are written for people.
            (
                r"Dr\. Who's Printer._ipp._tcp.local",
                &["Dr. Who's Printer", "_ipp", "_tcp", "local"],
            ),
            (r"a\032b\\c\046d.example", &[r"a b\c.d", "example"]),
            (r"a\.", &["a."]),
            (r"a\\.", &[r"a\"]),
            (r"\255.example", &["\u{ff}", "example"]),
            ("bücher.example", &["xn--bcher-kva", "example"]),
            ("xn--bcher-kva.example", &["xn--bcher-kva", "example"]),
            // Not valid punycode, but a label like any other.
            ("xn--a.xn--.example", &["xn--a", "xn--", "example"]),
            ("1.2.3.4", &["1", "2", "3", "4"]),
        ] {
            assert_eq!(labels(text).unwrap(), expected, "{text}");
        }
        let longest = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(61),
        ]
        .join(".");
        assert_eq!(labels(&longest).unwrap().len(), 4);
    }

    #[test]
    fn rejects_what_dns_cannot_transport() {
        let long = [const { "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }; 4]
            .join(".");
        for text in [
            "",
            "..",
            ".a",
            "a..b",
            "a..",
            &"a".repeat(64),
            &long,
            r"a\",
            r"a\25",
            r"a\25x",
            r"a\256",
        ] {
            labels(text).unwrap_err();
        }
    }
}
