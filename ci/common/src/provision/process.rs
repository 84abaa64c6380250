//! Child processes: their output is heard, their end is certain, and no token reaches them.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{Read as _, Seek as _};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use crate::failure::{Failure, OrFail};
use crate::progress::Progress;

/// Never handed to a child process.
pub const SECRETS: [&str; 2] = ["GITHUB_TOKEN", "DAGGER_SESSION_TOKEN"];
/// As much of a failed program's output as an error shows.
const TAIL_LINES: usize = 40;
/// What programs of whatever kind say of a full disk, in lower case.
const DISK_FULL: &str = "no space left on device";

/// Arguments of unshare(1): nothing of what is run so survives its end, no process and no mount.
pub const ALONE: [&str; 6] = [
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
];

/// A command in a process group of its own, without standard input and without any token in its environment.
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

/// Runs a command to its end; each line it prints goes to `narrator`. It and its children are killed when the future
/// is dropped, and when this process is gone in whatever way.
///
/// # Errors
/// When the command does not start or does not end with success; the failure carries the end of its output.
pub async fn run(command: Command, what: &str, narrator: &dyn Progress) -> Result<(), Failure> {
    let mut tail = Tail::default();
    let status = drive(command, what, |_, line| {
        narrator.line(line);
        tail.push(line);
    })
    .await?;
    judge(status, what, tail)
}

/// Runs a short command to its end and returns what it wrote to standard output.
///
/// # Errors
/// When the command does not start or does not end with success; the failure carries the end of its output.
pub async fn output(command: Command, what: &str) -> Result<String, Failure> {
    let mut out = String::new();
    let mut tail = Tail::default();
    let status = drive(command, what, |stream, line| {
        tail.push(line);
        if stream == Stream::Out {
            out.push_str(line);
            out.push('\n');
        }
    })
    .await?;
    judge(status, what, tail)?;
    Ok(out)
}

/// Runs a command that would do harm if it ended half-way: neither a cancelled future nor the end of this process ends it.
///
/// # Errors
/// When the command does not start or does not end with success; the failure carries the end of its output.
pub(super) async fn run_through(mut command: Command, what: &str) -> Result<(), Failure> {
    let cannot = || format!("{what}: cannot keep its output");
    // Not a pipe: writing to one whose reader is gone ends a program.
    let mut said = tempfile::tempfile().or_environment(cannot())?;
    let mut child = command
        .kill_on_drop(false)
        .stdout(said.try_clone().or_environment(cannot())?)
        .stderr(said.try_clone().or_environment(cannot())?)
        .spawn()
        .or_environment(format!("{what}: cannot start {}", name_of(&command)))?;
    let status = child
        .wait()
        .await
        .or_environment(format!("{what}: lost the process"))?;
    let mut text = Vec::new();
    said.rewind().or_environment(cannot())?;
    said.read_to_end(&mut text).or_environment(cannot())?;
    let mut tail = Tail::default();
    for line in String::from_utf8_lossy(&text).lines() {
        tail.push(line);
    }
    judge(status, what, tail)
}

/// The full path of a program: on `PATH`, or where system programs lie on machines whose users do not have them there.
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

async fn drive(
    mut command: Command,
    what: &str,
    mut heard: impl FnMut(Stream, &str),
) -> Result<ExitStatus, Failure> {
    #[cfg(unix)]
    let _group = Group::around(&mut command)?;
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .or_environment(format!("{what}: cannot start {}", name_of(&command)))?;
    let mut out = child.stdout.take().map(lines);
    let mut err = child.stderr.take().map(lines);
    let mut status = None;
    // Read until the streams end, but not beyond the program's own end by more than what is in the pipes: a
    // grandchild that keeps a stream open must not hold the run.
    while out.is_some() || err.is_some() {
        tokio::select! {
            biased;
            line = next(&mut out), if out.is_some() => if let Some(line) = line { heard(Stream::Out, &line) },
            line = next(&mut err), if err.is_some() => if let Some(line) = line { heard(Stream::Err, &line) },
            ended = child.wait(), if status.is_none() => {
                status = Some(ended.or_environment(format!("{what}: lost the process"))?);
            }
            () = tokio::time::sleep(std::time::Duration::from_millis(200)), if status.is_some() => break,
        }
    }
    match status {
        Some(status) => Ok(status),
        None => child
            .wait()
            .await
            .or_environment(format!("{what}: lost the process")),
    }
}

