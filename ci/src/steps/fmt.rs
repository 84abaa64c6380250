//! Checks the formatting, and formats the working tree for `ci fmt --fix`.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use generativity::Id;

use super::workspace::{self, Hint, Work};
use crate::run::execution::StepContext;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::{Failure, OrFail};
use common::scratch;

/// Evidence that this run's sources are formatted.
#[derive(Debug)]
pub struct Formatted<'run, K> {
    _run: Id<'run>,
    _kind: PhantomData<K>,
}

const FAILED: &str = "some files are not formatted";
const HINT: &str = "Run `ci fmt --fix` or `cargo fmt --all`.";

fn work<'a>(script: &'a str, failed: &'a str, hint: &'a str) -> Work<'a> {
    Work {
        script,
        env: BTreeMap::new(),
        services: None,
        program: None,
        writes_out: false,
        failed,
        hint: Hint::Text(hint),
    }
}

/// Runs `cargo fmt --all --check`.
///
/// # Errors
/// When a file is not formatted, with the diff as output (exit code 1).
pub async fn run<'run, K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'run>,
) -> Result<Formatted<'run, K>, Failure> {
    workspace::run(step, source, work("cargo fmt --all --check", FAILED, HINT)).await?;
    Ok(Formatted {
        _run: source.run(),
        _kind: PhantomData,
    })
}

/// Formats the working tree, and returns the files that changed. Files that were edited in the meantime are left alone.
///
/// # Errors
/// When rustfmt cannot parse the code, a file was edited in the meantime (exit code 1), or cannot be written (exit code 3).
pub async fn fix<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
) -> Result<Vec<PathBuf>, Failure> {
    // Dagger cannot export files from a cache volume, only a copy of them.
    let script = "cargo fmt --all && mkdir -p /formatted && cp -a /work/src/. /formatted/";
    let work = work(
        script,
        "rustfmt cannot parse the code",
        "Fix the syntax errors above.",
    );
    let done = workspace::execute(step, source, &work).await?;
    let folder =
        scratch::folder().or_environment("cannot create a directory for the formatted files")?;
    done.directory("/formatted")
        .export(folder.path().display().to_string())
        .await
        .map_err(|error| {
            crate::engine::graphql::EngineError::from(error)
                .into_environment("cannot export the formatted files")
        })?;
    let sources = source.for_step(step.step, &step.run.settings.paths)?;
    let mut changed = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let entries = std::fs::read_dir(sources.path.join(&below))
            .or_environment("cannot list the sources")?;
        for entry in entries {
            let entry = entry.or_environment("cannot list the sources")?;
            let path = below.join(entry.file_name());
            let kind = entry
                .file_type()
                .or_environment("cannot list the sources")?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && replace(source, folder.path(), &path)? {
                changed.push(path);
            }
        }
    }
    changed.sort();
    Ok(changed)
}

fn replace(source: &Source<'_>, formatted: &Path, path: &Path) -> Result<bool, Failure> {
    let cannot = || format!("cannot format {}", path.display());
    let read = |file: PathBuf| std::fs::read(file).or_environment(cannot());
    let before = read(source.snapshot().path().join(path))?;
    let after = read(formatted.join(path))?;
    if before == after {
        return Ok(false);
    }
    let file = source.checkout().root.join(path);
    if read(file.clone())? != before {
        return Err(Failure::gate(format!(
            "{} was edited in the meantime and is left alone",
            path.display()
        ))
        .hint("Run `ci fmt --fix` again."));
    }
    std::fs::write(&file, after).or_environment(cannot())?;
    Ok(true)
}
