//! The TOML file.

use std::{
    fs::File,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    checks::{self, Defaults, redis_url},
    problem::{Place, Problem},
    settings::Settings,
    values::{Keys, boolean, duration, explain, integer, parsed, words},
    variables::Variables,
};

/// The maximum size of the file in bytes.
const MAX_SIZE: u64 = 1024 * 1024;

/// Reads the file at `path`.
pub(super) fn text(path: &Path) -> Result<String, Problem> {
    let name = path.display().to_string();
    let problem = |position, what| {
        let place = Place {
            file: name.clone(),
            position,
        };
        Problem {
            place: Some(place),
            what,
        }
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut bytes))
        .map_err(|error| problem(None, format!("cannot read the file: {error}")))?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(problem(
            None,
            "file is too large: expected at most 1 MiB".into(),
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes());
        Problem {
            place: Some(Place::of(&name, &text, valid)),
            what: "invalid UTF-8: expected UTF-8 text".into(),
        }
    })
}

/// Applies `text`, the content of the file `name`, to `settings`. Returns the defaults of its checks, and all problems.
pub(super) fn read(
    settings: &mut Settings,
    name: &str,
    text: &str,
    variables: Variables<'_>,
) -> (Defaults, Vec<Problem>) {
    let (defaults, errors) = match toml_span::parse(text) {
        Ok(value) => Keys::read_all("the file", value, variables, |keys| {
            read_keys(settings, keys)
        }),
        Err(error) => (None, vec![error]),
    };
    let mut problems: Vec<_> = errors
        .into_iter()
        .flat_map(explain)
        .map(|(span, what)| Problem {
            place: Some(Place::of(name, text, span.start)),
            what,
        })
        .collect();
    problems.sort_by(|one, other| one.place.cmp(&other.place));
    (defaults.unwrap_or_default(), problems)
}

fn read_keys(settings: &mut Settings, keys: &mut Keys<'_, '_>) -> Defaults {
    let address = "an address and a port, such as [::]:8000 or 127.0.0.1:8000";
    let address = parsed(address, |text| text.parse::<SocketAddr>().ok());
    keys.set("listen", &mut settings.address, address);
    let base = "a path such as /status, of letters, digits, - . _ ~ and /";
    keys.set(
        "base-path",
        &mut settings.base_path,
        parsed(base, base_path),
    );
    keys.set("title", &mut settings.title, words);
    keys.set("environment", &mut settings.environment, words);
    let directory = parsed("a directory", |text| {
        (!text.is_empty()).then(|| PathBuf::from(text))
    });
    keys.set("data-dir", &mut settings.data, directory);
    keys.set(
        "connections",
        &mut settings.connections,
        integer::<usize>(1..=1_000_000),
    );
    keys.set(
        "event-streams",
        &mut settings.streams,
        integer::<usize>(1..=10_000),
    );
    // Keeps the whole shutdown below 20 s.
    keys.set(
        "drain",
        &mut settings.drain,
        duration(Duration::ZERO..=Duration::from_secs(10)),
    );
    keys.set("watch", &mut settings.watch, boolean);
    keys.table("redis", |keys| {
        if !keys.contains("url") {
            keys.wrong(
                keys.span,
                "[redis] has no url: expected url = \"redis://…\"",
            );
        }
        keys.set("url", &mut settings.redis, redis_url);
    });
    let defaults = keys.table("defaults", Defaults::read).unwrap_or_default();
    settings.checks = checks::read(keys, &defaults);
    defaults
}

/// Parses a path without a slash at its end; `/` is the empty path. Other characters than the unreserved ones of RFC 3986 would
/// have a meaning in URLs, in HTML or in the patterns of routes.
fn base_path(text: &str) -> Option<String> {
    let path = text.strip_suffix('/').unwrap_or(text);
    let mut segments = path.split('/');
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let starts_with_slash = text.starts_with('/') && segments.next() == Some("");
    let plain = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(fits);
    (starts_with_slash && segments.all(plain)).then(|| path.to_owned())
}
