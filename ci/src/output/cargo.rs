//! Reads cargo's JSON messages, its progress bar and its own errors.

use std::collections::HashSet;

use cargo_metadata::Message;
use cargo_metadata::diagnostic::{Diagnostic, DiagnosticLevel, DiagnosticSpan};

use super::paths::{SourcePaths, detail};
use crate::model::cause::{Cause, CauseKind, Crates, Location};

/// The beginning of every JSON message.
const JSON: &str = "{\"reason\":\"";

/// Errors that only repeat or count others.
const REPEATED: [&str; 6] = [
    "could not compile",
    "aborting due to",
    "test failed, to rerun",
    "doctest failed, to rerun",
    "build failed",
    "some tests failed",
];

/// The messages of cargo so far.
#[derive(Default)]
pub(super) struct Cargo {
    causes: Vec<Cause>,
    /// What was rendered already: cargo reports a library's errors again for its unit tests.
    seen: HashSet<String>,
    /// The lines of rendered messages.
    rendered: HashSet<String>,
    /// An error of cargo itself, and the lines after it.
    open: Option<(String, Vec<String>)>,
    crates: Option<Crates>,
    has_compiled: bool,
}

impl Cargo {
    /// Reads a JSON message, and returns its text; `None` if the line is none.
    pub(super) fn message(&mut self, line: &str, paths: &SourcePaths) -> Option<Vec<String>> {
        if !line.starts_with(JSON) {
            return None;
        }
        let message: Message = serde_json::from_str(line).ok()?;
        let message = match message {
            Message::CompilerMessage(message) => message.message,
            Message::BuildFinished(_) => {
                self.has_compiled = true;
                return Some(Vec::new());
            }
            _ => return Some(Vec::new()),
        };
        let rendered = message.rendered.clone().unwrap_or_default();
        if !self.seen.insert(rendered.clone()) {
            return Some(Vec::new());
        }
        self.close();
        let is_error = matches!(message.level, DiagnosticLevel::Error | DiagnosticLevel::Ice);
        if is_error && !is_repeated(&message.message) {
            self.causes.push(cause(&message, &rendered, paths));
        }
        let rendered = paths.shorten(rendered.trim_end());
        let mut lines: Vec<_> = rendered.lines().map(ToOwned::to_owned).collect();
        self.rendered.extend(lines.iter().cloned());
        lines.push(String::new());
        Some(lines)
    }

    /// Whether the line is part of a message that was read before, or repeats cargo's count of warnings.
    pub(super) fn has_rendered(&self, line: &str) -> bool {
        !line.is_empty() && self.rendered.contains(line)
    }

    /// Reads a line that is not a message.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(error) = line.strip_prefix("error: ") {
            self.close();
            if !is_repeated(error) && !is_count(error) {
                self.open = Some((error.to_owned(), Vec::new()));
            }
        } else if line.starts_with("warning") || is_status(line) {
            self.close();
            if line.starts_with("warning: `") {
                self.rendered.insert(line.to_owned());
            }
        } else if let Some((_, lines)) = &mut self.open {
            lines.push(line.to_owned());
        }
    }

    /// Reads a state of the progress bar: `Building [==>  ] 12/45: serde, tokio`.
    pub(super) fn progress(&mut self, text: &str) {
        let Some((_, counts)) = text.split_once("] ") else {
            return;
        };
        let counts = counts.split([':', ' ']).next().unwrap_or_default();
        if let Some((done, all)) = counts.split_once('/')
            && let (Ok(done), Ok(all)) = (done.parse(), all.trim().parse())
        {
            self.crates = Some(Crates { done, all });
        }
    }

    /// Whether cargo has said that it has compiled everything.
    pub(super) fn has_compiled(&self) -> bool {
        self.has_compiled
    }

    pub(super) fn crates(&self) -> Option<Crates> {
        self.crates
    }

    pub(super) fn finish(mut self) -> Vec<Cause> {
        self.close();
        self.causes
    }

    fn close(&mut self) {
        if let Some((title, lines)) = self.open.take()
            && self.seen.insert(title.clone())
        {
            let title = match failed_build_script(&title) {
                Some(package) => format!("the build script of `{package}` failed"),
                None => title,
            };
            self.causes.push(Cause {
                kind: CauseKind::Diagnostic,
                title,
                location: None,
                detail: detail(&lines),
            });
        }
    }
}

/// The package, with its version, whose build script failed according to an error of cargo.
pub(crate) fn failed_build_script(error: &str) -> Option<&str> {
    let (_, rest) = error.split_once("failed to run custom build command for `")?;
    let (package, _) = rest.split_once(['`', '('])?;
    Some(package.trim())
}

fn is_repeated(error: &str) -> bool {
    REPEATED.iter().any(|sign| error.starts_with(sign))
}

/// Whether the error is the last one of `cargo test --no-fail-fast`: `2 targets failed:`.
fn is_count(error: &str) -> bool {
    error.ends_with(" target failed:") || error.ends_with(" targets failed:")
}

/// Whether the line is one of cargo's status lines, which align a verb to the right: `   Compiling api v1.2.3`.
fn is_status(line: &str) -> bool {
    let word = line.trim_start();
    let indent = line.len() - word.len();
    let verb = word.split(' ').next().unwrap_or_default();
    indent >= 2 && indent + verb.len() == 12 && verb.starts_with(|c: char| c.is_ascii_uppercase())
}

fn cause(message: &Diagnostic, rendered: &str, paths: &SourcePaths) -> Cause {
    let mut title = message
        .message
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    if let Some(code) = &message.code {
        title += &format!(" [{}]", code.code);
    }
    let rendered = paths.shorten(rendered);
    let mut lines: Vec<_> = rendered.lines().collect();
    // The first line is the title.
    if !lines.is_empty() {
        lines.remove(0);
    }
    Cause {
        kind: CauseKind::Diagnostic,
        title,
        location: message
            .spans
            .iter()
            .filter(|span| span.is_primary)
            .find_map(|span| place(span, paths)),
        detail: detail(&lines),
    }
}

/// The place of a span in the sources: of the macro's call, if the macro is elsewhere.
fn place(span: &DiagnosticSpan, paths: &SourcePaths) -> Option<Location> {
    let number = |of: usize| u32::try_from(of).ok();
    let here = paths.location(
        &span.file_name,
        number(span.line_start)?,
        number(span.column_start),
    );
    here.or_else(|| place(&span.expansion.as_ref()?.span, paths))
}
