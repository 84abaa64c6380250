//! From the command line to the exit code.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dagger_sdk::DaggerConn;
use generativity::make_guard;
use tokio::sync::Notify;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;

use crate::authority::{self, Event, GitHub, Permit, Purpose};
use crate::cache::{self, Cache, CacheReport, Place};
use crate::engine::{self, EngineError, Session, Telemetry};
use crate::evidence::{Kind, Source};
use crate::failure::{ExitCode, Failure, OrFail};
use crate::narrator::Narrator;
use crate::oci::Platform;
use crate::project::Project;
use crate::reference::Registry;
use crate::report::{self, EngineReport, Report, Reporter, SCHEMA, Verdict};
use crate::run::{Platforms, Run, Stop, Stopper, Surroundings};
use crate::settings::{self, CacheCommand, Command, Invocation, Settings};
use crate::source::{Checkout, Snapshot};
use crate::standin::StandIns;
use crate::step::{Record, Status, Step};
use crate::steps::publish::Published;
use crate::steps::{fmt, scan};
use crate::toolbox::{self, AnyToolbox, StandInNote, Toolbox};
use crate::{doctor, graph, init, pins, project, registry, verify};

/// Does what the command line says.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let invocation = match Invocation::parse(arguments) {
        Ok(invocation) => invocation,
        Err(error) => {
            report::help(&error);
            return if error.use_stderr() {
                ExitCode::Usage
            } else {
                ExitCode::Success
            };
        }
    };
    start_log(invocation.options.verbose);
    // The only one there can be: it is set once, here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure::environment("cannot start").because(error)),
    };
    let code = runtime
        .block_on(dispatch(invocation))
        .unwrap_or_else(|failure| fail(&failure));
    // A download that nobody waits for any more must not hold the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

fn fail(failure: &Failure) -> ExitCode {
    report::failure(failure);
    failure.code
}

