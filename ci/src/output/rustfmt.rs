//! Reads the diffs and errors of `cargo fmt --check`.

use super::paths::{SourcePaths, detail};
use crate::model::cause::{Cause, CauseKind, Location};

/// A difference, or an error of the parser.
#[derive(Debug)]
struct Chunk {
    /// The error's message; `None` for a difference.
    error: Option<String>,
    location: Option<Location>,
    lines: Vec<String>,
}

/// The differences so far.
#[derive(Debug, Default)]
pub(super) struct Rustfmt {
    chunks: Vec<Chunk>,
}

impl Rustfmt {
    pub(super) fn line(&mut self, line: &str, paths: &SourcePaths) {
        if let Some(place) = line.strip_prefix("Diff in ") {
            self.chunks.push(Chunk {
                error: None,
                location: in_tree(place, paths),
                lines: Vec::new(),
            });
        } else if let Some(error) = line.strip_prefix("error: ") {
            self.chunks.push(Chunk {
                error: Some(error.to_owned()),
                location: None,
                lines: Vec::new(),
            });
        } else if let Some(chunk) = self.chunks.last_mut() {
            if let Some(place) = line.trim_start().strip_prefix("--> ")
                && chunk.location.is_none()
            {
                chunk.location = in_tree(place, paths);
            }
            chunk.lines.push(line.to_owned());
        }
    }

    /// One cause for each error and for each file with differences.
    pub(super) fn finish(self) -> Vec<Cause> {
        let mut causes: Vec<Cause> = Vec::new();
        let mut places = Vec::new();
        for chunk in self.chunks {
            let file = |cause: &Cause| cause.location.as_ref().map(|at| at.file.clone());
            let known = causes.iter().position(|cause| {
                cause.kind == CauseKind::Format
                    && chunk.error.is_none()
                    && file(cause) == chunk.location.as_ref().map(|at| at.file.clone())
            });
            if let Some(known) = known {
                places[known] += 1;
                causes[known].title = format!("not formatted in {} places", places[known]);
                continue;
            }
            places.push(1);
            // rustfmt names the first line of the context.
            let change = |line: &String| line.starts_with(['-', '+']);
            let context = match chunk.error {
                Some(_) => 0,
                None => chunk.lines.iter().position(change).unwrap_or(0),
            };
            causes.push(Cause {
                kind: if chunk.error.is_some() {
                    CauseKind::Diagnostic
                } else {
                    CauseKind::Format
                },
                title: chunk.error.unwrap_or_else(|| "not formatted".to_owned()),
                location: chunk.location.map(|at| Location {
                    line: at.line + u32::try_from(context).unwrap_or_default(),
                    ..at
                }),
                detail: detail(&chunk.lines[context..]),
            });
        }
        causes
    }
}

/// rustfmt names absolute paths, from which the container's directory is removed already.
fn in_tree(place: &str, paths: &SourcePaths) -> Option<Location> {
    let place = place.trim_end_matches(':');
    paths.parse(&format!("{}/{place}", super::paths::SOURCES))
}
