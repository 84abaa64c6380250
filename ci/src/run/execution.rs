//! Executes and records the steps of a run.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use dagger_sdk::DaggerConn;
use tokio::sync::Notify;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use super::context::RunContext;
use super::step_output::StepOutput;
use super::stopper::Stop;
use crate::engine::telemetry::TraceContext;
use crate::model::cause::{Cause, CauseKind, TestCounts};
use crate::model::finding::Finding;
use crate::model::inputs::{Inputs, LastPass};
use crate::model::record::{CacheReport, PriorPass, Record, Status};
use crate::model::step::Step;
use crate::runner_cache::key::Key;
use crate::runner_cache::place::Place;
use crate::trust::kind::Kind;
use common::failure::{ExitCode, Failure};
use common::progress::Progress as _;

/// A run: the selected steps and their results.
pub struct Run<K: Kind> {
    /// The context that all steps share.
    pub context: RunContext<K>,
    selected: Vec<Step>,
    records: Mutex<BTreeMap<Step, Record>>,
    /// The steps that have ended and are not shown yet.
    ended: Mutex<Vec<Ended>>,
    /// Notified when a step has ended.
    step_ended: Notify,
    outputs: Mutex<Vec<EndedOutput>>,
}

/// A step that has ended, until the engine has reported everything about it.
struct Ended {
    record: Record,
    failure: Option<Failure>,
    trace: TraceContext,
    output: Arc<StepOutput>,
    notes: Notes,
    span: Span,
    /// When it is shown even if reports are missing.
    by: tokio::time::Instant,
}

/// The output of a step that has ended. The last reports of the engine may still add to it.
struct EndedOutput {
    step: Step,
    trace: TraceContext,
    output: Arc<StepOutput>,
    /// The length of the log that was written when the step ended.
    written: usize,
    inputs: Option<Inputs>,
}

/// How long the engine's reports about answered queries may take.
const SETTLE: Duration = Duration::from_secs(1);
/// The number of lines that are shown of the output of a failure without a more specific cause.
const TAIL: usize = 12;

impl<K: Kind> Run<K> {
    /// Creates a run of the `selected` steps.
    #[must_use]
    pub fn new(context: RunContext<K>, selected: Vec<Step>) -> Self {
        Self {
            context,
            selected,
            records: Mutex::default(),
            ended: Mutex::default(),
            step_ended: Notify::new(),
            outputs: Mutex::default(),
        }
    }