fn start_log(verbose: u8) {
    let default = if verbose > 1 { "ci=debug" } else { "off" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("LAB_CI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // The SDK logs its queries whole, those that hand a secret to the engine among them.
        .with_filter(filter_fn(|event| !event.target().starts_with("dagger_sdk")));
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
}

async fn dispatch(invocation: Invocation) -> Result<ExitCode, Failure> {
    let stopper = Stopper::default();
    stop_on_signals(&stopper)?;
    let reporter = Reporter::plain(invocation.options.quiet, invocation.options.verbose > 0);
    let steps = match &invocation.command {
        Command::Graph => {
            report::data(&graph::draw(invocation.drawing()?));
            return Ok(ExitCode::Success);
        }
        Command::Init => return init::run(&invocation, &reporter),
        Command::Doctor => return stopper.unless_stopped(doctor::run(&invocation)).await,
        Command::Verify { image } => {
            return stopper
                .unless_stopped(verify::run(image, &invocation, &reporter))
                .await;
        }
        Command::Engine { command } => {
            return stopper
                .unless_stopped(engine::commands::run(
                    *command,
                    invocation.options.format.as_deref(),
                    &reporter,
                ))
                .await;
        }
        Command::Cache { command } => return carry(&invocation, command, stopper).await,
        Command::Run | Command::Publish => Step::ALL.to_vec(),
        Command::Test => Step::with_needs(&[Step::Test]),
        Command::Fmt { .. } => Step::with_needs(&[Step::Fmt]),
        Command::Lint => Step::with_needs(&[Step::Lint]),
        Command::Build { .. } => Step::with_needs(&[Step::Build]),
        Command::Scan => Step::with_needs(&[Step::Scan]),
        Command::Smoke => Step::with_needs(&[Step::Smoke]),
    };
    pipeline(&invocation, steps, stopper).await
}

/// Everything that can be known to be wrong is known here, before the engine is touched.
struct Plan {
    invocation: Command,
    settings: Settings,
    checkout: Checkout,
    snapshot: Snapshot,
    permit: Option<Permit<Registry>>,
    steps: Vec<Step>,
}

fn plan(invocation: &Invocation, steps: Vec<Step>, github: &GitHub) -> Result<Plan, Failure> {
    let directory = invocation.directory()?;
    let mut checkout = Checkout::discover(&directory)?;
    let formats = matches!(invocation.command, Command::Fmt { fix: true });
    if formats {
        // What is formatted is the working tree, whatever git thinks of it.
        checkout = checkout.as_on_disk();
    }
    let snapshot = checkout.snapshot()?;
    let project = Project::find(
        snapshot.path(),
        &project::below(&checkout.root, &directory)?,
    )?;
    let read = |name: &str| match std::fs::read_to_string(project.sources.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::usage(format!("{name} cannot be read")).because(error)),
    };
    let mut settings = invocation.settings(
        &checkout.root.join(&project.folder),
        &project,
        read(settings::FILE)?.as_deref(),
        github,
    )?;
    if let Command::Cache {
        command: CacheCommand::Save { dir } | CacheCommand::Restore { dir },
    } = &invocation.command
    {
        settings.cache_dir = Some(settings::cache_dir(dir)?);
    }
    if let Some(folder) = &settings.cache_dir
        && checkout.would_see(&folder.join(cache::LIST))
    {
        return Err(Failure::usage(format!(
            "the caches would be among the sources: {} is in the working tree, and git does not ignore it",
            folder.display()
        ))
        .hint("Take a folder elsewhere or below target, or add it to .gitignore."));
    }
    if let Some(exceptions) = read(scan::IGNORE_FILE)? {
        scan::check_exceptions(&exceptions)?;
    }
    let permit = authority::permit(&authority::Request {
        github,
        event: settings.event,
        purpose: match invocation.command {
            Command::Run => Purpose::Run,
            Command::Publish => Purpose::Publish,
            _ => Purpose::Gates,
        },
        registry: &settings.registry,
        registry_from: settings.registry_from,
        checkout: &checkout,
    })?;
    if permit.is_some()
        && settings.registry.to_string() == Registry::GHCR
        && !settings.repository.to_string().contains('/')
    {
        return Err(Failure::usage(format!(
            "{} has no repository called {}: it wants an owner too",
            settings.registry, settings.repository
        ))
        .hint("Set repository in ci.toml, as in OWNER/NAME."));
    }
    if permit.is_some()
        && let Some(base) = &settings.image.base
        && base.digest().is_none()
    {
        return Err(Failure::usage(format!(
            "image.base in ci.toml has no digest: {base} may be another image tomorrow, and what is published is to be its commit's alone"
        ))
        .hint("`ci build` says which digest it has today, and the line to write."));
    }
    Ok(Plan {
        invocation: invocation.command.clone(),
        settings,
        checkout,
        snapshot,
        permit,
        steps,
    })
}

/// What is known of a run, however it ends.
#[derive(Default)]
struct Outcome {
    engine: Option<EngineReport>,
    platform: Option<String>,
    stand_ins: Vec<StandInNote>,
    records: Vec<Record>,
    published: Option<Published>,
    cache: Option<CacheReport>,
}

async fn pipeline(
    invocation: &Invocation,
    steps: Vec<Step>,
    stopper: Stopper,
) -> Result<ExitCode, Failure> {
    let github = GitHub::from_env();
    let start = jiff::Timestamp::now();
    let begun = Instant::now();
    let plan = plan(invocation, steps, &github)?;
    let loader = match plan.invocation {
        Command::Build { load: true, .. } => Some(engine::runtime::loader().await?),
        _ => None,
    };
    let Plan {
        settings, checkout, ..
    } = &plan;
    let reporter = Arc::new(Reporter::new(settings, github.credential()));
    std::fs::create_dir_all(&settings.report_dir).or_environment(format!(
        "cannot make the report directory {}",
        settings.report_dir.display()
    ))?;
    if let Some(limit) = settings.timeout {
        let stopper = stopper.clone();
        tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            stopper.stop(Stop::TimeLimit);
        });
    }
    let state = if checkout.is_clean() {
        "clean"
    } else {
        "with uncommitted changes"
    };
    reporter.header(&format!(
        "commit {} ({}, {state}), event {}",
        checkout.commit.sha, checkout.state, settings.event
    ));
    let mut report = Report {
        schema: SCHEMA,
        verdict: Verdict {
            passed: false,
            exit_code: 0,
            reason: ExitCode::Success,
        },
        commit: checkout.commit.sha.clone(),
        clean: checkout.is_clean(),
        tag: checkout.state.to_string(),
        image: format!(
            "{}/{}:{}",
            settings.registry, settings.repository, checkout.state
        ),
        digest: None,
        event: settings.event,
        platform: None,
        engine: None,
        prepared: Vec::new(),
        stand_ins: Vec::new(),
        start,
        duration_ms: 0,
        steps: Vec::new(),
        publish: None,
        cache: None,
        error: None,
        hint: None,
    };
    let directory = settings.report_dir.clone();
    let command = plan.invocation.clone();
    let wanted = plan.steps.clone();

    let mut outcome = Outcome::default();
    let mut result = with_engine(plan, &stopper, &reporter, &mut outcome).await;
    let built = |record: &Record| record.name == Step::Build && record.status == Status::Passed;
    if let (Ok(()), Command::Build { output, .. }) = (&result, &command)
        && outcome.records.iter().any(built)
    {
        let archive = directory.join("image.tar");
        result = deliver(
            &archive,
            output.as_deref(),
            loader,
            &report.image,
            &reporter,
        )
        .await;
    }

    for step in wanted {
        if !outcome.records.iter().any(|record| record.name == step) {
            let why = "the run ended before it".to_owned();
            outcome.records.push(Record::skipped(step, why));
        }
    }
    let failures = outcome.records.iter().filter_map(|record| record.code);
    let code = ExitCode::of_all(failures.chain(result.as_ref().err().map(|failure| failure.code)));
    if let Err(failure) = &result {
        reporter.failed(failure);
        report.error = Some(failure.to_string());
        report.hint.clone_from(&failure.hint);
    }
    report.digest = outcome
        .records
        .iter()
        .find(|record| record.name == Step::Build)
        .and_then(|record| record.digest.clone());
    report.verdict = Verdict {
        passed: code == ExitCode::Success,
        exit_code: code as u8,
        reason: code,
    };
    report.engine = outcome.engine;
    report.platform = outcome.platform;
    report.prepared = reporter.prepared();
    report.stand_ins = outcome.stand_ins;
    report.steps = outcome.records;
    report.publish = outcome.published;
    report.cache = outcome.cache;
    report.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    report.write(&directory, |text| reporter.redact(text))?;
    let summary = reporter.redact(&report::summary(&report));
    let page = directory.join("summary.md");
    std::fs::write(&page, &summary).or_environment(format!("cannot write {}", page.display()))?;
    tell_github(&report, &summary)?;
    reporter.verdict(&report);
    Ok(code)
}

