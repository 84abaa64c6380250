//! Runs a plan in a session with the engine. One scope opens and closes the session, however the run ends.

use std::cell::LazyCell;
use std::pin::Pin;
use std::sync::Arc;

use dagger_sdk::DaggerConn;
use generativity::make_guard;
use tokio::sync::OnceCell;
use tracing::{Instrument as _, info_span};

use super::plan::Plan;
use super::prefetch::Prefetch;
use super::shell;
use crate::engine::find::{self, Engine};
use crate::engine::graphql::EngineError;
use crate::engine::session::{Connection, Session};
use crate::engine::telemetry::Telemetry;
use crate::image::archive::Platform;
use crate::image::registry;
use crate::model::record::{CacheReport, Published, Record, StandInNote};
use crate::model::step::Step;
use crate::report::{self, EngineReport, Reporter, RustReport};
use crate::run::context::{Platforms, RunContext, new_id};
use crate::run::execution::Run;
use crate::run::history::{Dependencies, History, has_many_dependencies};
use crate::run::stopper::{Stop, Stopper};
use crate::run::toolbox::{self, AnyToolbox, Toolbox};
use crate::run::turns::{Machine, Turns};
use crate::runner_cache::cache::Cache;
use crate::settings::{CacheCommand, Command, Settings};
use crate::source::sources::Source;
use crate::source::toolchain::ToolchainFile;
use crate::standin::StandIns;
use crate::steps::{build, fmt};
use crate::trust::kind::Kind;
use common::digest::sha256;
use common::failure::{Failure, OrFail};
use common::pins;
use common::progress::{Branch, Progress};

/// The outcome of a run, successful or not.
pub(crate) struct Outcome<T = Results> {
    /// The engine, if one was found.
    pub engine: Option<EngineReport>,
    /// The image's platform, if an engine was found.
    pub platform: Option<String>,
    /// The results of the steps, or a failure outside of them.
    pub result: Result<T, Failure>,
}

/// The results of a run's steps.
pub(crate) struct Results {
    /// The Rust toolchain.
    pub rust: RustReport,
    /// The stand-ins that replaced unreachable images and services.
    pub stand_ins: Vec<StandInNote>,
    /// The results of the steps.
    pub records: Vec<Record>,
    /// The published image, if any.
    pub published: Option<Published>,
    /// The caches that were restored and saved.
    pub cache: Option<CacheReport>,
}

impl<T> Outcome<T> {
    fn without_engine(failure: Failure) -> Self {
        Self {
            engine: None,
            platform: None,
            result: Err(failure),
        }
    }
}

/// Collects the results after the session has closed, when all telemetry of the engine has arrived.
type Finish = Pin<Box<dyn Future<Output = Results>>>;

/// Finds an engine and runs the plan on it.
pub(crate) async fn run(plan: Plan, stopper: &Stopper, reporter: &Arc<Reporter>) -> Outcome {
    // Checked first, so that missing permissions do not surface after minutes of work.
    if let Err(failure) = check_permission(&plan, stopper).await {
        return Outcome::without_engine(failure);
    }
    let progress: Arc<Reporter> = Arc::clone(reporter);
    let stand_ins = Arc::new(StandIns::new(&report::confirm, progress));
    let prefetch = Prefetch::new(&stand_ins, &plan);
    // Boxed, because the future contains those of all steps and is large.
    let run = Box::pin(on_engine(plan, stopper, reporter, &stand_ins, &prefetch));
    tokio::select! {
        outcome = run => outcome,
        never = prefetch.run() => match never {},
    }
}

async fn check_permission(plan: &Plan, stopper: &Stopper) -> Result<(), Failure> {
    let Some(permit) = &plan.permit else {
        return Ok(());
    };
    let client = registry::Client::new(
        permit.registry(),
        &plan.settings.repository,
        permit.credential(),
        registry::Access::Write,
    )?;
    stopper.unless_stopped(client.check_write_access()).await
}

