//! Limits how many of the steps in which cargo compiles run at the same time, by the memory and the processors of the engine's
//! machine.

use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, PoisonError};

use bytesize::ByteSize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::step::Step;

/// What each compiler that cargo runs at the same time may need, in bytes.
const PER_JOB: u64 = 2 * bytesize::GIB;

/// Up to so many processors, compilers of several cargos hinder one another: on two, a cold test, lint and build of a service with
/// 300 dependencies took 334 s at once, and 290 s one after another. On more, a single cargo leaves some idle.
const FEW_CPUS: u64 = 2;

/// The machine that an engine runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The number of compilers that cargo runs at the same time by default.
    pub cpus: u64,
    /// The memory in bytes.
    pub memory: u64,
}

impl Machine {
    /// This machine, or the part of it that this process may use; `None` if it is not Linux.
    #[must_use]
    pub fn here() -> Option<Self> {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let total = total_memory(&read("/proc/meminfo")?)?;
        // The file has no number if there is no limit.
        let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
        let cpus = std::thread::available_parallelism().ok()?.get();
        Some(Self {
            cpus: u64::try_from(cpus).ok()?,
            memory: limit.unwrap_or(total).min(total),
        })
    }
}

/// The total memory in bytes, according to `/proc/meminfo`.
fn total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|it| it.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(bytesize::KIB)
}

/// The turns of the steps in which cargo compiles.
#[derive(Debug)]
pub struct Turns {
    /// `None` if all of them run at once.
    slots: Option<Arc<Semaphore>>,
    /// Whether a turn ends as soon as everything is compiled, because it is the processors that are short and not the memory.
    until_compiled: bool,
    description: String,
}

/// The turn of a step, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    until_compiled: bool,
}

impl Turn {
    /// Ends the turn if nothing but compilers must wait for it: tests may wait themselves, and leave processors idle.
    pub fn compiled(&self) {
        if self.until_compiled {
            drop(
                self.permit
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take(),
            );
        }
    }
}

impl Turns {
    /// The turns of `steps`. Each of the two defaults to that of the machine; if it is not known either, all run at once.
    /// `is_cold` returns whether a step must compile all dependencies.
    #[must_use]
    pub fn new(
        steps: &[Step],
        jobs: Option<NonZeroU16>,
        memory: Option<ByteSize>,
        machine: Option<Machine>,
        is_cold: impl Fn(Step) -> bool,
    ) -> Self {
        let mut cargos: Vec<_> = steps.iter().filter(|it| it.definition().compiles).collect();
        // Gates run after lint.
        if cargos.contains(&&Step::Lint) {
            cargos.retain(|step| **step != Step::Custom);
        }
        let jobs = jobs.map(|it| u64::from(it.get()));
        let (Some(jobs), Some(memory)) = (
            jobs.or(machine.map(|it| it.cpus)),
            memory.map(|it| it.as_u64()).or(machine.map(|it| it.memory)),
        ) else {
            return Self {
                slots: None,
                until_compiled: false,
                description: "unknown, because the engine is not on this machine: all steps run at the same time (see `memory` in ci.toml)"
                    .to_owned(),
            };
        };
        let slots = slots(memory, jobs);
        let each = if jobs == 1 {
            "1 compiler".to_owned()
        } else {
            format!("{jobs} compilers")
        };
        let memory = ByteSize::b(memory);
        if cargos.len() <= slots {
            let names: Vec<_> = cargos.iter().map(|step| step.name()).collect();
            let has_few = machine.is_some_and(|it| it.cpus <= FEW_CPUS);
            let cold = cargos.iter().filter(|step| is_cold(***step)).count();
            return Self {
                slots: (has_few && cold > 1).then(|| Arc::new(Semaphore::new(1))),
                until_compiled: true,
                description: format!(
                    "{memory} for cargos with {each} each: {} run at the same time",
                    names.join(", ")
                ),
            };
        }
        Self {
            slots: Some(Arc::new(Semaphore::new(slots))),
            until_compiled: false,
            description: format!(
                "{memory} of memory are enough for {slots} of {} cargos with {each} each: steps take turns (see `jobs` and `memory` in ci.toml)",
                cargos.len()
            ),
        }
    }

    /// Says whether steps take turns, and why.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Says that steps take turns, if they do.
    #[must_use]
    pub fn notice(&self) -> Option<&str> {
        self.slots.as_ref()?;
        Some(if self.until_compiled {
            "the dependencies must be compiled with few processors: steps take turns"
        } else {
            self.description()
        })
    }

