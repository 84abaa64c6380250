//! Child processes: their output is captured, they never outlive this process, and they get no tokens.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{Read as _, Seek as _};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use crate::failure::{Failure, OrFail};
use crate::progress::Progress;

/// The environment variables that are removed from every child process.
pub const SECRETS: [&str; 2] = ["GITHUB_TOKEN", "DAGGER_SESSION_TOKEN"];
/// The number of output lines that a failure shows.
const TAIL_LINES: usize = 40;
/// The message of `ENOSPC` in lower case, which programs print when the disk is full.
const DISK_FULL: &str = "no space left on device";

/// Arguments of unshare(1) with which no process and no mount of the command outlives it.
pub const UNSHARE_ARGUMENTS: [&str; 6] = [
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
];

/// Returns a command in its own process group, without standard input and without tokens in its environment.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in SECRETS {
        command.env_remove(name);
    }
    command
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Runs a command and passes each line of its output to `progress`. The command and its children are killed when the future is
/// dropped or this process ends for any reason.
///
/// # Errors
/// When the command cannot be started or fails; the failure contains the last lines of its output (exit code 3).
pub async fn run(command: Command, what: &str, progress: &dyn Progress) -> Result<(), Failure> {
    let mut tail = Tail::default();
    let status = run_with_lines(command, what, |_, line| {
        progress.line(None, line);
        tail.push(line);
    })
    .await?;
    check_status(status, what, tail)
}

/// Runs a short command and returns its standard output.
///
/// # Errors
/// When the command cannot be started or fails; the failure contains the last lines of its output (exit code 3).
pub async fn output(command: Command, what: &str) -> Result<String, Failure> {
    let mut out = String::new();
    let mut tail = Tail::default();
    let status = run_with_lines(command, what, |stream, line| {
        tail.push(line);
        if stream == Stream::Out {
            out.push_str(line);
            out.push('\n');
        }
    })
    .await?;
    check_status(status, what, tail)?;
    Ok(out)
}

/// Runs a command that must not be interrupted: it continues when the future is dropped or this process ends.
///
/// # Errors
/// When the command cannot be started or fails; the failure contains the last lines of its output (exit code 3).
pub(super) async fn run_uninterrupted(mut command: Command, what: &str) -> Result<(), Failure> {
    let cannot = || format!("{what}: cannot capture the output");
    // Not a pipe, because SIGPIPE would kill the command after this process has ended.
    let mut captured = tempfile::tempfile().or_environment(cannot())?;
    let mut child = command
        .kill_on_drop(false)
        .stdout(captured.try_clone().or_environment(cannot())?)
        .stderr(captured.try_clone().or_environment(cannot())?)
        .spawn()
        .or_environment(format!("{what}: cannot start {}", program_name(&command)))?;
    let status = child
        .wait()
        .await
        .or_environment(format!("{what}: cannot wait for the process"))?;
    let mut text = Vec::new();
    captured.rewind().or_environment(cannot())?;
    captured.read_to_end(&mut text).or_environment(cannot())?;
    let mut tail = Tail::default();
    for line in String::from_utf8_lossy(&text).lines() {
        tail.push(line);
    }
    check_status(status, what, tail)
}

/// Returns the absolute path of a program on `PATH` or in a directory for system programs, which `PATH` may not contain.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        // A relative one would mean another folder in each child process.
        .filter(|folder| folder.is_absolute());
    let folders = std::env::join_paths(folders).ok()?;
    which::which_in_global(name, Some(folders)).ok()?.next()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

async fn run_with_lines(
    mut command: Command,
    what: &str,
    mut on_line: impl FnMut(Stream, &str),
) -> Result<ExitStatus, Failure> {
    #[cfg(unix)]
    let _group = Group::start_for(&mut command)?;
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .or_environment(format!("{what}: cannot start {}", program_name(&command)))?;
    let mut out = child.stdout.take().map(lines);
    let mut err = child.stderr.take().map(lines);
    let mut status = None;
    // A grandchild may keep the streams open: after the command has ended, read only what is left in the pipes.
    while out.is_some() || err.is_some() {
        tokio::select! {
            biased;
            line = next(&mut out), if out.is_some() => if let Some(line) = line { on_line(Stream::Out, &line) },
            line = next(&mut err), if err.is_some() => if let Some(line) = line { on_line(Stream::Err, &line) },
            ended = child.wait(), if status.is_none() => {
                status = Some(ended.or_environment(format!("{what}: cannot wait for the process"))?);
            }
            () = tokio::time::sleep(std::time::Duration::from_millis(200)), if status.is_some() => break,
        }
    }
    match status {
        Some(status) => Ok(status),
        None => child
            .wait()
            .await
            .or_environment(format!("{what}: cannot wait for the process")),
    }
}

fn check_status(status: ExitStatus, what: &str, mut tail: Tail) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    let output = tail.text();
    let failure = if output.to_lowercase().contains(DISK_FULL) {
        Failure::environment(format!("{what} failed: the disk is full")).hint(
            "Free some disk space (`ci engine prune` removes files that ci can create again), or set LAB_CI_CACHE_DIR to a \
             directory on another disk.",
        )
    } else {
        Failure::environment(format!("{what} failed ({status})"))
    };
    Err(failure.output(output))
}

