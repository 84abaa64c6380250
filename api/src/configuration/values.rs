//! Readers for the values of the file, which report invalid values.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use bytesize::ByteSize;
use toml_span::{
    Error, ErrorKind, Span, Value,
    de_helpers::TableHelper,
    span::Spanned,
    value::{Key, ValueInner},
};
use url::{Host, Url};

use super::variables::{self, Text, Variables};
use crate::secret::SecretUrl;

/// A value, or all problems of it, in messages that continue after the name of its key.
pub(super) type Read<T> = Result<T, Vec<Error>>;

/// The keys of one table. Reading a key removes it; problems are collected.
pub(super) struct Keys<'de, 'v> {
    helper: TableHelper<'de>,
    variables: Variables<'v>,
    /// The position of the table.
    pub span: Span,
}

impl<'de, 'v> Keys<'de, 'v> {
    /// Calls `reader` for the table `value` called `name`, and reports keys that it did not read. Returns its result, and all
    /// problems.
    pub(super) fn read_all<T>(
        name: &str,
        mut value: Value<'de>,
        variables: Variables<'v>,
        reader: impl FnOnce(&mut Self) -> T,
    ) -> (Option<T>, Vec<Error>) {
        let span = value.span;
        match value.take() {
            ValueInner::Table(table) => {
                let mut keys = Self {
                    helper: (table, span).into(),
                    variables,
                    span,
                };
                let read = reader(&mut keys);
                let left = keys.helper.finalize(None);
                (
                    Some(read),
                    left.map_or_else(|left| left.errors, |()| Vec::new()),
                )
            }
            other => {
                let errors = wrong_type(&other, span, "a table").into_iter();
                let named = errors.map(|error| custom(span, format_args!("{name} {error}")));
                (None, named.collect())
            }
        }
    }

    /// Whether the table has `key`, and it was not read yet.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.helper.contains(key)
    }

    /// The position of the value of `key`, if it was not read yet.
    pub(super) fn place(&self, key: &str) -> Option<Span> {
        self.helper.table.get(key).map(|value| value.span)
    }

    /// Reads `key`.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        reader: impl FnOnce(Value<'de>, Variables<'v>) -> Read<T>,
    ) -> Option<Spanned<T>> {
        let (_, value) = self.helper.take(key)?;
        let span = value.span;
        match reader(value, self.variables) {
            Ok(value) => Some(Spanned::with_span(value, span)),
            Err(errors) => {
                for error in errors {
                    self.wrong(error.span, format_args!("{key} {error}"));
                }
                None
            }
        }
    }

    /// Reads `key` into `field`; a missing key leaves the field unchanged.
    pub(super) fn set<T, F: From<T>>(
        &mut self,
        key: &'static str,
        field: &mut F,
        reader: impl FnOnce(Value<'de>, Variables<'v>) -> Read<T>,
    ) {
        if let Some(read) = self.read(key, reader) {
            *field = read.value.into();
        }
    }

    /// Reads the table `key` with `reader`.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        reader: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let (_, value) = self.helper.take(key)?;
        let (read, mut errors) = Self::read_all(key, value, self.variables, reader);
        self.helper.errors.append(&mut errors);
        read
    }

    /// Reads the array of tables `key`, each with `reader`; tables after the first `limit` are reported and not read.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        limit: usize,
        mut reader: impl FnMut(&mut Self) -> T,
    ) -> Vec<T> {
        let Some((_, mut value)) = self.helper.take(key) else {
            return Vec::new();
        };
        let ValueInner::Array(array) = value.take() else {
            self.wrong(
                value.span,
                format_args!("{key} is not an array: expected one [[{key}]] table per item"),
            );
            return Vec::new();
        };
        if let Some(excess) = array.get(limit) {
            self.wrong(
                excess.span,
                format_args!("too many {key} ({}): expected at most {limit}", array.len()),
            );
        }
        let mut all = Vec::with_capacity(array.len().min(limit));
        for value in array.into_iter().take(limit) {
            let (read, mut errors) = Self::read_all(key, value, self.variables, &mut reader);
            self.helper.errors.append(&mut errors);
            all.extend(read);
        }
        all
    }

    /// Removes `key` if it was not read yet, and returns its position.
    pub(super) fn remove(&mut self, key: &str) -> Option<Span> {
        let (key, _) = self.helper.table.remove_entry(key)?;
        Some(key.span)
    }

    /// The number of problems so far.
    pub(super) fn errors(&self) -> usize {
        self.helper.errors.len()
    }

    /// Reports a problem at `span`.
    pub(super) fn wrong(&mut self, span: Span, what: impl Display) {
        self.helper.errors.push(custom(span, what));
    }
}

