//! Identifies the engine's process by PID and start time, so that a reused PID is not mistaken for it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process, identified by PID and start time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// In clock ticks since boot.
    started: u64,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The process did not run.
    Absent,
    /// The process exited after SIGTERM.
    Stopped,
    /// The process was killed.
    Killed,
}

struct Stat {
    process: Process,
    parent: i32,
    zombie: bool,
}

impl Process {
    /// Reads the process that `start.sh` recorded: a line of `/proc/PID/stat` and the boot ID.
    pub(super) fn read_record(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        parse_record(&text, boot.trim())
    }

    /// Whether exactly this process still runs.
    pub(super) fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.process == *self && !stat.zombie)
    }

    pub(super) fn uptime(&self) -> Option<Duration> {
        let now: f64 = fs::read_to_string("/proc/uptime")
            .ok()?
            .split(' ')
            .next()?
            .parse()
            .ok()?;
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a fraction of a second does not matter"
        )]
        let then = self.started as f64 / ticks as f64;
        Duration::try_from_secs_f64(now - then).ok()
    }

    /// Ends all processes in the PID namespace that this process created: with SIGTERM, and with SIGKILL after `patience`.
    pub(super) async fn end(&self, patience: Duration) -> End {
        if !self.is_alive() {
            return End::Absent;
        }
        let inits = self.children();
        for init in &inits {
            init.signal(Signal::SIGTERM);
        }
        if !inits.is_empty() && self.wait_for_exit(patience).await {
            return End::Stopped;
        }
        // The kernel kills a whole PID namespace when its first process exits.
        for init in self.children() {
            init.signal(Signal::SIGKILL);
        }
        if !self.wait_for_exit(Duration::from_secs(1)).await {
            self.signal(Signal::SIGKILL);
            self.wait_for_exit(Duration::from_secs(10)).await;
        }
        End::Killed
    }

    async fn wait_for_exit(&self, patience: Duration) -> bool {
        let begun = Instant::now();
        while self.is_alive() {
            if begun.elapsed() > patience {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        true
    }

    fn children(&self) -> Vec<Self> {
        all()
            .filter(|stat| stat.parent == self.pid && self.is_alive())
            .map(|stat| stat.process)
            .collect()
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // The process may exit by itself at this moment.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

fn all() -> impl Iterator<Item = Stat> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| stat(entry.file_name().to_str()?.parse().ok()?))
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(line: &str) -> Option<Stat> {
    // The second field is the program's name in parentheses, which may itself contain parentheses and spaces.
    let (front, back) = line.rsplit_once(')')?;
    let pid = front.split(' ').next()?.parse().ok()?;
    let fields: Vec<&str> = back.split_whitespace().collect();
    Some(Stat {
        process: Process {
            pid,
            started: fields.get(19)?.parse().ok()?,
        },
        parent: fields.get(1)?.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X"),
    })
}

fn parse_record(text: &str, boot: &str) -> Option<Process> {
    let (stat, recorded_boot) = text.split_once('\n')?;
    (recorded_boot.trim() == boot).then(|| parse_stat(stat).map(|stat| stat.process))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "42 (sh) x) S 7 42 42 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 98765 1000 2 3 4";

    #[test]
    fn parses_stat_with_parentheses_in_the_program_name() {
        let stat = parse_stat(LINE).expect("a line of stat");
        assert_eq!(
            stat.process,
            Process {
                pid: 42,
                started: 98765
            }
        );
        assert_eq!((stat.parent, stat.zombie), (7, false));
        assert!(parse_stat("").is_none() && parse_stat("1 (x) S").is_none());
    }

    #[test]
    fn ignores_a_record_from_before_a_reboot() {
        let record = format!("{LINE}\nthis-boot\n");
        assert!(parse_record(&record, "this-boot").is_some());
        assert!(parse_record(&record, "another-boot").is_none());
        assert!(parse_record(LINE, "this-boot").is_none());
    }

    #[tokio::test]
    async fn leaves_a_process_with_another_start_time_alone() {
        let own = stat(i32::try_from(std::process::id()).expect("a pid")).expect("this process");
        assert!(own.process.is_alive());
        let other = Process {
            started: own.process.started + 1,
            ..own.process
        };
        assert!(!other.is_alive());
        assert_eq!(other.end(Duration::ZERO).await, End::Absent);
    }
}
