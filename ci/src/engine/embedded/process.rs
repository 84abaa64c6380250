//! Which process is the engine's: found again by number and start time, so that a number in other hands is left alone.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that cannot be mistaken for another one of the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// In clock ticks since the machine was started.
    started: u64,
}

/// How a process was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// There was none.
    Absent,
    /// It followed the polite request.
    Stopped,
    /// It had to be killed.
    Killed,
}

struct Stat {
    process: Process,
    parent: i32,
    zombie: bool,
}

impl Process {
    /// Reads what `start.sh` noted: a line of stat and the boot's id.
    pub(super) fn noted(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        parse_note(&text, boot.trim())
    }

    /// Whether this very process is still running.
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

    /// Ends the namespace that this process has made, and with it all that runs in there: by request, and after
    /// `patience` by force.
    pub(super) async fn end(&self, patience: Duration) -> End {
        if !self.is_alive() {
            return End::Absent;
        }
        let inits = self.children();
        for init in &inits {
            init.signal(Signal::SIGTERM);
        }
        if !inits.is_empty() && self.gone(patience).await {
            return End::Stopped;
        }
        // The kernel ends a PID namespace whole when its first process ends.
        for init in self.children() {
            init.signal(Signal::SIGKILL);
        }
        if !self.gone(Duration::from_secs(1)).await {
            self.signal(Signal::SIGKILL);
            self.gone(Duration::from_secs(10)).await;
        }
        End::Killed
    }

    async fn gone(&self, patience: Duration) -> bool {
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
            // It may end by itself at this moment, which is as good.
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
    // The name of the program comes second, in brackets, and may hold anything, brackets and blanks among it.
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

fn parse_note(text: &str, boot: &str) -> Option<Process> {
    let (stat, noted_boot) = text.split_once('\n')?;
    (noted_boot.trim() == boot).then(|| parse_stat(stat).map(|stat| stat.process))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "42 (sh) x) S 7 42 42 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 98765 1000 2 3 4";

    #[test]
    fn a_line_of_stat_is_read_whatever_the_program_is_called() {
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
    fn a_note_from_before_a_restart_of_the_machine_counts_for_nothing() {
        let note = format!("{LINE}\nthis-boot\n");
        assert!(parse_note(&note, "this-boot").is_some());
        assert!(parse_note(&note, "another-boot").is_none());
        assert!(parse_note(LINE, "this-boot").is_none());
    }

    #[tokio::test]
    async fn a_process_with_another_start_time_is_left_alone() {
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