/// Reads a string.
pub(super) fn string(value: Value<'_>, variables: Variables<'_>) -> Read<String> {
    text(value, variables, "a string").map(|text| text.value)
}

/// Reads a string that is not blank.
pub(super) fn words(value: Value<'_>, variables: Variables<'_>) -> Read<String> {
    parsed("a string that is not empty", |text| {
        (!text.trim().is_empty()).then(|| text.to_owned())
    })(value, variables)
}

/// Reads a string with `parse`.
pub(super) fn parsed<T>(
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> impl Fn(Value<'_>, Variables<'_>) -> Read<T> {
    move |value, variables| {
        let span = value.span;
        let text = text(value, variables, expected)?;
        parse(&text.value).ok_or_else(|| not_valid(span, expected))
    }
}

/// Reads a duration within `range`.
pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(Value<'_>, Variables<'_>) -> Read<Duration> {
    const EXPECTED: &str = r#"a duration such as "500ms", "30s" or "1h 30m""#;
    move |value, variables| {
        let span = value.span;
        let duration =
            parsed(EXPECTED, |text| humantime::parse_duration(text).ok())(value, variables)?;
        within(&range, duration, span, |duration| {
            humantime::format_duration(*duration)
        })
    }
}

/// Reads a number of bytes within `range`.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(Value<'_>, Variables<'_>) -> Read<u64> {
    const EXPECTED: &str = r#"a size such as "64KiB" or "1MiB""#;
    move |value, variables| {
        let span = value.span;
        let bytes = |text: &str| text.parse().ok().map(|ByteSize(bytes)| bytes);
        let bytes = parsed(EXPECTED, bytes)(value, variables)?;
        within(&range, bytes, span, |bytes| ByteSize(*bytes))
    }
}

/// Reads an integer within `range`.
pub(super) fn integer<T: TryFrom<i64>>(
    range: RangeInclusive<i64>,
) -> impl Fn(Value<'_>, Variables<'_>) -> Read<T> {
    move |mut value, _| match value.take() {
        ValueInner::Integer(number) => {
            within(&range, number, value.span, i64::to_string).and_then(|number| {
                T::try_from(number).map_err(|_| not_valid(value.span, "an integer"))
            })
        }
        other => Err(wrong_type(&other, value.span, "an integer")),
    }
}

/// Reads `true` or `false`.
pub(super) fn boolean(mut value: Value<'_>, _: Variables<'_>) -> Read<bool> {
    match value.take() {
        ValueInner::Boolean(boolean) => Ok(boolean),
        other => Err(wrong_type(&other, value.span, "true or false")),
    }
}

/// Reads an array with at least one item.
pub(super) fn list<T>(
    item: impl Fn(Value<'_>, Variables<'_>) -> Read<T>,
) -> impl Fn(Value<'_>, Variables<'_>) -> Read<Vec<T>> {
    move |mut value, variables| match value.take() {
        ValueInner::Array(array) if array.is_empty() => Err(vec![custom(
            value.span,
            "is empty: expected at least one item, or no such key",
        )]),
        ValueInner::Array(array) => collect(array.into_iter().map(|value| item(value, variables))),
        other => Err(wrong_type(&other, value.span, "an array")),
    }
}

