//! Executes and records the steps of a run.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dagger_sdk::DaggerConn;
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
    outputs: Mutex<Vec<EndedOutput>>,
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
    /// is recorded as skipped.
    pub async fn step<I, T, F>(&self, step: Step, input: Option<I>, work: F) -> Option<T>
    where
        F: AsyncFnOnce(&StepContext<'_, K>, I) -> Result<T, Failure>,
    {
        let nothing = async |_: Option<&T>| ();
        self.step_then(step, input, work, nothing).await.0
    }

    /// As [`step`](Self::step), followed by `next`, which gets the step's result. The engine reports on the step, and the report is
    /// shown, while `next` runs.
    pub async fn step_then<I, T, R, F, N>(
        &self,
        step: Step,
        input: Option<I>,
        work: F,
        next: N,
    ) -> (Option<T>, R)
    where
        F: AsyncFnOnce(&StepContext<'_, K>, I) -> Result<T, Failure>,
        N: AsyncFnOnce(Option<&T>) -> R,
    {
        if !self.selected.contains(&step) {
            return (None, next(None).await);
        }
        let (Some(input), None) = (input, self.unmet(step)) else {
            let why = self.unmet(step).unwrap_or_else(|| "nothing to do".into());
            self.record(Record::skipped(step, why));
            return (None, next(None).await);
        };
        // Not part of the step's time, which its limit counts.
        let turn = async { Ok(self.context.turns.take(step).await) };
        let turn = self.context.stopper.unless_stopped(turn).await;
        let output = StepOutput::new(step, &self.context.settings.folder, &self.context.reporter);
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
        // What needs this step looks at its record.
        self.record(record.clone());
        let (after, ()) = tokio::join!(
            next(value.as_ref()),
            self.close(record, context, failure.as_ref(), &span),
        );
        (value, after)
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

    /// Completes the record of a step with what the engine reports, and shows it.
    async fn close(
        &self,
        mut record: Record,
        context: StepContext<'_, K>,
        failure: Option<&Failure>,
        span: &Span,
    ) {
        let StepContext {
            step,
            trace,
            output,
            ..
        } = context;
        let telemetry = &self.context.telemetry;
        let cacheable = step.definition().cacheable;
        // The engine reports up to a tenth of a second after it answers. Where nothing depends on it, `finish` gets the rest.
        if cacheable || failure.is_some() {
            telemetry
                .settle(trace, SETTLE)
                .instrument(info_span!("settle", track = step.name()))
                .await;
        }
        output.fill(&lock(&context.fetched));
        if let Some(stored) = lock(&context.stored).take() {
            output.complete(&stored);
        }
        let reused = lock(&context.reused).take();
        if let Some(passed) = &reused {
            output.fill(&passed.log);
        }
        let found = output.finish();
        if record.status == Status::Passed {
            record.cached = cacheable && (reused.is_some() || telemetry.cached(trace));
            record.reused = reused;
        }
        if record.status == Status::Failed {
            record.causes = std::mem::take(&mut *lock(&context.causes));
            record.causes.extend(found.causes);
            if record.causes.is_empty() {
                record.causes.extend(failure.and_then(last_lines));
            }
        }
        record.parts = found.parts;
        record.digest = lock(&context.digest).take();
        record.findings = std::mem::take(&mut *lock(&context.findings));
        record.test_counts = (!found.tests.is_empty()).then(|| TestCounts::of(&found.tests));
        record.tests = found.tests;
        let inputs = lock(&context.inputs).take();
        if !record.cached {
            let cache = self.context.cache.as_ref();
            let kept = || cache.and_then(|cache| cache.last_pass(step));
            record.why = Some(self.context.history.why(step, inputs.as_ref(), kept));
        }
        span.record("cached", record.cached);
        if let Some(error) = &record.error {
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", error);
        }
        let log = output.log();
        record.log = self.context.reporter.write_log(step, &log);
        self.context.reporter.ended(&record, failure, &log);
        self.record(record);
        lock(&self.outputs).push(EndedOutput {
            step,
            trace,
            output,
            written: log.len(),
            inputs,
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
        let output = StepOutput::new(step, &self.context.settings.folder, &self.context.reporter);
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
            fetched: Mutex::default(),
            stored: Mutex::default(),
            digest: Mutex::default(),
            causes: Mutex::default(),
            findings: Mutex::default(),
            inputs: Mutex::default(),
            reused: Mutex::default(),
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
                record.cached = step.definition().cacheable
                    && record.status == Status::Passed
                    && (record.reused.is_some() || self.context.telemetry.cached(trace));
                if record.cached {
                    record.why = None;
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
        if let Err(failure) = self.context.history.save(passes) {
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
    /// The output of commands that the engine may not have reported.
    fetched: Mutex<String>,
    /// The output of the step's only command, as the engine has stored it.
    stored: Mutex<Option<String>>,
    digest: Mutex<Option<String>>,
    causes: Mutex<Vec<Cause>>,
    findings: Mutex<Vec<Finding>>,
    inputs: Mutex<Option<Inputs>>,
    reused: Mutex<Option<PriorPass>>,
}

impl<K: Kind> StepContext<'_, K> {
    /// The client whose queries are attributed to this step.
    #[must_use]
    pub fn client(&self) -> &DaggerConn {
        &self.client
    }

    /// Records the digest of the image that this step processed.
    pub fn set_digest(&self, digest: &str) {
        *lock(&self.digest) = Some(digest.to_owned());
    }

    /// Records the output of a command of this step, which the engine does not report if the result came from its cache.
    pub fn add_output(&self, output: &str) {
        lock(&self.fetched).push_str(output);
    }

    /// Records a cause of the step's failure that its output does not name.
    pub fn add_cause(&self, cause: Cause) {
        lock(&self.causes).push(cause);
    }

    /// Records what the step's result depends on, before its command runs.
    pub fn set_inputs(&self, inputs: Inputs) {
        let engine = self.run.engine.clone();
        *lock(&self.inputs) = Some(Inputs { engine, ..inputs });
    }

    /// Records all vulnerabilities that the step found.
    pub fn set_findings(&self, findings: Vec<Finding>) {
        *lock(&self.findings) = findings;
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
        *lock(&self.stored) = Some(stored);
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
        *lock(&self.reused) = Some(passed);
        Some(output)
    }

    /// Caches this step's pass and its output files. The cache drops them if the step fails afterwards.
    ///
    /// # Errors
    /// When the output files cannot be copied.
    pub fn record_pass(&self, key: Key, output: &Path) -> Result<(), Failure> {
        match &self.run.cache {
            Some(cache) => {
                let inputs = lock(&self.inputs).clone().unwrap_or_default();
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
