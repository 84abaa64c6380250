//! One run: how a step is started, watched, ended and recorded.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dagger_sdk::DaggerConn;

use super::context::RunContext;
use super::stopper::Stop;
use crate::engine::telemetry::{Listener, TraceContext};
use crate::model::record::{CacheReport, Passed, Record, Status, StepPart};
use crate::model::step::Step;
use crate::runner_cache::key::Key;
use crate::runner_cache::place::Place;
use crate::trust::kind::Kind;
use common::failure::{ExitCode, Failure};
use common::progress::Progress as _;

/// A run: the steps that are wanted, and what has become of them.
pub struct Run<K: Kind> {
    /// What all of them share.
    pub context: RunContext<K>,
    wanted: Vec<Step>,
    records: Mutex<BTreeMap<Step, Record>>,
    traces: Mutex<Vec<(Step, TraceContext)>>,
}

impl<K: Kind> Run<K> {
    /// A run of `wanted` steps.
    #[must_use]
    pub fn new(context: RunContext<K>, wanted: Vec<Step>) -> Self {
        Self {
            context,
            wanted,
            records: Mutex::default(),
            traces: Mutex::default(),
        }
    }

    /// The volumes in which this run's steps have worked.
    #[must_use]
    pub fn worked_in(&self) -> Vec<Place> {
        let records = lock(&self.records);
        let worked = |step: Step| {
            records
                .get(&step)
                .is_some_and(|it| it.start.is_some() && it.reused.is_none())
        };
        let mut places = self.context.places();
        places.retain(|place| match place {
            Place::Work(step) => worked(*step),
            Place::Cargo => {
                let mut compile = Step::all().iter();
                compile.any(|step| step.definition().compiles && worked(*step))
            }
            // A stand-in for the database is this machine's, not the engine's.
            Place::Database => worked(Step::Scan) && self.context.toolbox.stand_ins().is_none(),
        });
        places
    }