/// Reads a table, each key and value with `item`.
pub(super) fn map<T>(
    item: impl Fn(&Key<'_>, Value<'_>, Variables<'_>) -> Read<T>,
) -> impl Fn(Value<'_>, Variables<'_>) -> Read<Vec<T>> {
    move |mut value, variables| match value.take() {
        ValueInner::Table(table) => collect(
            table
                .into_iter()
                .map(|(key, value)| item(&key, value, variables)),
        ),
        other => Err(wrong_type(&other, value.span, "a table")),
    }
}

/// Reads a URL that `accept` accepts. Errors never contain the URL, because it may contain secrets.
pub(super) fn url(
    expected: &'static str,
    accept: impl Fn(&Url) -> bool,
) -> impl Fn(Value<'_>, Variables<'_>) -> Read<SecretUrl> {
    prepared_url(expected, str::to_owned, accept)
}

/// Like [`url`], with the text changed by `prepare`.
pub(super) fn prepared_url(
    expected: &'static str,
    prepare: impl Fn(&str) -> String,
    accept: impl Fn(&Url) -> bool,
) -> impl Fn(Value<'_>, Variables<'_>) -> Read<SecretUrl> {
    move |value, variables| {
        let span = value.span;
        let Text { value, masked } = text(value, variables, expected)?;
        let url = Url::parse(&prepare(&value))
            .ok()
            .filter(|url| url.has_host() && accept(url))
            .ok_or_else(|| not_valid(span, expected))?;
        match masked.map(|masked| Url::parse(&prepare(&masked))) {
            None => Ok(SecretUrl::new(url)),
            Some(Ok(masked)) if same_server(&url, &masked) => Ok(SecretUrl::shown_as(url, masked)),
            Some(Ok(_)) => Err(vec![custom(
                span,
                "refers to another server after its variables are replaced: expected /, ?, # and @ in their values percent-encoded",
            )]),
            // A variable in a place that cannot be masked, such as the port: the secret parts are unknown.
            Some(Err(_)) => Ok(SecretUrl::hidden(url)),
        }
    }
}

/// Whether the variables changed only their own parts of the URL. A password with a slash would end the host, and be shown as
/// path.
fn same_server(url: &Url, masked: &Url) -> bool {
    masked.host_str().is_some_and(|host| host.contains("***"))
        || (url.host() == masked.host() && url.port() == masked.port())
}

/// Parses `host:port`; brackets around an IPv6 address are removed.
pub(super) fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match Host::parse(host).ok()? {
        Host::Domain(name) => name,
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    Some((host, self::port(port)?))
}

/// Parses a port other than 0.
pub(super) fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// Converts an error into messages with positions; each unknown key becomes a message of its own.
pub(super) fn explain(error: Error) -> Vec<(Span, String)> {
    let what = match error.kind {
        ErrorKind::Custom(what) => what.into_owned(),
        ErrorKind::UnexpectedKeys { keys, expected } => {
            let expected = expected.join(", ");
            return keys
                .into_iter()
                .map(|(key, span)| {
                    (
                        span,
                        format!("unknown key {key}: expected one of {expected}"),
                    )
                })
                .collect();
        }
        ErrorKind::DuplicateKey { key, .. } => format!("duplicate key {key}: expected it once"),
        ErrorKind::DuplicateTable { name, .. } => {
            format!("duplicate table [{name}]: expected it once")
        }
        ErrorKind::Wanted { expected, found } => {
            format!("invalid TOML, found {found}: expected {expected}")
        }
        _ => format!("invalid TOML, {error}: expected valid TOML"),
    };
    vec![(error.span, what)]
}

/// Creates an error with this message.
pub(super) fn custom(span: Span, what: impl Display) -> Error {
    Error::from((ErrorKind::Custom(what.to_string().into()), span))
}

/// Creates the error for a value of the right type that is not valid; it does not contain the value, which may be secret.
pub(super) fn not_valid(span: Span, expected: &str) -> Vec<Error> {
    vec![custom(
        span,
        format_args!("is not valid: expected {expected}"),
    )]
}

/// Reads a string, and replaces its variables.
fn text(mut value: Value<'_>, variables: Variables<'_>, expected: &str) -> Read<Text> {
    match value.take() {
        ValueInner::String(text) => {
            variables::replace(&text, variables).map_err(|(what, expected)| {
                vec![custom(
                    value.span,
                    format_args!("{what}: expected {expected}"),
                )]
            })
        }
        other => Err(wrong_type(&other, value.span, expected)),
    }
}

fn wrong_type(found: &ValueInner<'_>, span: Span, expected: &str) -> Vec<Error> {
    let found = match found {
        ValueInner::Array(_) | ValueInner::Integer(_) => format_args!("an {}", found.type_str()),
        _ => format_args!("a {}", found.type_str()),
    };
    vec![custom(
        span,
        format_args!("is {found}: expected {expected}"),
    )]
}

fn within<T: PartialOrd, D: Display>(
    range: &RangeInclusive<T>,
    value: T,
    span: Span,
    show: impl Fn(&T) -> D,
) -> Read<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(vec![custom(
        span,
        format_args!(
            "is out of range: expected {} to {}",
            show(range.start()),
            show(range.end())
        ),
    )])
}

/// Collects all items, or the errors of all invalid items.
fn collect<T>(items: impl Iterator<Item = Read<T>>) -> Read<Vec<T>> {
    let (mut all, mut errors) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Ok(item) => all.push(item),
            Err(more) => errors.extend(more),
        }
    }
    if errors.is_empty() {
        Ok(all)
    } else {
        Err(errors)
    }
}
