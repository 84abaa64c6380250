//! Runs git.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::failure::{Failure, OrFail};
use common::provision;

/// Variables that would make git use another repository or other settings, such as those that git sets for a hook.
const REMOVED: [&str; 8] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
];

/// A call of git in `directory`, without standard input.
pub(super) fn git_command<I, S>(directory: &Path, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::null());
    for name in REMOVED.iter().chain(&provision::SECRETS) {
        command.env_remove(name);
    }
    command
        // Not the replacements of `git replace`.
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .env("GIT_OPTIONAL_LOCKS", "0")
        // There is no user to answer a prompt.
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C");
    command
}

/// Runs git in `directory`, and returns its standard output.
///
/// # Errors
/// When git is missing (exit code 3) or fails (exit code 2).
pub(super) fn git<I, S>(directory: &Path, arguments: I) -> Result<Vec<u8>, Failure>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    output_of(git_command(directory, arguments), Vec::new())
}

/// Runs a call of git with this standard input, and returns its standard output.
///
/// # Errors
/// When git is missing (exit code 3) or fails (exit code 2).
pub(super) fn output_of(mut command: Command, input: Vec<u8>) -> Result<Vec<u8>, Failure> {
    let missing = |error| {
        Failure::environment("cannot run git")
            .because(error)
            .hint("Install git. ci reads the commit and the sources with it.")
    };
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().map_err(missing)?;
    // In a thread of its own, because git may block on its output before it has read everything.
    let writer = child.stdin.take().map(|mut stdin| {
        std::thread::spawn(move || {
            // git reports what it misses.
            let _ = stdin.write_all(&input);
        })
    });
    let output = child.wait_with_output().map_err(missing)?;
    if let Some(writer) = writer {
        // The thread does not panic.
        let _ = writer.join();
    }
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let words: Vec<_> = command
        .get_args()
        .map(OsStr::to_string_lossy)
        .skip_while(|word| word.starts_with('-') || Path::new(&**word).is_absolute())
        .take(2)
        .collect();
    Err(Failure::usage(format!("git {} failed", words.join(" "))).output(message))
}

/// Runs git in `directory`, and returns its standard output as text without the last line feed.
///
/// # Errors
/// When git is missing, prints something else than UTF-8 (exit code 3), or fails (exit code 2).
pub(crate) fn git_text<I, S>(directory: &Path, arguments: I) -> Result<String, Failure>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let text = String::from_utf8(git(directory, arguments)?)
        .or_environment("the output of git is not UTF-8")?;
    Ok(text.trim_end_matches('\n').to_owned())
}