    /// Runs one step: unless it is not wanted, what it needs has not passed, or the run was stopped. Without `input` there is
    /// nothing that it could work on.
    pub async fn step<I, T, F>(&self, step: Step, input: Option<I>, work: F) -> Option<T>
    where
        F: AsyncFnOnce(&StepContext<'_, K>, I) -> Result<T, Failure>,
    {
        if !self.wanted.contains(&step) {
            return None;
        }
        let (Some(input), None) = (input, self.unmet(step)) else {
            let why = self
                .unmet(step)
                .unwrap_or_else(|| "there is nothing for it to do".into());
            self.record(Record::skipped(step, why));
            return None;
        };
        let listener: Option<Listener> = (self.context.settings.verbose > 0).then(|| {
            let reporter = Arc::clone(&self.context.reporter);
            Arc::new(move |line: &str| reporter.line_of(step, line)) as Listener
        });
        let trace = self.context.telemetry.trace(listener);
        let context = StepContext {
            run: &self.context,
            step,
            trace,
            client: self.context.connection.client(trace),
            saw: Mutex::default(),
            parts: Mutex::default(),
            reused: Mutex::default(),
        };
        let start = jiff::Timestamp::now();
        let begun = Instant::now();
        self.context.reporter.started(step);
        let limited = async {
            // In a box: all steps' futures together are too large for a stack.
            let work = Box::pin(work(&context, input));
            match self.context.settings.limits.get(&step) {
                None => work.await,
                Some(limit) => tokio::time::timeout(*limit, work)
                    .await
                    .unwrap_or_else(|_| Err(too_slow(step, *limit))),
            }
        };
        let result = self.context.stopper.unless_stopped(limited).await;
        let duration = begun.elapsed();
        // What the engine reports comes a moment after its answer.
        self.context
            .telemetry
            .settle(Duration::from_millis(200))
            .await;
        let reused = lock(&context.reused).take();
        let mut record = Record {
            name: step,
            status: Status::Passed,
            start: Some(start),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            cached: step.definition().cacheable
                && (reused.is_some() || self.context.telemetry.cached(trace)),
            reused,
            parts: std::mem::take(&mut *lock(&context.parts)),
            log: None,
            digest: lock(&context.saw).take(),
            error: None,
            hint: None,
            code: None,
        };
        let (value, failure) = match result {
            Ok(value) => (Some(value), None),
            Err(failure) => {
                // The run's limit says nothing about the step that it found at work; the step's own does.
                let cut_off = self.context.stopper.reason() == Some(Stop::TimeLimit);
                record.status = match failure.code {
                    ExitCode::Cancelled => Status::Cancelled,
                    ExitCode::TimedOut if cut_off => Status::Cancelled,
                    _ => Status::Failed,
                };
                record.cached = false;
                record.reused = None;
                record.error = Some(failure.to_string());
                record.hint.clone_from(&failure.hint);
                // What --fail-fast ends did not fail by itself.
                let by_fail_fast = record.status == Status::Cancelled
                    && self.context.stopper.reason() == Some(Stop::FailFast);
                record.code = (!by_fail_fast).then_some(failure.code);
                if self.context.settings.fail_fast {
                    self.context.stopper.stop(Stop::FailFast);
                }
                (None, Some(failure))
            }
        };
        self.context.reporter.ended(&record, failure.as_ref());
        self.record(record);
        lock(&self.traces).push((step, trace));
        value
    }

    fn unmet(&self, step: Step) -> Option<String> {
        let records = lock(&self.records);
        let missing: Vec<_> = step
            .needs()
            .iter()
            .filter(|need| self.context.settings.has(**need))
            .filter(|need| {
                records
                    .get(need)
                    .is_none_or(|record| record.status != Status::Passed)
            })
            .map(|need| need.name())
            .collect();
        (!missing.is_empty()).then(|| format!("it needs {}", missing.join(", ")))
    }

    fn record(&self, record: Record) {
        lock(&self.records).insert(record.name, record);
    }

    /// Records that a wanted step has nothing to do, and why.
    pub fn skip(&self, step: Step, why: &str) {
        if self.wanted.contains(&step) {
            self.record(Record::skipped(step, why.to_owned()));
        }
    }

    /// Writes the logs and the caches, and returns the records. The session has been closed: all that the engine has to report has
    /// come.
    pub async fn finish(self) -> (Vec<Record>, Option<CacheReport>) {
        let mut records = self
            .records
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let traces = self
            .traces
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut logs = BTreeMap::new();
        for (step, trace) in traces {
            if let Some(record) = records.get_mut(&step) {
                let log = match &record.reused {
                    Some(passed) => passed.log.clone(),
                    None => self.context.telemetry.log(trace),
                };
                record.log = self.context.reporter.write_log(step, &log);
                record.cached = step.definition().cacheable
                    && record.status == Status::Passed
                    && (record.reused.is_some() || self.context.telemetry.cached(trace));
                logs.insert(step, self.context.reporter.redact(&log));
            }
        }
        let cache = match self.context.cache {
            None => None,
            Some(cache) => {
                let log = |step| logs.get(&step).cloned().unwrap_or_default();
                Some(cache.close(&records, log).await)
            }
        };
        (records.into_values().collect(), cache)
    }
}

fn too_slow(step: Step, limit: Duration) -> Failure {
    Failure::new(
        ExitCode::TimedOut,
        format!("it did not end within its limit of {limit:?}"),
    )
    .hint(format!(
        "limits.{step} in ci.toml is the limit of this step."
    ))
}

/// A step that is running.
pub struct StepContext<'a, K: Kind> {
    /// Its run.
    pub run: &'a RunContext<K>,
    /// Which it is.
    pub step: Step,
    trace: TraceContext,
    client: DaggerConn,
    saw: Mutex<Option<String>>,
    parts: Mutex<Vec<StepPart>>,
    reused: Mutex<Option<Passed>>,
}

impl<K: Kind> StepContext<'_, K> {
    /// The client whose work the engine reports as this step's.
    #[must_use]
    pub fn client(&self) -> &DaggerConn {
        &self.client
    }

    /// The image that this step saw, by its digest.
    pub fn saw(&self, digest: &str) {
        *lock(&self.saw) = Some(digest.to_owned());
    }

    /// Notes what became of a part of this step.
    pub fn part(&self, part: StepPart) {
        lock(&self.parts).push(part);
    }

    /// What the same work has left when it passed before, where this run's cache remembers that. Without a key nobody can know.
    pub async fn passed_before(&self, key: Option<&Key>) -> Option<tempfile::TempDir> {
        let (passed, left) = self.run.cache.as_ref()?.passed_before(key?).await?;
        *lock(&self.reused) = Some(passed);
        Some(left)
    }

    /// Remembers that this step's work passes, unless it fails yet, and what it has left.
    ///
    /// # Errors
    /// When what it has left cannot be copied.
    pub fn passes(&self, key: Key, left: &Path) -> Result<(), Failure> {
        match &self.run.cache {
            Some(cache) => cache.passes(key, left),
            None => Ok(()),
        }
    }

    /// Tells the user something about this step's work, now.
    pub fn notice(&self, text: &str) {
        self.run.reporter.notice(text);
    }

    /// What the engine says of the end of a service's command, once it has ended: nothing where it ended well.
    #[must_use]
    pub fn ended(&self, command: &str) -> Option<String> {
        self.run.telemetry.ended(self.trace, command)
    }

    /// What the step's containers have written up to now.
    #[must_use]
    pub fn log(&self) -> String {
        self.run.telemetry.log(self.trace)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
