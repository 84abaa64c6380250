//! Child processes of the benchmark: their durations, CPU time and memory. SIGINT ends them and then the benchmark, which cleans up
//! while it unwinds.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use procfs::process::Process;

/// The process groups that run now.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The payload of the unwinding that follows an interruption.
pub struct Interrupted;

fn running() -> MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, SIGINT and SIGTERM end all commands of this module.
pub fn catch_signals() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut interrupt = signal(SignalKind::interrupt()).unwrap();
            let mut terminate = signal(SignalKind::terminate()).unwrap();
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                INTERRUPTED.store(true, Ordering::SeqCst);
                eprintln!("interrupted; cleaning up");
                for group in running().iter() {
                    // It may have ended in the meantime.
                    let _ = killpg(*group, Signal::SIGINT);
                }
            }
        });
    });
}

/// Unwinds if the benchmark was interrupted.
pub fn check_interruption() {
    if INTERRUPTED.load(Ordering::SeqCst) {
        // Without the message of a panic.
        resume_unwind(Box::new(Interrupted));
    }
}

/// A running command in a process group of its own.
struct Running {
    child: Child,
    group: Pid,
    begun: Instant,
    description: String,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        check_interruption();
        let begun = Instant::now();
        let spawned = command.stdin(Stdio::null()).process_group(0).spawn();
        let child = spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let group = Pid::from_raw(child.id().try_into().unwrap());
        running().push(group);
        if INTERRUPTED.load(Ordering::SeqCst) {
            let _ = killpg(group, Signal::SIGINT);
        }
        Self {
            child,
            group,
            begun,
            description: format!("{command:?}"),
        }
    }

    /// Waits for the exit. `log` is the output, for the message if the exit code is not `code`.
    fn end(mut self, code: i32, log: impl FnOnce() -> String) -> Duration {
        let status = self.child.wait().unwrap();
        let took = self.begun.elapsed();
        running().retain(|group| *group != self.group);
        check_interruption();
        if status.code() != Some(code) {
            panic!("{status} of {}:\n{}", self.description, log());
        }
        took
    }
}

/// The output of a command, in a file, so that reading it does not take part in the measurement.
struct Log(File);

impl Log {
    fn of(command: &mut Command) -> Self {
        let file = tempfile::tempfile().unwrap();
        command
            .stdout(file.try_clone().unwrap())
            .stderr(file.try_clone().unwrap());
        Self(file)
    }

    fn read(mut self) -> String {
        let mut text = Vec::new();
        self.0.rewind().unwrap();
        self.0.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Runs a command, which must succeed, and returns its duration in seconds.
pub fn seconds(mut command: Command) -> f64 {
    let log = Log::of(&mut command);
    let running = Running::start(&mut command);
    running.end(0, || log.read()).as_secs_f64()
}

/// Runs a command, which must succeed, and returns its standard output without the final newline.
pub fn stdout(mut command: Command) -> String {
    let log = Log::of(&mut Command::new("true"));
    command.stdout(log.0.try_clone().unwrap());
    let errors = tempfile::tempfile().unwrap();
    command.stderr(errors.try_clone().unwrap());
    Running::start(&mut command).end(0, || Log(errors).read());
    log.read().trim_end().to_owned()
}

/// Runs a command, which must exit with this code, and calls `line` with each line of its standard error and the seconds since its
/// start. Returns its duration in seconds.
pub fn watch(mut command: Command, code: i32, mut line: impl FnMut(&str, f64)) -> f64 {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = Running::start(&mut command);
    let mut all = String::new();
    for read in BufReader::new(running.child.stderr.take().unwrap()).lines() {
        let text = read.unwrap();
        line(&text, running.begun.elapsed().as_secs_f64());
        all += &text;
        all.push('\n');
    }
    running.end(code, || all).as_secs_f64()
}

/// What a process used.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time, in milliseconds.
    pub cpu: f64,
    /// The same of the child processes for which it has waited, among them Dagger's CLI.
    pub children: f64,
    /// The largest resident memory of the process itself, in MiB.
    pub memory: f64,
}

/// Runs a command, which must succeed, and returns what its process used.
pub fn usage(mut command: Command) -> Usage {
    let log = Log::of(&mut command);
    let running = Running::start(&mut command);
    let id = running.group;
    // The kernel forgets the peak when the process exits. Only the last allocations before the exit can escape this loop.
    let mut peak = 0;
    let waited = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    while waitid(Id::Pid(id), waited).unwrap().pid().is_none() {
        let status = Process::new(id.as_raw()).and_then(|it| it.status());
        peak = peak.max(status.ok().and_then(|it| it.vmhwm).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(5));
    }
    // It has exited and was not waited for, so that its times are final.
    let stat = Process::new(id.as_raw()).unwrap().stat().unwrap();
    let milliseconds = |ticks: u64| ticks as f64 * 1e3 / procfs::ticks_per_second() as f64;
    running.end(0, || log.read());
    Usage {
        cpu: milliseconds(stat.utime + stat.stime),
        children: milliseconds((stat.cutime + stat.cstime).unsigned_abs()),
        memory: peak as f64 / 1024.0,
    }
}