/// Takes a built image to where `ci build` was told to take it.
async fn deliver(
    archive: &Path,
    output: Option<&Path>,
    loader: Option<engine::Runtime>,
    image: &str,
    reporter: &Reporter,
) -> Result<(), Failure> {
    if let Some(output) = output {
        std::fs::copy(archive, output)
            .or_environment(format!("cannot write {}", output.display()))?;
    }
    if let Some(runtime) = loader {
        runtime.load(archive, image).await?;
        reporter.header(&format!("{image} is in {}", runtime.name));
    }
    Ok(())
}

async fn with_engine(
    plan: Plan,
    stopper: &Stopper,
    reporter: &Arc<Reporter>,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    // Permission that is missing is known before the first minute of work.
    if let Some(permit) = &plan.permit {
        let client = registry::Client::new(
            permit.registry(),
            &plan.settings.repository,
            permit.credential(),
            registry::Access::Write,
        )?;
        stopper.unless_stopped(client.prove_write()).await?;
    }
    let narrator: Arc<Reporter> = Arc::clone(reporter);
    let stand_ins = Arc::new(StandIns::new(&report::ask, narrator));
    let ahead = Ahead::new(&stand_ins, &plan);
    // In a box: with every step's future in it, this one is large.
    let run = Box::pin(on_engine(
        plan, stopper, reporter, outcome, &stand_ins, &ahead,
    ));
    tokio::select! {
        result = run => result,
        never = ahead.make() => match never {},
    }
}

