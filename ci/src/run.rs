//! One run: what all steps share, and how a step is started, watched, ended and recorded.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dagger_sdk::DaggerConn;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, CacheReport, Key, Passed, Place};
use crate::engine::{Listener, Session, Telemetry, TraceContext, unbroken};
use crate::evidence::Kind;
use crate::failure::{ExitCode, Failure};
use crate::narrator::Narrator as _;
use crate::oci::Platform;
use crate::pins;
use crate::report::Reporter;
use crate::settings::Settings;
use crate::step::{Record, Status, Step};
use crate::toolbox::Toolbox;

/// Why a run is being ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGINT or SIGTERM.
    Signal,
    /// The time limit.
    TimeLimit,
    /// `--fail-fast`, after the first failure.
    FailFast,
    /// The engine does not answer any more.
    EngineLost,
}

/// Ends a run before its end; the first reason counts.
#[derive(Clone, Debug, Default)]
pub struct Stopper {
    token: CancellationToken,
    reason: Arc<OnceLock<Stop>>,
}

impl Stopper {
    /// Asks everything to end.
    pub fn stop(&self, reason: Stop) {
        // A second reason comes too late.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// `work`, unless the run is stopped first.
    ///
    /// # Errors
    /// Those of `work`; or that it was cancelled (exit 130) or took too long (exit 124).
    pub async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.token
            .run_until_cancelled(unbroken(work))
            .await
            .unwrap_or_else(|| Err(self.failure()))
    }

    fn failure(&self) -> Failure {
        match self.reason.get() {
            Some(Stop::TimeLimit) => {
                Failure::new(ExitCode::TimedOut, "the time limit of the run was reached")
                    .hint("--timeout sets it; `ci doctor` tells what may be slow.")
            }
            Some(Stop::EngineLost) => {
                Failure::environment("the engine does not answer any more").hint(
                    "Where it is the embedded one, `ci engine down` ends it, and the next run starts it anew.",
                )
            }
            Some(Stop::FailFast) => {
                Failure::cancelled().hint("Another step failed first, and --fail-fast was given.")
            }
            _ => Failure::cancelled(),
        }
    }
}

/// For which platform the image is, and on which the engine runs.
#[derive(Clone, Debug)]
pub struct Platforms {
    /// The image's.
    pub image: Platform,
    /// The engine's.
    pub engine: Platform,
}

/// What a run works with.
pub struct Surroundings {
    /// The image's and the engine's.
    pub platforms: Platforms,
    /// What the engine reports.
    pub telemetry: Telemetry,
    /// The session with it.
    pub session: Session,
    /// Tells the user.
    pub reporter: Arc<Reporter>,
    /// Ends the run before its end.
    pub stopper: Stopper,
    /// The caches of a throw-away runner, where it has some.
    pub cache: Option<Cache>,
}

/// What all steps of a run share.
pub struct Run<K: Kind> {
    /// What the user said.
    pub settings: Settings,
    /// Unique to this run.
    pub id: String,
    /// The images that the steps run in.
    pub toolbox: Toolbox<K>,
    /// What the engine reports.
    pub telemetry: Telemetry,
    /// The image's.
    pub platform: Platform,
    /// The caches of a throw-away runner, where it has some.
    pub cache: Option<Cache>,
    engine_platform: Platform,
    toolchain: OnceCell<String>,
    reporter: Arc<Reporter>,
    session: Session,
    stopper: Stopper,
    wanted: Vec<Step>,
    records: Mutex<BTreeMap<Step, Record>>,
    traces: Mutex<Vec<(Step, TraceContext)>>,
}

impl<K: Kind> Run<K> {
    /// A run of `wanted` steps.
    #[must_use]
    pub fn new(
        settings: Settings,
        toolbox: Toolbox<K>,
        surroundings: Surroundings,
        wanted: Vec<Step>,
    ) -> Self {
        let Surroundings {
            platforms,
            telemetry,
            session,
            reporter,
            stopper,
            cache,
        } = surroundings;
        let id = format!(
            "{:x}-{}",
            jiff::Timestamp::now().as_nanosecond(),
            std::process::id()
        );
        Self {
            settings,
            id,
            toolbox,
            telemetry,
            platform: platforms.image,
            cache,
            engine_platform: platforms.engine,
            toolchain: OnceCell::new(),
            reporter,
            session,
            stopper,
            wanted,
            records: Mutex::default(),
            traces: Mutex::default(),
        }
    }

    /// The image's platform, where it is not the engine's own.
    #[must_use]
    pub fn foreign_platform(&self) -> Option<&Platform> {
        (self.platform != self.engine_platform).then_some(&self.platform)
    }

    /// Tells the user about preparations.
    #[must_use]
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// A client for work that is no step's.
    #[must_use]
    pub fn client(&self) -> DaggerConn {
        self.session.client(self.telemetry.trace(None))
    }

    /// The digest of what cargo works in: the toolchain's image, the distribution's packages beside it, the platform. What was made in
    /// another environment is never mixed with what is made in this one.
    ///
    /// # Errors
    /// When the toolchain cannot be had.
    pub async fn environment(&self, platform: Option<&Platform>) -> Result<String, Failure> {
        let digest = self.toolchain_digest().await?;
        let platform = platform.unwrap_or(&self.engine_platform);
        let packages = self.settings.packages.join(" ");
        let sum = Sha256::digest(format!("{digest}\n{packages}\n{platform}"));
        Ok(hex::encode(sum)[..16].to_owned())
    }