    /// Waits for the turn of `step`, which lasts as long as the returned value. A step in which nothing is compiled does not wait.
    pub async fn take(&self, step: Step) -> Option<Arc<Turn>> {
        let slots = Arc::clone(self.slots.as_ref()?);
        if !step.definition().compiles {
            return None;
        }
        // It is never closed.
        let permit = slots.acquire_owned().await.ok();
        Some(Arc::new(Turn {
            permit: Mutex::new(permit),
            until_compiled: self.until_compiled,
        }))
    }
}

/// How many cargos with so many compilers fit into the memory: at least one. A machine of 16 GB has a little less.
fn slots(memory: u64, jobs: u64) -> usize {
    let each = PER_JOB.saturating_mul(jobs.max(1));
    let slots = memory.saturating_add(each / 2) / each;
    usize::try_from(slots).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(jobs: Option<u16>, memory: Option<u64>, machine: Option<Machine>) -> Option<usize> {
        let turns = Turns::new(
            Step::all(),
            jobs.and_then(NonZeroU16::new),
            memory.map(ByteSize::gib),
            machine,
            |_| false,
        );
        assert_eq!(turns.notice().is_some(), turns.slots.is_some());
        assert_eq!(
            turns.description().contains("at the same time"),
            turns.slots.is_none()
        );
        turns.slots.map(|slots| slots.available_permits())
    }

    #[test]
    fn steps_take_turns_if_memory_is_short() {
        let machine = |cpus, gib| {
            Some(Machine {
                cpus,
                memory: gib * bytesize::GIB - 400 * bytesize::MIB,
            })
        };
        assert_eq!(turns(None, None, machine(2, 4)), Some(1));
        assert_eq!(turns(None, None, machine(4, 16)), Some(2));
        assert_eq!(turns(None, None, machine(2, 16)), None);
        assert_eq!(turns(None, None, machine(64, 2)), Some(1));
        // The settings win.
        assert_eq!(turns(Some(1), None, machine(4, 8)), None);
        assert_eq!(turns(None, Some(16), machine(4, 2)), Some(2));
        assert_eq!(turns(Some(2), Some(8), None), Some(2));
        // Nothing is known about an engine elsewhere.
        assert_eq!(turns(None, None, None), None);
        assert_eq!(turns(Some(2), None, None), None);
    }

    #[test]
    fn a_single_step_takes_no_turns() {
        let small = Some(Machine {
            cpus: 8,
            memory: bytesize::GIB,
        });
        let single = Turns::new(&[Step::Fmt, Step::Test], None, None, small, |_| true);
        assert!(single.slots.is_none());
    }

    #[tokio::test]
    async fn with_few_processors_cold_steps_compile_one_after_another() {
        let cold = |cpus, is_cold: fn(Step) -> bool| {
            let memory = 64 * bytesize::GIB;
            let machine = Some(Machine { cpus, memory });
            Turns::new(Step::all(), None, None, machine, is_cold)
        };
        assert!(cold(4, |_| true).notice().is_none());
        assert!(cold(2, |step| step == Step::Test).notice().is_none());
        let turns = cold(2, |_| true);
        let notice = turns.notice().expect("a notice");
        assert!(notice.contains("few processors"), "{notice}");
        assert!(turns.description().contains("at the same time"));
        let first = turns.take(Step::Test).await.expect("a turn");
        let short = std::time::Duration::from_millis(10);
        let waiting = tokio::time::timeout(short, turns.take(Step::Lint));
        assert!(waiting.await.is_err());
        // The tests run while the next step compiles.
        first.compiled();
        assert!(turns.take(Step::Lint).await.is_some());
    }

    #[tokio::test]
    async fn only_steps_that_compile_wait() {
        let turns = Turns::new(
            Step::all(),
            NonZeroU16::new(1),
            Some(ByteSize::gib(2)),
            None,
            |_| false,
        );
        assert!(
            turns
                .notice()
                .unwrap()
                .contains("1 of 3 cargos with 1 compiler each")
        );
        let first = turns.take(Step::Test).await.expect("a turn");
        assert!(turns.take(Step::Fmt).await.is_none());
        // Its tests may need as much memory as its compilers.
        first.compiled();
        let waiting =
            tokio::time::timeout(std::time::Duration::from_millis(10), turns.take(Step::Lint));
        assert!(waiting.await.is_err());
        drop(first);
        assert!(turns.take(Step::Lint).await.is_some());
    }

    #[test]
    fn reads_the_memory_of_linux() {
        let text = "MemTotal:       16384256 kB\nMemFree:          123 kB\n";
        assert_eq!(total_memory(text), Some(16_384_256 * 1024));
        assert_eq!(total_memory("nothing"), None);
    }
}