fn judge(status: ExitStatus, what: &str, mut tail: Tail) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    let said = tail.text();
    let failure = if said.to_lowercase().contains(DISK_FULL) {
        Failure::environment(format!("{what} failed: the disk is full")).hint(
            "Free some space (`ci engine prune` frees what ci can make again), or name a cache directory on another disk in \
             LAB_CI_CACHE_DIR.",
        )
    } else {
        Failure::environment(format!("{what} failed ({status})"))
    };
    Err(failure.output(said))
}

fn name_of(command: &Command) -> String {
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

/// The next line, or none when the stream ends. What was read of a line is kept when the future is dropped.
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

/// A process group that ends as a whole: when this is dropped, and when this process is gone, killed with -9 too. Its
/// leader is a shell that waits for the end of its input, whose other end nobody but this process has.
#[cfg(unix)]
struct Group(Child);

#[cfg(unix)]
impl Group {
    /// Makes the group that `command` will be in.
    fn around(command: &mut Command) -> Result<Self, Failure> {
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
        // The leader has not been reaped, so that the number is still the group's.
        if let Some(id) = self.id() {
            let group = nix::unistd::Pid::from_raw(id);
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// The last lines that a program wrote.
#[derive(Default)]
pub struct Tail(VecDeque<String>);

impl Tail {
    /// Adds a line, and forgets the oldest if there are too many.
    pub fn push(&mut self, line: &str) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    /// The lines, one below the other.
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
    async fn a_failure_shows_the_end_of_both_streams() {
        let failure = run(sh("echo one; echo two >&2; exit 3"), "the try", &Silent).await;
        let failure = failure.expect_err("exit 3 is a failure");
        assert!(failure.message.starts_with("the try failed"), "{failure}");
        let output = failure.output.expect("there was output");
        assert!(output.contains("one") && output.contains("two"), "{output}");
    }

    #[tokio::test]
    async fn standard_output_is_returned_whole() {
        let out = output(sh("printf 'a\\nb'; echo no >&2"), "the try").await;
        assert_eq!(out.expect("exit 0"), "a\nb\n");
    }

    #[tokio::test]
    async fn a_grandchild_that_keeps_the_streams_open_holds_nobody_up() {
        let begun = std::time::Instant::now();
        run(sh("sleep 30 & echo x"), "the try", &Silent)
            .await
            .expect("exit 0");
        assert!(begun.elapsed().as_secs() < 10);
    }

    #[tokio::test]
    async fn a_full_disk_is_called_so() {
        let full = sh("echo 'write x: no space left on device'; exit 1");
        let failure = run(full, "the try", &Silent).await.expect_err("exit 1");
        assert!(failure.message.ends_with("the disk is full"), "{failure}");
        assert!(failure.hint.is_some());
    }

    #[tokio::test]
    async fn what_must_not_be_cut_short_goes_on_when_the_future_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("done");
        let script = format!("sleep 0.5; echo to nobody; touch {}", file.display());
        let limit = std::time::Duration::from_millis(100);
        let cut = tokio::time::timeout(limit, run_through(sh(&script), "the try"));
        assert!(cut.await.is_err());
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        assert!(file.exists());
        let failure = run_through(sh("echo why; exit 3"), "the try").await;
        let failure = failure.expect_err("exit 3 is a failure");
        assert_eq!(failure.output.as_deref(), Some("why"));
    }

    #[tokio::test]
    async fn dropping_the_future_ends_the_whole_group() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let running = run(sh(&script), "the try", &Silent);
        let limit = std::time::Duration::from_millis(500);
        assert!(tokio::time::timeout(limit, running).await.is_err());
        let pid = std::fs::read_to_string(&file).expect("the script ran");
        tokio::time::sleep(limit).await;
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(
            stat.is_empty() || stat.contains(") Z "),
            "still there: {stat}"
        );
    }
}
