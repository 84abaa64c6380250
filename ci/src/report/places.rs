//! Checks, before any work, that a run can write its results.

use std::fs::OpenOptions;
use std::path::Path;

use common::failure::{Failure, OrFail};

/// Creates the report directory, which git ignores from now on, and checks that it, `output` and GitHub's files can be written. `root`
/// is the top of the working tree.
///
/// # Errors
/// When one of them cannot be written (exit code 3).
pub fn prepare(directory: &Path, root: &Path, output: Option<&Path>) -> Result<(), Failure> {
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
    let is_ours = !existed || directory.join("report.json").exists();
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
    Ok(())
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
