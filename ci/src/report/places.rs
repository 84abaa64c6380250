//! The report directory: checks, before any work, that a run can write its results, and keeps the files of different runs apart.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;

use super::previous::{PREVIOUS, Previous, REPORT};
use crate::model::step::Step;
use common::failure::{Failure, OrFail};
use common::file_tree;

/// The other files of a run in its report directory, apart from the logs. The image stays, because a build without changes reuses
/// its layer.
pub(super) const OTHERS: [&str; 8] = [
    "report.html",
    "summary.md",
    "junit.xml",
    "code-quality.json",
    "trivy.json",
    "trivy.sarif",
    "sbom.cdx.json",
    "provenance.intoto.json",
];

/// Creates the report directory, which git ignores from now on, checks that it, `output` and GitHub's files can be written, and
/// removes the files of the previous run, whose report is returned. `root` is the top of the working tree.
///
/// # Errors
/// When one of them cannot be written (exit code 3).
pub fn prepare(
    directory: &Path,
    root: &Path,
    output: Option<&Path>,
) -> Result<Option<Previous>, Failure> {
    let existed = directory.exists();
    std::fs::create_dir_all(directory).or_environment(format!(
        "cannot create the report directory {}",
        directory.display()
    ))?;
    check_writable(directory).or_environment(format!(
        "cannot write to the report directory {}",
        directory.display()
    ))?;
    // A directory that holds other things than reports is not ours to hide from git.
    let is_ours = !existed
        || [REPORT, PREVIOUS]
            .iter()
            .any(|name| directory.join(name).exists());
    let ignore = directory.join(".gitignore");
    if is_ours && !root.starts_with(directory) && !ignore.exists() {
        std::fs::write(&ignore, "*\n")
            .or_environment(format!("cannot write {}", ignore.display()))?;
    }
    if let Some(output) = output {
        check_writable(folder_of(output))
            .or_environment(format!("cannot write {}", output.display()))?;
    }
    for variable in ["GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"] {
        if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
            check_appendable(Path::new(&path)).or_environment(format!(
                "cannot write {variable}, which names {}",
                Path::new(&path).display()
            ))?;
        }
    }
    clear(directory)?;
    Ok(Previous::read(directory))
}

/// Removes the files of the previous run, so that those of a run that is killed cannot be mistaken for its own. Only the report is
/// kept, under another name.
///
/// # Errors
/// When a file cannot be removed (exit code 3).
pub fn clear(directory: &Path) -> Result<(), Failure> {
    let gone = |result: std::io::Result<()>, path: &Path| match result {
        // There is no such file, or no such directory.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(())
        }
        other => other.or_environment(format!(
            "cannot remove {}, a file of the previous run",
            path.display()
        )),
    };
    let report = directory.join(REPORT);
    gone(std::fs::rename(&report, directory.join(PREVIOUS)), &report)?;
    let logs = Step::all().iter().map(|step| step.log());
    for name in OTHERS.map(ToOwned::to_owned).into_iter().chain(logs) {
        let path = directory.join(name);
        gone(std::fs::remove_file(&path), &path)?;
    }
    // Unless it holds files of others.
    let _ = std::fs::remove_dir(directory.join("logs"));
    Ok(())
}

/// Writes a file of the report directory: readers see the whole file, or none.
///
/// # Errors
/// When the file cannot be written (exit code 3).
pub(super) fn write(directory: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = directory.join(name);
    file_tree::write_whole(&path, text.as_bytes())
        .or_environment(format!("cannot write {}", path.display()))
}

/// The directory of a file.
fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Checks that text can be added to a file, which is not created.
fn check_appendable(file: &Path) -> std::io::Result<()> {
    if file.exists() {
        OpenOptions::new().append(true).open(file).map(drop)
    } else {
        check_writable(folder_of(file))
    }
}

fn check_writable(directory: &Path) -> std::io::Result<()> {
    tempfile::tempfile_in(directory).map(drop)
}