async fn on_engine(
    plan: Plan,
    stopper: &Stopper,
    reporter: &Arc<Reporter>,
    stand_ins: &Arc<StandIns>,
    prefetch: &Prefetch,
) -> Outcome {
    let opened = stopper.unless_stopped(async {
        let branch = Branch::of(&**reporter);
        let engine = find::find(&plan.settings.engine, &report::confirm, &branch)
            .instrument(info_span!("find the engine"))
            .await?;
        let telemetry = Telemetry::start().await?;
        let session = Session::open(&engine.endpoint, &telemetry)
            .instrument(info_span!("open the session"))
            .await?;
        Ok((engine, telemetry, session))
    });
    let (engine, telemetry, mut session) = match opened.await {
        Ok(opened) => opened,
        Err(failure) => return Outcome::without_engine(failure),
    };
    let lost = stopper.clone();
    session.watch(move || lost.stop(Stop::EngineLost));
    let in_session = InSession {
        engine,
        telemetry,
        connection: session.connection().clone(),
        stopper,
        reporter,
        stand_ins,
        prefetch,
    };
    let Outcome {
        engine,
        platform,
        result,
    } = in_session.work(plan).await;
    session
        .close()
        .instrument(info_span!("close the session"))
        .await;
    let result = match result {
        Ok(finish) => Ok(finish.await),
        Err(failure) => Err(failure),
    };
    Outcome {
        engine,
        platform,
        result,
    }
}

/// A run in an open session.
struct InSession<'a> {
    engine: Engine,
    telemetry: Telemetry,
    connection: Connection,
    stopper: &'a Stopper,
    reporter: &'a Arc<Reporter>,
    stand_ins: &'a Arc<StandIns>,
    prefetch: &'a Prefetch,
}