async fn on_engine(
    plan: Plan,
    stopper: &Stopper,
    reporter: &Arc<Reporter>,
    outcome: &mut Outcome,
    stand_ins: &Arc<StandIns>,
    ahead: &Ahead,
) -> Result<(), Failure> {
    let (engine, telemetry, mut session, version) = stopper
        .unless_stopped(async {
            let engine = engine::find(&plan.settings.engine, &report::ask, &**reporter).await?;
            let telemetry = Telemetry::start().await?;
            let session = Session::open(&engine.endpoint, &telemetry).await?;
            let version = engine::version(&session.client(telemetry.trace(None))).await?;
            Ok((engine, telemetry, session, version))
        })
        .await?;
    let lost = stopper.clone();
    session.watch(move || lost.stop(Stop::EngineLost));
    reporter.header(&format!("engine {} (Dagger {version})", engine.name));
    if version != pins::DAGGER {
        reporter.notice(&format!(
            "this ci is made for engines of version {}, and tested with them alone",
            pins::DAGGER
        ));
    }
    outcome.engine = Some(EngineReport {
        name: engine.name,
        version,
    });
    let client = session.client(telemetry.trace(None));
    let asked = stopper
        .unless_stopped(async {
            let platforms = platforms(&client, &plan).await?;
            let toolbox = toolbox::choose(&client, &ahead.steps, stand_ins, &**reporter).await?;
            Ok((platforms, toolbox))
        })
        .await;
    let (platforms, toolbox) = match asked {
        Ok(asked) => asked,
        Err(failure) => {
            session.close().await;
            return Err(failure);
        }
    };
    outcome.platform = Some(platforms.image.to_string());
    let cache = plan.settings.cache_dir.as_ref().map(|folder| {
        Cache::open(
            folder,
            plan.settings.event.domain(),
            plan.settings.repository.to_string(),
            plan.checkout.commit.sha.clone(),
            Arc::clone(reporter) as Arc<dyn Narrator>,
        )
    });
    let surroundings = Surroundings {
        cache,
        platforms,
        telemetry,
        session,
        reporter: Arc::clone(reporter),
        stopper: stopper.clone(),
    };
    match toolbox {
        AnyToolbox::Genuine(toolbox) => execute(plan, toolbox, surroundings, outcome).await,
        AnyToolbox::StandIn(toolbox) => {
            ahead.needed.notify_one();
            execute(plan, toolbox, surroundings, outcome).await
        }
    }
}

/// The image's platform is the one that was said; where none was, a published image has a fixed one, and any other that of
/// the engine, which is the quickest.
async fn platforms(client: &DaggerConn, plan: &Plan) -> Result<Platforms, Failure> {
    let engine: Platform = client
        .default_platform()
        .await
        .map_err(|error| {
            EngineError::from(error).into_environment("the engine does not say its platform")
        })?
        .0
        .parse()?;
    let image = match (&plan.settings.platform, &plan.permit) {
        (Some(said), _) => said.clone(),
        (None, Some(_)) => Platform::published(),
        (None, None) => engine.clone(),
    };
    Ok(Platforms { image, engine })
}

/// What a first run makes before anything waits for it: while the engine is being built and started, and while the tests
/// run. Where it is dropped before its end, what needs the rest makes it.
struct Ahead {
    stand_ins: Arc<StandIns>,
    /// The steps that will want something.
    steps: Vec<Step>,
    /// Told when the run is known to need stand-ins.
    needed: Notify,
    /// Whether this machine will have to build an engine first.
    builds_engine: bool,
}

impl Ahead {
    fn new(stand_ins: &Arc<StandIns>, plan: &Plan) -> Self {
        let mut steps = plan.steps.clone();
        if plan.permit.is_none() {
            steps.retain(|step| *step != Step::Publish);
        }
        Self {
            stand_ins: Arc::clone(stand_ins),
            steps,
            needed: Notify::new(),
            builds_engine: engine::builds_first(&plan.settings.engine),
        }
    }

    /// A failure here is not the run's: who needs the thing tries again, and tells.
    async fn make(&self) -> Infallible {
        let quietly = |failure: Failure| tracing::debug!("made ahead: {failure}");
        // The engine decides what can be reached; before there is one, this machine's own view is a good guess.
        if self.builds_engine && !toolbox::reachable_from_here().await {
            let _ = self.stand_ins.rust().await.map_err(quietly);
        }
        self.needed.notified().await;
        if self.steps.contains(&Step::Scan) {
            let _ = self.stand_ins.trivy().await.map_err(quietly);
            let _ = self.stand_ins.advisories().await.map_err(quietly);
        }
        if self.steps.contains(&Step::Publish) {
            let _ = self.stand_ins.crane().await.map_err(quietly);
        }
        std::future::pending().await
    }
}