    /// The digest of the toolchain's image and the platform that it runs on, without the distribution's packages of one repository.
    ///
    /// # Errors
    /// When the toolchain image cannot be pulled, nor a stand-in for it be made.
    pub async fn toolchain_key(&self, platform: Option<&Platform>) -> Result<String, Failure> {
        let digest = self.toolchain_digest().await?;
        let platform = platform.unwrap_or(&self.engine_platform);
        let sum = Sha256::digest(format!("{digest}\n{platform}"));
        Ok(hex::encode(sum)[..16].to_owned())
    }

    async fn toolchain_digest(&self) -> Result<&String, Failure> {
        let digest = self
            .toolchain
            .get_or_try_init(|| async {
                let (_, digest) = self.toolbox.rust().await?.resolved(&self.client()).await?;
                Ok::<_, Failure>(digest)
            })
            .await?;
        Ok(digest)
    }

    /// What has to be the same for the content of a volume to be of use.
    ///
    /// # Errors
    /// When the toolchain cannot be had.
    pub async fn key_of(&self, place: Place) -> Result<String, Failure> {
        match place {
            // A build script's program runs on the platform that compiled it.
            Place::Work(Step::Build) => self.environment(self.foreign_platform()).await,
            Place::Work(_) => self.environment(None).await,
            // Downloads are what they are.
            Place::Cargo | Place::Database => Ok("any".to_owned()),
        }
    }

    /// The name of a cache volume. It says which runs share it: a pull request's must not reach what main publishes. Downloads are
    /// shared by all repositories.
    ///
    /// # Errors
    /// When the toolchain cannot be had.
    pub async fn volume_of(&self, place: Place) -> Result<String, Failure> {
        let domain = self.settings.event.domain();
        let name = match place {
            Place::Cargo => "cargo-home".to_owned(),
            Place::Database => "trivy".to_owned(),
            Place::Work(step) => {
                let key = self.key_of(place).await?;
                format!("{}/{step}-{}-{key}", self.settings.repository, pins::RUST)
            }
        };
        Ok(format!("infrastructure-lab-ci/{domain}/{name}"))
    }

    /// Brings what the caches of a throw-away runner have for `place` into the engine, where it has nothing yet.
    pub async fn bring(&self, place: Place) {
        if let Some(cache) = &self.cache {
            Box::pin(cache.bring(self, place)).await;
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
        let mut places = Place::ALL.to_vec();
        places.retain(|place| match place {
            Place::Work(step) => worked(*step),
            Place::Cargo => [Step::Test, Step::Lint, Step::Build]
                .into_iter()
                .any(worked),
            // A stand-in for the database is this machine's, not the engine's.
            Place::Database => worked(Step::Scan) && self.toolbox.stand_ins().is_none(),
        });
        places
    }

    /// Takes what is in these volumes out of the engine, for the next throw-away runner. `lockfile` is the text of the workspace's
    /// Cargo.lock.
    pub async fn take(&self, places: &[Place], lockfile: &str) {
        let Some(cache) = &self.cache else { return };
        let taken = self.stopper.unless_stopped(Box::pin(async {
            cache.take(self, places, lockfile).await;
            Ok(())
        }));
        if let Err(failure) = taken.await {
            cache.fails("the cache is not kept", &failure);
        }
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
        let listener: Option<Listener> = (self.settings.verbose > 0).then(|| {
            let reporter = Arc::clone(&self.reporter);
            Arc::new(move |line: &str| reporter.line_of(step, line)) as Listener
        });
        let trace = self.telemetry.trace(listener);
        let context = StepContext {
            run: self,
            step,
            trace,
            client: self.session.client(trace),
            saw: Mutex::default(),
            reused: Mutex::default(),
        };
        let start = jiff::Timestamp::now();
        let begun = Instant::now();
        self.reporter.started(step);
        let limited = async {
            // In a box: all steps' futures together are too large for a stack.
            let work = Box::pin(work(&context, input));
            match self.settings.limits.get(&step) {
                None => work.await,
                Some(limit) => tokio::time::timeout(*limit, work)
                    .await
                    .unwrap_or_else(|_| Err(too_slow(step, *limit))),
            }
        };
        let result = self.stopper.unless_stopped(limited).await;
        let duration = begun.elapsed();
        // What the engine reports comes a moment after its answer.
        self.telemetry.settle(Duration::from_millis(200)).await;
        let reused = lock(&context.reused).take();
        let mut record = Record {
            name: step,
            status: Status::Passed,
            start: Some(start),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            cached: step.may_be_cached() && (reused.is_some() || self.telemetry.cached(trace)),
            reused,
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
                let cut_off = self.stopper.reason.get() == Some(&Stop::TimeLimit);
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
                    && self.stopper.reason.get() == Some(&Stop::FailFast);
                record.code = (!by_fail_fast).then_some(failure.code);
                if self.settings.fail_fast {
                    self.stopper.stop(Stop::FailFast);
                }
                (None, Some(failure))
            }
        };
        self.reporter.ended(&record, failure.as_ref());
        self.record(record);
        lock(&self.traces).push((step, trace));
        value
    }

    fn unmet(&self, step: Step) -> Option<String> {
        let records = lock(&self.records);
        let missing: Vec<_> = step
            .needs()
            .iter()
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

    /// Closes the session, by which all that the engine has to report has come; writes the logs and the caches, and returns the
    /// records.
    pub async fn finish(self) -> (Vec<Record>, Option<CacheReport>) {
        self.session.close().await;
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
                    None => self.telemetry.log(trace),
                };
                record.log = self.reporter.write_log(step, &log);
                record.cached = step.may_be_cached()
                    && record.status == Status::Passed
                    && (record.reused.is_some() || self.telemetry.cached(trace));
                logs.insert(step, self.reporter.redact(&log));
            }
        }
        let cache = match self.cache {
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
    pub run: &'a Run<K>,
    /// Which it is.
    pub step: Step,
    trace: TraceContext,
    client: DaggerConn,
    saw: Mutex<Option<String>>,
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