impl InSession<'_> {
    async fn work(self, plan: Plan) -> Outcome<Finish> {
        let mut engine = None;
        let mut platform = None;
        let result = async {
            let client = self.connection.client(self.telemetry.trace("ci", None));
            let version = find::version(&client, &self.engine.name);
            let version = self.stopper.unless_stopped(version).await?;
            engine = Some(self.report_engine(version));
            let chosen = self.stopper.unless_stopped(
                async {
                    let platforms = platforms(&client, &plan).await?;
                    let steps = self.prefetch.steps();
                    let toolbox =
                        toolbox::choose(&client, steps, self.stand_ins, &**self.reporter).await?;
                    Ok((platforms, toolbox))
                }
                .instrument(info_span!("choose the images")),
            );
            let (platforms, toolbox) = chosen.await?;
            platform = Some(platforms.image.to_string());
            match toolbox {
                AnyToolbox::Genuine(toolbox) => self.execute(plan, toolbox, platforms).await,
                AnyToolbox::StandIn(toolbox) => {
                    self.prefetch.start_stand_ins();
                    self.execute(plan, toolbox, platforms).await
                }
            }
        }
        .await;
        Outcome {
            engine,
            platform,
            result,
        }
    }

    fn report_engine(&self, version: String) -> EngineReport {
        let name = &self.engine.name;
        self.reporter
            .header(&format!("engine {name} (Dagger {version})"));
        if version != pins::DAGGER {
            self.reporter.notice(&format!(
                "this ci is only tested with engine version {}",
                pins::DAGGER
            ));
        }
        EngineReport {
            name: name.clone(),
            version,
        }
    }

    async fn execute<K: Kind>(
        &self,
        plan: Plan,
        toolbox: Toolbox<K>,
        platforms: Platforms,
    ) -> Result<Finish, Failure> {
        let permit = plan.permit.map(K::accept).transpose()?;
        let lockfile = plan.snapshot.path().join(&plan.settings.folder);
        let lockfile = std::fs::read_to_string(lockfile.join("Cargo.lock"))
            .or_environment("the sources have no Cargo.lock")?;
        let cache = plan.settings.cache_dir.as_ref().map(|folder| {
            Cache::open(
                folder,
                plan.settings.event.domain(),
                plan.settings.repository.to_string(),
                plan.checkout.commit.sha.clone(),
                Arc::clone(self.reporter) as Arc<dyn Progress>,
            )
        });
        // Before any step, although only `build` needs it.
        build::env(&plan.settings, &platforms.image)?;
        let rust = ToolchainFile::resolve(plan.settings.toolchain.as_ref());
        let rust = self.stopper.unless_stopped(rust).await?;
        if rust.name != pins::RUST {
            self.reporter
                .header(&format!("toolchain {} ({})", rust.name, rust.from));
        }
        let machine = if self.engine.is_on_this_machine() {
            Machine::here()
        } else {
            None
        };
        let Settings { jobs, memory, .. } = plan.settings;
        let dependencies = Dependencies {
            lock: sha256(lockfile.as_bytes()),
            toolchain: rust.name.clone(),
            engine: self.engine.name.clone(),
        };
        let history = History::load(&plan.settings.report_dir, dependencies);
        let are_many = LazyCell::new(|| has_many_dependencies(&lockfile));
        let is_cold = |step| !history.has_compiled(step) && *are_many;
        let turns = Turns::new(&plan.steps, jobs, memory, machine, is_cold);
        if let Some(notice) = turns.notice() {
            self.reporter.notice(notice);
        }
        let context = RunContext {
            rust,
            turns,
            settings: plan.settings,
            toolbox,
            platforms,
            telemetry: self.telemetry.clone(),
            connection: self.connection.clone(),
            reporter: Arc::clone(self.reporter),
            stopper: self.stopper.clone(),
            cache,
            history,
            engine: self.engine.name.clone(),
            commit: plan.checkout.commit.sha.clone(),
            id: new_id(),
            toolchain: OnceCell::new(),
        };
        let run = Run::new(context, plan.steps);
        let work = async {
            match plan.invocation {
                Command::Fmt { fix: true } => {
                    make_guard!(this_run);
                    let source = Source::new(this_run, plan.checkout, plan.snapshot);
                    if let Some(changed) = run.step(Step::Fmt, Some(&source), fmt::fix).await {
                        run.show_all().await;
                        for file in changed {
                            self.reporter
                                .header(&format!("    formatted {}", file.display()));
                        }
                    }
                }
                Command::Cache {
                    command: CacheCommand::Restore { .. },
                } => {
                    for place in run.context.places() {
                        run.context.restore(place).await;
                    }
                }
                Command::Cache {
                    command: CacheCommand::Save { .. },
                } => run.context.save(&run.context.places(), &lockfile).await,
                Command::Shell { step } => {
                    // Boxed, because the compiler limits how deep futures can be nested.
                    let open = Box::pin(shell::open(&run, step, plan.checkout, plan.snapshot));
                    self.stopper.unless_stopped(open).await?;
                }
                _ => {
                    let steps = crate::pipeline::run(&run, plan.checkout, plan.snapshot, permit);
                    let published = steps.await;
                    run.context.save(&run.worked_in(), &lockfile).await;
                    return Ok(published);
                }
            }
            Ok(None)
        };
        let published = tokio::select! {
            done = work => done,
            never = run.show_ended() => match never {},
        };
        run.show_failed().await;
        let published = published?;
        Ok(Box::pin(async move {
            let rust = RustReport {
                toolchain: run.context.rust.name.clone(),
                from: run.context.rust.from.clone(),
            };
            let stand_ins = run.context.toolbox.notes();
            let (records, cache) = run.finish().await;
            Results {
                rust,
                stand_ins,
                records,
                published,
                cache,
            }
        }))
    }
}

/// The platforms of the image and the engine. Without a configured platform a published image has a fixed one, and other images
/// have the engine's, which needs no emulation.
async fn platforms(client: &DaggerConn, plan: &Plan) -> Result<Platforms, Failure> {
    let engine: Platform = client
        .default_platform()
        .await
        .map_err(|error| {
            EngineError::from(error).into_environment("cannot get the engine's platform")
        })?
        .0
        .parse()?;
    let image = match (&plan.settings.platform, &plan.permit) {
        (Some(configured), _) => configured.clone(),
        (None, Some(_)) => Platform::default_published(),
        (None, None) => engine.clone(),
    };
    Ok(Platforms { image, engine })
}