async fn execute<K: Kind>(
    plan: Plan,
    toolbox: Toolbox<K>,
    surroundings: Surroundings,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let permit = match plan.permit.map(K::accept).transpose() {
        Ok(permit) => permit,
        Err(failure) => {
            surroundings.session.close().await;
            return Err(failure);
        }
    };
    let reporter = Arc::clone(&surroundings.reporter);
    let lockfile = plan.snapshot.path().join(&plan.settings.folder);
    let lockfile = std::fs::read_to_string(lockfile.join("Cargo.lock"))
        .or_environment("the sources have no Cargo.lock");
    let lockfile = match lockfile {
        Ok(lockfile) => lockfile,
        Err(failure) => {
            surroundings.session.close().await;
            return Err(failure);
        }
    };
    let run = Run::new(plan.settings, toolbox, surroundings, plan.steps);
    match plan.invocation {
        Command::Fmt { fix: true } => {
            make_guard!(this_run);
            let source = Source::new(this_run, plan.checkout, plan.snapshot);
            if let Some(changed) = run.step(Step::Fmt, Some(&source), fmt::fix).await {
                for file in changed {
                    reporter.header(&format!("    formatted {}", file.display()));
                }
            }
        }
        Command::Cache {
            command: CacheCommand::Restore { .. },
        } => {
            for place in Place::ALL {
                run.bring(place).await;
            }
        }
        Command::Cache {
            command: CacheCommand::Save { .. },
        } => run.take(&Place::ALL, &lockfile).await,
        _ => {
            outcome.published =
                crate::pipeline::run(&run, plan.checkout, plan.snapshot, permit).await;
            run.take(&run.worked_in(), &lockfile).await;
        }
    }
    outcome.stand_ins = run.toolbox.notes();
    (outcome.records, outcome.cache) = run.finish().await;
    Ok(())
}

/// `ci cache`: into the engine, or out of it, and nothing else.
async fn carry(
    invocation: &Invocation,
    command: &CacheCommand,
    stopper: Stopper,
) -> Result<ExitCode, Failure> {
    let plan = plan(invocation, Vec::new(), &GitHub::from_env())?;
    let reporter = Arc::new(Reporter::new(&plan.settings, None));
    let mut outcome = Outcome::default();
    with_engine(plan, &stopper, &reporter, &mut outcome).await?;
    let Some(report) = outcome.cache else {
        return Ok(ExitCode::Success);
    };
    reporter.carried(&report)?;
    match (report.failures.first(), command) {
        (Some(failure), _) => Err(Failure::environment(failure.clone())),
        (None, CacheCommand::Save { .. }) if report.read_only => {
            Err(Failure::environment(format!(
                "the cache in {} is main's, and is not written by this run, which is {}'s",
                report.folder, report.domain
            ))
            .hint("Only a push to main writes it; save into a folder of your own."))
        }
        _ => Ok(ExitCode::Success),
    }
}

/// What GitHub Actions gets of a run: the outputs of the workflow's step, and the page beside it.
fn tell_github(report: &Report, summary: &str) -> Result<(), Failure> {
    let mut outputs = String::new();
    if let Some(digest) = report.digest.as_ref().filter(|_| report.verdict.passed) {
        outputs += &format!(
            "image={}\ntag={}\ndigest={digest}\n",
            report.image, report.tag
        );
    }
    // The next step of the workflow carries the folder away, where there is something new in it.
    if let Some(cache) = &report.cache {
        outputs += &format!("cache-changed={}\n", !cache.saved.is_empty());
    }
    append_to("GITHUB_OUTPUT", &outputs)?;
    append_to("GITHUB_STEP_SUMMARY", summary)
}

/// Appends to the file that a variable names, where it names one.
fn append_to(variable: &str, text: &str) -> Result<(), Failure> {
    let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    if text.is_empty() {
        return Ok(());
    }
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .or_environment(format!("cannot write {variable}"))
}

fn stop_on_signals(stopper: &Stopper) -> Result<(), Failure> {
    let stopper = stopper.clone();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate =
            signal(SignalKind::terminate()).or_environment("cannot listen for signals")?;
        let mut interrupt =
            signal(SignalKind::interrupt()).or_environment("cannot listen for signals")?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stopper.stop(Stop::Signal);
        });
    }
    #[cfg(not(unix))]
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopper.stop(Stop::Signal);
        }
    });
    Ok(())
}

/// What `ci doctor` says of publishing here.
pub(crate) fn publishing(github: &GitHub) -> &'static str {
    match github.event() {
        Event::Push => "this is a push to main on GitHub Actions: a run means to publish",
        Event::PullRequest => "this is a pull request: a run ends after its gates",
        Event::Local => "this is a local run: it ends after its gates",
    }
}
