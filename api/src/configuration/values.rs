//! The values of the file: what each may be, and what is said of one that is not.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use toml_span::{
    Error, ErrorKind, Span, Value,
    de_helpers::TableHelper,
    span::Spanned,
    value::{Key, ValueInner},
};
use url::{Host, Url};

use super::variables::{self, Text, Variables};
use crate::secret::SecretUrl;

/// What a value says, or all that is wrong with it, in words that go on from the name of its key.
pub type Read<T> = Result<T, Vec<Error>>;

/// The keys of one table, taken one by one; what is wrong is collected.
pub struct Keys<'de, 'v> {
    helper: TableHelper<'de>,
    variables: Variables<'v>,
    /// Where the table is.
    pub span: Span,
}

impl<'de, 'v> Keys<'de, 'v> {
    /// Has `reader` take the keys of `value`, the table `name`; then none may be left. What it read, and all that is wrong.
    pub fn read_all<T>(
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

    /// Whether the table has `key`, not taken yet.
    pub fn contains(&self, key: &str) -> bool {
        self.helper.contains(key)
    }

    /// Where the value of `key` is, not taken yet.
    pub fn place(&self, key: &str) -> Option<Span> {
        self.helper.table.get(key).map(|value| value.span)
    }

    /// Takes `key` and reads it.
    pub fn read<T>(
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

    /// Takes `key` and has `field` be what it says; a key that is not there leaves the field as it is.
    pub fn set<T, F: From<T>>(
        &mut self,
        key: &'static str,
        field: &mut F,
        reader: impl FnOnce(Value<'de>, Variables<'v>) -> Read<T>,
    ) {
        if let Some(read) = self.read(key, reader) {
            *field = read.value.into();
        }
    }

    /// Takes `key`, a table, and has `reader` take its keys.
    pub fn table<T>(
        &mut self,
        key: &'static str,
        reader: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let (_, value) = self.helper.take(key)?;
        let (read, mut errors) = Self::read_all(key, value, self.variables, reader);
        self.helper.errors.append(&mut errors);
        read
    }

    /// Takes `key`, an array of tables, and has `reader` take the keys of each; of those after the first `most` none is read.
    pub fn tables<T>(
        &mut self,
        key: &'static str,
        most: usize,
        mut reader: impl FnMut(&mut Self) -> T,
    ) -> Vec<T> {
        let Some((_, mut value)) = self.helper.take(key) else {
            return Vec::new();
        };
        let ValueInner::Array(array) = value.take() else {
            self.wrong(
                value.span,
                format_args!("{key} is no array: expected a table [[{key}]] for each"),
            );
            return Vec::new();
        };
        if let Some(beyond) = array.get(most) {
            self.wrong(
                beyond.span,
                format_args!("{key} are {}: expected at most {most}", array.len()),
            );
        }
        let mut all = Vec::with_capacity(array.len().min(most));
        for value in array.into_iter().take(most) {
            let (read, mut errors) = Self::read_all(key, value, self.variables, &mut reader);
            self.helper.errors.append(&mut errors);
            all.extend(read);
        }
        all
    }

    /// Takes `key` where it is not read, and says where it was.
    pub fn remove(&mut self, key: &str) -> Option<Span> {
        let (key, _) = self.helper.table.remove_entry(key)?;
        Some(key.span)
    }

    /// How much is wrong so far.
    pub fn errors(&self) -> usize {
        self.helper.errors.len()
    }

    /// Something is wrong at `span`.
    pub fn wrong(&mut self, span: Span, what: impl Display) {
        self.helper.errors.push(custom(span, what));
    }
}

/// A string.
pub fn string(value: Value<'_>, variables: Variables<'_>) -> Read<String> {
    text(value, variables, "a string").map(|text| text.value)
}

/// A string that is more than nothing.
pub fn words(value: Value<'_>, variables: Variables<'_>) -> Read<String> {
    parsed("a string that is not empty", |text| {
        (!text.trim().is_empty()).then(|| text.to_owned())
    })(value, variables)
}

/// A string that `parse` takes.
pub fn parsed<T>(
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> impl Fn(Value<'_>, Variables<'_>) -> Read<T> {
    move |value, variables| {
        let span = value.span;
        let text = text(value, variables, expected)?;
        parse(&text.value).ok_or_else(|| not_valid(span, expected))
    }
}

/// A duration within `range`.
pub fn duration(
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

/// An integer within `range`.
pub fn integer<T: TryFrom<i64>>(
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

/// `true` or `false`.
pub fn boolean(mut value: Value<'_>, _: Variables<'_>) -> Read<bool> {
    match value.take() {
        ValueInner::Boolean(boolean) => Ok(boolean),
        other => Err(wrong_type(&other, value.span, "true or false")),
    }
}

/// A list with at least one item.
pub fn list<T>(
    item: impl Fn(Value<'_>, Variables<'_>) -> Read<T>,
) -> impl Fn(Value<'_>, Variables<'_>) -> Read<Vec<T>> {
    move |mut value, variables| match value.take() {
        ValueInner::Array(array) if array.is_empty() => Err(vec![custom(
            value.span,
            "is empty: expected one at least, or no such key",
        )]),
        ValueInner::Array(array) => collect(array.into_iter().map(|value| item(value, variables))),
        other => Err(wrong_type(&other, value.span, "an array")),
    }
}

/// A table whose keys and values `item` takes.
pub fn map<T>(
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

/// A URL that `accept` takes. Neither the URL nor what it holds is ever in an error.
pub fn url(
    expected: &'static str,
    accept: impl Fn(&Url) -> bool,
) -> impl Fn(Value<'_>, Variables<'_>) -> Read<SecretUrl> {
    move |value, variables| {
        let span = value.span;
        let Text { value, masked } = text(value, variables, expected)?;
        let url = Url::parse(&value)
            .ok()
            .filter(|url| url.has_host() && accept(url))
            .ok_or_else(|| not_valid(span, expected))?;
        match masked.map(|masked| Url::parse(&masked)) {
            None => Ok(SecretUrl::new(url)),
            Some(Ok(masked)) if same_server(&url, &masked) => Ok(SecretUrl::shown_as(url, masked)),
            Some(Ok(_)) => Err(vec![custom(
                span,
                "is another URL with its variables replaced: expected values with such as /, ?, # and @ percent-encoded",
            )]),
            // A variable where a URL takes no mask, such as the port: nothing is known of what is where.
            Some(Err(_)) => Ok(SecretUrl::hidden(url)),
        }
    }
}

/// Whether a variable changed no more than its own part: a password with a slash in it would end the host, and be shown.
fn same_server(url: &Url, masked: &Url) -> bool {
    masked.host_str().is_some_and(|host| host.contains("***"))
        || (url.host() == masked.host() && url.port() == masked.port())
}

/// `host:port`; the host is a name, an IPv4 address or an IPv6 address, which is in brackets only in the text.
pub fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match Host::parse(host).ok()? {
        Host::Domain(name) => name,
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    Some((host, self::port(port)?))
}

/// A port that can be connected to.
pub fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// What `error` says, with its place; the keys that are not known are one each.
pub fn explain(error: Error) -> Vec<(Span, String)> {
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
        ErrorKind::DuplicateKey { key, .. } => format!("{key} is there twice: expected it once"),
        ErrorKind::DuplicateTable { name, .. } => {
            format!("[{name}] is there twice: expected it once")
        }
        ErrorKind::Wanted { expected, found } => {
            format!("not TOML, {found} is here: expected {expected}")
        }
        _ => format!("{error}: expected TOML"),
    };
    vec![(error.span, what)]
}

/// An error of ours.
pub fn custom(span: Span, what: impl Display) -> Error {
    Error::from((ErrorKind::Custom(what.to_string().into()), span))
}

/// The value is of the right type, and says nothing that could be meant; it may be secret.
pub fn not_valid(span: Span, expected: &str) -> Vec<Error> {
    vec![custom(
        span,
        format_args!("is not valid: expected {expected}"),
    )]
}

/// A string with its variables replaced.
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

/// All of them, or all that is wrong.
fn collect<T>(items: impl Iterator<Item = Read<T>>) -> Read<Vec<T>> {
    let (mut all, mut errors) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Ok(item) => all.push(item),
            Err(wrong) => errors.extend(wrong),
        }
    }
    if errors.is_empty() {
        Ok(all)
    } else {
        Err(errors)
    }
}