fn program_name(command: &Command) -> String {
    command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned()
}

type Lines = BufReader<Box<dyn AsyncRead + Send + Unpin>>;

fn lines(stream: impl AsyncRead + Send + Unpin + 'static) -> (Lines, Vec<u8>) {
    (BufReader::new(Box::new(stream)), Vec::new())
}

/// Returns the next line, or `None` at the end of the stream. A partial line is kept if the future is dropped.
async fn next(stream: &mut Option<(Lines, Vec<u8>)>) -> Option<String> {
    let (reader, pending) = stream.as_mut()?;
    let read = reader.read_until(b'\n', pending).await;
    let ended = !matches!(read, Ok(1..));
    let line = (!pending.is_empty()).then(|| {
        let text = String::from_utf8_lossy(pending).trim_end().to_owned();
        pending.clear();
        text
    });
    if ended {
        *stream = None;
    }
    line
}

/// A process group that is killed when this value is dropped and when this process ends, even by SIGKILL. The group leader is a
/// shell that waits for the end of its standard input, a pipe from this process.
#[cfg(unix)]
struct Group(Child);

#[cfg(unix)]
impl Group {
    /// Creates a process group and adds `command` to it.
    fn start_for(command: &mut Command) -> Result<Self, Failure> {
        let mut leader = self::command("sh");
        leader
            .args(["-c", "read -r _; kill -s KILL 0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let group = Self(leader.spawn().or_environment("cannot start sh")?);
        command.process_group(group.id().unwrap_or_default());
        Ok(group)
    }

    fn id(&self) -> Option<i32> {
        self.0.id().and_then(|id| i32::try_from(id).ok())
    }
}

#[cfg(unix)]
impl Drop for Group {
    fn drop(&mut self) {
        // The leader has not been reaped, so the id still belongs to this group.
        if let Some(id) = self.id() {
            let group = nix::unistd::Pid::from_raw(id);
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// The last lines of a program's output.
#[derive(Default)]
pub struct Tail(VecDeque<String>);

impl Tail {
    /// Adds a line and drops the oldest one if the limit is reached.
    pub fn push(&mut self, line: &str) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    /// Returns the lines, separated by newlines.
    pub fn text(&mut self) -> String {
        self.0.make_contiguous().join("\n")
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn sh(script: &str) -> Command {
        let mut command = command("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn failure_contains_the_end_of_both_streams() {
        let failure = run(sh("echo one; echo two >&2; exit 3"), "the try", &Silent).await;
        let failure = failure.expect_err("exit 3 is a failure");
        assert!(failure.message.starts_with("the try failed"), "{failure}");
        let output = failure.output.expect("there was output");
        assert!(output.contains("one") && output.contains("two"), "{output}");
    }

    #[tokio::test]
    async fn returns_all_of_standard_output() {
        let out = output(sh("printf 'a\\nb'; echo no >&2"), "the try").await;
        assert_eq!(out.expect("exit 0"), "a\nb\n");
    }

    #[tokio::test]
    async fn does_not_wait_for_a_grandchild_that_keeps_the_streams_open() {
        let begun = std::time::Instant::now();
        run(sh("sleep 30 & echo x"), "the try", &Silent)
            .await
            .expect("exit 0");
        assert!(begun.elapsed().as_secs() < 10);
    }

    #[tokio::test]
    async fn reports_a_full_disk() {
        let full = sh("echo 'write x: no space left on device'; exit 1");
        let failure = run(full, "the try", &Silent).await.expect_err("exit 1");
        assert!(failure.message.ends_with("the disk is full"), "{failure}");
        assert!(failure.hint.is_some());
    }

    #[tokio::test]
    async fn uninterrupted_command_continues_when_the_future_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("done");
        let script = format!("sleep 0.5; echo to nobody; touch {}", file.display());
        let limit = std::time::Duration::from_millis(100);
        let cut = tokio::time::timeout(limit, run_uninterrupted(sh(&script), "the try"));
        assert!(cut.await.is_err());
        until(|| file.exists().then_some(()))
            .await
            .expect("the command continues");
        let failure = run_uninterrupted(sh("echo why; exit 3"), "the try").await;
        let failure = failure.expect_err("exit 3 is a failure");
        assert_eq!(failure.output.as_deref(), Some("why"));
    }

    #[tokio::test]
    async fn dropping_the_future_kills_the_whole_group() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let running = run(sh(&script), "the try", &Silent);
        let started = until(|| {
            let pid = std::fs::read_to_string(&file).ok()?;
            pid.strip_suffix('\n').map(ToOwned::to_owned)
        });
        let pid = tokio::select! {
            ended = running => panic!("the script waits, but ended: {ended:?}"),
            pid = started => pid.expect("the script starts"),
        };
        until(|| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        })
        .await
        .expect("the group is killed");
    }

    /// Waits at most ten seconds for a value.
    async fn until<T>(value: impl Fn() -> Option<T>) -> Result<T, tokio::time::error::Elapsed> {
        let found = async {
            loop {
                if let Some(found) = value() {
                    return found;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let limit = std::time::Duration::from_secs(10);
        tokio::time::timeout(limit, found).await
    }
}