    /// The cache volumes that the steps of this run used.
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
            Place::Cargo => Step::compiling().any(worked),
            // A stand-in for the database is on this machine, not in a volume.
            Place::Database => worked(Step::Scan) && self.context.toolbox.stand_ins().is_none(),
        });
        places
    }

    /// Runs a step, if it is selected, the steps that it needs have passed and the run is not stopped. Without `input`, the step
    /// is recorded as skipped. [`show_ended`](Self::show_ended) shows the result.
    pub async fn step<I, T, F>(&self, step: Step, input: Option<I>, work: F) -> Option<T>
    where
        F: AsyncFnOnce(&StepContext<'_, K>, I) -> Result<T, Failure>,
    {
        if !self.selected.contains(&step) {
            return None;
        }
        let (Some(input), None) = (input, self.unmet(step)) else {
            let why = self.unmet(step).unwrap_or_else(|| "nothing to do".into());
            self.record(Record::skipped(step, why));
            return None;
        };
        // Not part of the step's time, which its limit counts.
        let turn = async { Ok(self.context.turns.take(step).await) };
        let turn = self.context.stopper.unless_stopped(turn).await;
        let held = match &turn {
            Ok(Some(turn)) => Arc::downgrade(turn),
            _ => Weak::new(),
        };
        let folder = &self.context.settings.folder;
        let output = StepOutput::new(step, folder, &self.context.reporter, held);
        let span = info_span!(
            "step",
            track = step.name(),
            otel.name = step.name(),
            otel.status_code = Empty,
            otel.status_description = Empty,
            cached = Empty,
        );
        let telemetry = &self.context.telemetry;
        let listener = Some(output.listener());
        let trace = span.in_scope(|| telemetry.trace(step.name(), listener));
        let context = self.context_of(step, trace, output);
        let mut record = Record {
            start: Some(jiff::Timestamp::now()),
            ..Record::new(step)
        };
        let begun = Instant::now();
        self.context.reporter.started(step);
        let limited = async {
            // Boxed, because the futures of all steps together are too large for the stack.
            let work = Box::pin(work(&context, input));
            match self.context.settings.limits.get(&step) {
                None => work.await,
                Some(limit) => tokio::time::timeout(*limit, work)
                    .await
                    .unwrap_or_else(|_| Err(limit_exceeded(step, *limit))),
            }
        };
        let watched = async {
            tokio::select! {
                result = limited => result,
                never = self.report_when_stuck(&context) => match never {},
            }
        }
        .instrument(span.clone());
        let in_turn = async {
            let _turn = turn?;
            watched.await
        };
        let result = self.context.stopper.unless_stopped(in_turn).await;
        record.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (value, failure) = match result {
            Ok(value) => (Some(value), None),
            Err(failure) => {
                self.fail(&mut record, &failure);
                (None, Some(failure))
            }
        };
        let StepContext { output, notes, .. } = context;
        let mut notes = notes.into_inner().unwrap_or_else(PoisonError::into_inner);
        record.reused = notes.reused.take();
        // What needs this step looks at its record.
        self.record(record.clone());
        lock(&self.ended).push(Ended {
            record,
            failure,
            trace,
            output,
            notes,
            span,
            by: tokio::time::Instant::now() + SETTLE,
        });
        self.step_ended.notify_one();
        value
    }

    fn fail(&self, record: &mut Record, failure: &Failure) {
        let reason = self.context.stopper.reason();
        // The time limit of the run cancels a step, whereas the step's own limit fails it.
        record.status = match failure.code {
            ExitCode::Cancelled => Status::Cancelled,
            ExitCode::TimedOut if reason == Some(Stop::TimeLimit) => Status::Cancelled,
            _ => Status::Failed,
        };
        record.error = Some(failure.to_string());
        record.hint.clone_from(&failure.hint);
        // A step that --fail-fast cancels did not fail by itself.
        let by_fail_fast = record.status == Status::Cancelled && reason == Some(Stop::FailFast);
        record.code = (!by_fail_fast).then_some(failure.code);
        if self.context.settings.fail_fast {
            self.context.stopper.stop(Stop::FailFast);
        }
    }

    /// Shows each step that has ended, as soon as the engine has reported everything about it. Never returns.
    pub async fn show_ended(&self) -> Infallible {
        loop {
            let reports = self.context.telemetry.changed();
            self.show(|ended| self.is_reported(ended));
            let deadline = lock(&self.ended).iter().map(|ended| ended.by).min();
            let deadline = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.step_ended.notified() => (),
                () = reports => (),
                () = deadline => (),
            }
        }
    }

    /// Shows the failed steps that have ended. The others can wait until the session is closed, which brings the rest of the
    /// engine's reports.
    pub async fn show_failed(&self) {
        self.show_each(|ended| ended.failure.is_some()).await;
    }

    /// Shows all steps that have ended, before something else is printed.
    pub async fn show_all(&self) {
        self.show_each(|_| true).await;
    }

    async fn show_each(&self, wanted: impl Fn(&Ended) -> bool) {
        let next = || {
            let ended = lock(&self.ended);
            let next = ended.iter().find(|ended| wanted(ended));
            next.map(|it| (it.trace, it.by))
        };
        while let Some((trace, by)) = next() {
            let left = by.saturating_duration_since(tokio::time::Instant::now());
            self.context.telemetry.settle(trace, left).await;
            self.show(|ended| ended.trace == trace);
        }
    }

    /// Whether there is no reason to wait for reports about a step that has ended. The engine reports up to a tenth of a second after
    /// it answers. Where nothing depends on it, `finish` gets the rest.
    fn is_reported(&self, ended: &Ended) -> bool {
        let waits = ended.record.name.definition().cacheable || ended.failure.is_some();
        !waits
            || self.context.telemetry.is_settled(ended.trace)
            || ended.by <= tokio::time::Instant::now()
    }

    /// Completes the records of the steps that have ended and are `ready`, and shows them.
    fn show(&self, ready: impl Fn(&Ended) -> bool) {
        let (now, later) = std::mem::take(&mut *lock(&self.ended))
            .into_iter()
            .partition::<Vec<_>, _>(ready);
        lock(&self.ended).extend(later);
        for ended in now {
            self.complete(ended);
        }
    }

    /// Completes the record of a step with what the engine has reported, and shows it.
    fn complete(&self, ended: Ended) {
        let Ended {
            mut record,
            failure,
            trace,
            output,
            notes,
            span,
            ..
        } = ended;
        let step = record.name;
        output.fill(&notes.fetched);
        if let Some(stored) = notes.stored {
            output.complete(&stored);
        }
        if let Some(passed) = &record.reused {
            output.fill(&passed.log);
        }
        let found = output.finish();
        record.cached = is_cached(&self.context, &record, trace);
        if record.status == Status::Failed {
            record.causes = notes.causes;
            record.causes.extend(found.causes);
            if record.causes.is_empty() {
                record.causes.extend(failure.as_ref().and_then(last_lines));
            }
        }
        record.parts = found.parts;
        record.digest = notes.digest;
        record.findings = notes.findings;
        record.test_counts = (!found.tests.is_empty()).then(|| TestCounts::of(&found.tests));
        record.tests = found.tests;
        if !record.cached {
            let cache = self.context.cache.as_ref();
            let kept = || cache.and_then(|cache| cache.last_pass(step));
            record.why = Some(self.context.history.why(step, notes.inputs.as_ref(), kept));
        }
        span.record("cached", record.cached);
        if let Some(error) = &record.error {
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", error);
        }
        let log = output.log();
        record.log = self.context.reporter.write_log(step, &log);
        self.context.reporter.ended(&record, failure.as_ref(), &log);
        self.record(record);
        lock(&self.outputs).push(EndedOutput {
            step,
            trace,
            output,
            written: log.len(),
            inputs: notes.inputs,
        });
    }

    /// Reports, whenever it happens, that the step's command has neither printed anything nor used the CPU for the configured
    /// time. Never returns.
    async fn report_when_stuck(&self, context: &StepContext<'_, K>) -> Infallible {
        let limit = self.context.settings.stuck_after;
        let mut reported = false;
        loop {
            tokio::time::sleep((limit / 20).min(Duration::from_secs(10))).await;
            let stuck = context.output.idle() >= limit;
            if stuck && !reported {
                let last = context.output.last_line();
                self.context.reporter.stuck(context.step, limit, &last);
            }
            reported = stuck;
        }
    }

    /// The context of a step that is not part of the run: nothing is recorded or shown.
    #[must_use]
    pub fn detached(&self, step: Step) -> StepContext<'_, K> {
        let folder = &self.context.settings.folder;
        let output = StepOutput::new(step, folder, &self.context.reporter, Weak::new());
        self.context_of(
            step,
            self.context.telemetry.trace(step.name(), None),
            output,
        )
    }

    fn context_of(
        &self,
        step: Step,
        trace: TraceContext,
        output: Arc<StepOutput>,
    ) -> StepContext<'_, K> {
        StepContext {
            run: &self.context,
            step,
            trace,
            client: self.context.connection.client(trace),
            output,
            notes: Mutex::default(),
        }
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

    /// Records that a selected step is skipped, and why.
    pub fn skip(&self, step: Step, why: &str) {
        if self.selected.contains(&step) {
            self.record(Record::skipped(step, why.to_owned()));
        }
    }

    /// Writes the logs and the caches, and returns the records. Call this after the session is closed, when the engine has
    /// reported everything.
    pub async fn finish(self) -> (Vec<Record>, Option<CacheReport>) {
        self.show(|_| true);
        let mut records = self
            .records
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let outputs = self
            .outputs
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut logs = BTreeMap::new();
        let mut passes = Vec::new();
        let mut compiled = Vec::new();
        for EndedOutput {
            step,
            trace,
            output,
            written,
            inputs,
        } in outputs
        {
            if let Some(record) = records.get_mut(&step) {
                let log = output.log();
                if log.len() > written {
                    record.log = self.context.reporter.write_log(step, &log);
                }
                record.cached = is_cached(&self.context, record, trace);
                if record.cached {
                    record.why = None;
                }
                let has_ended = matches!(record.status, Status::Passed | Status::Failed);
                if has_ended && record.reused.is_none() && inputs.is_some() {
                    compiled.push(step);
                }
                if let (Status::Passed, Some(time), Some(inputs)) =
                    (record.status, record.start, inputs)
                {
                    let commit = self.context.commit.clone();
                    passes.push((step, LastPass { commit, time }, inputs));
                }
                logs.insert(step, self.context.reporter.redact(&log));
            }
        }
        if let Err(failure) = self.context.history.save(passes, compiled) {
            self.context.reporter.notice(&failure.to_string());
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

/// Whether a step has passed without running, as far as the engine has reported.
fn is_cached<K: Kind>(context: &RunContext<K>, record: &Record, trace: TraceContext) -> bool {
    record.status == Status::Passed
        && record.name.definition().cacheable
        && (record.reused.is_some() || context.telemetry.cached(trace))
}

/// The last lines of a failure's output as its cause.
fn last_lines(failure: &Failure) -> Option<Cause> {
    let output = failure.output.as_deref()?.trim_end();
    let lines: Vec<_> = output.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(TAIL)..)?;
    (!output.is_empty()).then(|| Cause {
        kind: CauseKind::Output,
        title: "last output".to_owned(),
        location: None,
        detail: tail.join("\n"),
    })
}

fn limit_exceeded(step: Step, limit: Duration) -> Failure {
    Failure::new(
        ExitCode::TimedOut,
        format!("it exceeded its time limit of {limit:?}"),
    )
    .hint(format!("Raise limits.{step} in ci.toml."))
}

/// A step that is running.
pub struct StepContext<'a, K: Kind> {
    /// The context of the run.
    pub run: &'a RunContext<K>,
    /// The step that is running.
    pub step: Step,
    trace: TraceContext,
    client: DaggerConn,
    output: Arc<StepOutput>,
    notes: Mutex<Notes>,
}

