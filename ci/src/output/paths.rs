//! Translates paths, and cuts the details of causes.

use std::path::{Path, PathBuf};

use crate::model::cause::Location;

/// The directory of the sources in the containers of cargo's steps.
pub(crate) const SOURCES: &str = "/work/src";

/// Translates the paths of the container to those of the working tree.
pub(super) struct SourcePaths {
    /// The workspace's directory, relative to the top of the working tree. Cargo's paths are relative to it.
    folder: PathBuf,
}

impl SourcePaths {
    /// The paths of the workspace in `folder`, which is relative to the top of the working tree.
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Removes the container's directory from all paths in `text`.
    pub(super) fn shorten(&self, text: &str) -> String {
        if !text.contains(SOURCES) {
            return text.to_owned();
        }
        text.replace(&format!("{SOURCES}/"), "")
            .replace(SOURCES, ".")
    }

    /// The place in a file of the working tree; `None` if the file is not in it.
    pub(super) fn location(&self, file: &str, line: u32, column: Option<u32>) -> Option<Location> {
        let inside = match file.strip_prefix(SOURCES) {
            Some(rest) => PathBuf::from(rest.trim_start_matches('/')),
            None if file.starts_with('/') => return None,
            None => self.folder.join(file.trim_start_matches("./")),
        };
        Some(Location {
            file: inside.to_str()?.to_owned(),
            line,
            column,
        })
    }

    /// Parses a place such as `src/main.rs:3:5`, with or without a column.
    pub(super) fn parse(&self, text: &str) -> Option<Location> {
        let (rest, last) = text.trim_end_matches(':').rsplit_once(':')?;
        let last = last.parse().ok()?;
        match rest.rsplit_once(':') {
            Some((file, line)) if line.parse::<u32>().is_ok() => {
                self.location(file, line.parse().ok()?, Some(last))
            }
            _ => self.location(rest, last, None),
        }
    }
}

/// At most this many lines of detail are kept for each cause.
const DETAIL: usize = 60;

/// The detail of a cause from its lines: without empty lines around it, and cut after [`DETAIL`] lines.
pub(super) fn detail(lines: &[impl AsRef<str>]) -> String {
    let mut lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
    while lines.last().is_some_and(|line| line.trim().is_empty()) {
        lines.pop();
    }
    let first = lines.iter().position(|line| !line.trim().is_empty());
    let lines = lines.get(first.unwrap_or(0)..).unwrap_or_default();
    let mut text = lines
        .iter()
        .take(DETAIL)
        .copied()
        .collect::<Vec<_>>()
        .join("\n");
    if lines.len() > DETAIL {
        text += &format!("\n… {} more lines", lines.len() - DETAIL);
    }
    text
}