/// What a step has recorded about itself.
#[derive(Default)]
struct Notes {
    /// The output of commands that the engine may not have reported.
    fetched: String,
    /// The output of the step's only command, as the engine has stored it.
    stored: Option<String>,
    digest: Option<String>,
    causes: Vec<Cause>,
    findings: Vec<Finding>,
    inputs: Option<Inputs>,
    reused: Option<PriorPass>,
}

impl<K: Kind> StepContext<'_, K> {
    /// The client whose queries are attributed to this step.
    #[must_use]
    pub fn client(&self) -> &DaggerConn {
        &self.client
    }

    /// Records the digest of the image that this step processed.
    pub fn set_digest(&self, digest: &str) {
        lock(&self.notes).digest = Some(digest.to_owned());
    }

    /// Records the output of a command of this step, which the engine does not report if the result came from its cache.
    pub fn add_output(&self, output: &str) {
        lock(&self.notes).fetched.push_str(output);
    }

    /// Records a cause of the step's failure that its output does not name.
    pub fn add_cause(&self, cause: Cause) {
        lock(&self.notes).causes.push(cause);
    }

    /// Records what the step's result depends on, before its command runs.
    pub fn set_inputs(&self, inputs: Inputs) {
        let engine = self.run.engine.clone();
        lock(&self.notes).inputs = Some(Inputs { engine, ..inputs });
    }

    /// Records all vulnerabilities that the step found.
    pub fn set_findings(&self, findings: Vec<Finding>) {
        lock(&self.notes).findings = findings;
    }

    /// Runs `work`, and shows meanwhile that the step waits for `what`.
    pub async fn waiting<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        self.output.wait_for(Some(what));
        let done = work.await;
        self.output.wait_for(None);
        done
    }

    /// Shows that the step waits for its container, until the container prints something.
    pub fn waits_for_container(&self) {
        self.output.wait_for(Some("its container"));
    }

    /// Records the output of the step's only command as the engine has stored it.
    pub fn store_output(&self, stored: String) {
        lock(&self.notes).stored = Some(stored);
    }

    /// The log of a step with a single command, which has exited; `stored` is the command's output as the engine returned it.
    pub async fn complete_log(&self, stored: &str) -> String {
        self.run.telemetry.settle(self.trace, SETTLE).await;
        self.output.complete(stored);
        self.output.log()
    }

    /// Returns the output files of an earlier pass with the same key, if the cache contains one.
    pub async fn passed_before(&self, key: Option<&Key>) -> Option<tempfile::TempDir> {
        let (passed, output) = self.run.cache.as_ref()?.passed_before(key?).await?;
        lock(&self.notes).reused = Some(passed);
        Some(output)
    }

    /// Caches this step's pass and its output files. The cache drops them if the step fails afterwards.
    ///
    /// # Errors
    /// When the output files cannot be copied.
    pub fn record_pass(&self, key: Key, output: &Path) -> Result<(), Failure> {
        match &self.run.cache {
            Some(cache) => {
                let inputs = lock(&self.notes).inputs.clone().unwrap_or_default();
                cache.record_pass(key, &inputs, output)
            }
            None => Ok(()),
        }
    }

    /// Prints a notice immediately.
    pub fn notice(&self, text: &str) {
        self.run.reporter.notice(text);
    }

    /// The engine's status message for a service's command that has exited; empty after success, `None` while it runs.
    #[must_use]
    pub fn exit_message(&self, command: &str) -> Option<String> {
        self.run.telemetry.exit_message(self.trace, command)
    }

    /// The output of the step's services, which have stopped; waits up to `limit` for the rest of it.
    pub async fn log(&self, limit: Duration) -> String {
        self.run.telemetry.drain(self.trace, limit).await;
        self.output.log()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
