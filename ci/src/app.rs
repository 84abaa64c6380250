//! From the command line to the exit code.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use generativity::make_guard;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;

use crate::authority::{self, Event, GitHub, Permit, Purpose};
use crate::engine::{self, Session, Telemetry};
use crate::evidence::{Kind, Source};
use crate::failure::{ExitCode, Failure, OrFail};
use crate::reference::Registry;
use crate::report::{self, EngineReport, Report, Reporter, SCHEMA, Verdict};
use crate::run::{Run, Stop, Stopper};
use crate::settings::{self, Command, EngineCommand, Invocation, Settings};
use crate::source::{Checkout, Snapshot};
use crate::step::{Record, Step};
use crate::steps::publish::Published;
use crate::steps::{fmt, scan};
use crate::toolbox::{self, AnyToolbox, StandInNote, Toolbox};
use crate::{doctor, graph, pins, registry};

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
        Command::Doctor => return stopper.unless_stopped(doctor::run(&invocation)).await,
        Command::Engine { command } => {
            return stopper
                .unless_stopped(embedded_engine(
                    *command,
                    invocation.options.format.as_deref(),
                    &reporter,
                ))
                .await;
        }
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
    let directory = std::env::current_dir().or_environment("there is no current directory")?;
    let mut checkout = Checkout::discover(&directory)?;
    let formats = matches!(invocation.command, Command::Fmt { fix: true });
    if formats {
        // What is formatted is the working tree, whatever git thinks of it.
        checkout = checkout.as_on_disk();
    }
    let snapshot = checkout.snapshot()?;
    let read = |name: &str| match std::fs::read_to_string(snapshot.path().join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::usage(format!("{name} cannot be read")).because(error)),
    };
    let settings = invocation.settings(&checkout.root, read(settings::FILE)?.as_deref(), github)?;
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
    stand_ins: Vec<StandInNote>,
    records: Vec<Record>,
    published: Option<Published>,
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
        Command::Build { load: true, .. } => Some(engine::loader().await?),
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
        engine: None,
        stand_ins: Vec::new(),
        start,
        duration_ms: 0,
        steps: Vec::new(),
        publish: None,
        error: None,
        hint: None,
    };
    let directory = settings.report_dir.clone();
    let command = plan.invocation.clone();
    let wanted = plan.steps.clone();

    let mut outcome = Outcome::default();
    let result = with_engine(plan, &stopper, &reporter, &mut outcome).await;

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
    report.stand_ins = outcome.stand_ins;
    report.steps = outcome.records;
    report.publish = outcome.published;
    report.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    report.write(&directory, |text| reporter.redact(text))?;
    outputs(&report)?;
    reporter.verdict(&report);
    if code == ExitCode::Success
        && let Command::Build { output, .. } = command
    {
        let archive = directory.join("image.tar");
        if let Some(output) = output {
            std::fs::copy(&archive, &output)
                .or_environment(format!("cannot write {}", output.display()))?;
        }
        if let Some(runtime) = loader {
            engine::load(&runtime, &archive, &report.image).await?;
            reporter.header(&format!("{} is in {runtime}", report.image));
        }
    }
    Ok(code)
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
        )?;
        stopper.unless_stopped(client.prove_write()).await?;
    }
    let (engine, telemetry, session) = stopper
        .unless_stopped(async {
            let engine = engine::find(&plan.settings.engine, &report::ask, &**reporter).await?;
            let telemetry = Telemetry::start().await?;
            let session = Session::open(&engine.endpoint, &telemetry).await?;
            Ok((engine, telemetry, session))
        })
        .await?;
    reporter.header(&format!("engine {} (Dagger {})", engine.name, pins::DAGGER));
    outcome.engine = Some(EngineReport {
        name: engine.name,
        version: pins::DAGGER.to_owned(),
    });
    let client = session.client(telemetry.trace(None));
    let narrator: Arc<Reporter> = Arc::clone(reporter);
    // What can be reached is decided for what this run will use.
    let mut used = plan.steps.clone();
    if plan.permit.is_none() {
        used.retain(|step| *step != Step::Publish);
    }
    let toolbox = stopper
        .unless_stopped(toolbox::choose(&client, &used, narrator))
        .await;
    let toolbox = match toolbox {
        Ok(toolbox) => toolbox,
        Err(failure) => {
            session.close().await;
            return Err(failure);
        }
    };
    let parts = Parts {
        telemetry,
        session,
        reporter: Arc::clone(reporter),
        stopper: stopper.clone(),
    };
    match toolbox {
        AnyToolbox::Genuine(toolbox) => execute(plan, toolbox, parts, outcome).await,
        AnyToolbox::StandIn(toolbox) => execute(plan, toolbox, parts, outcome).await,
    }
}

struct Parts {
    telemetry: Telemetry,
    session: Session,
    reporter: Arc<Reporter>,
    stopper: Stopper,
}

async fn execute<K: Kind>(
    plan: Plan,
    toolbox: Toolbox<K>,
    Parts {
        telemetry,
        session,
        reporter,
        stopper,
    }: Parts,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let permit = match plan.permit.map(K::accept).transpose() {
        Ok(permit) => permit,
        Err(failure) => {
            session.close().await;
            return Err(failure);
        }
    };
    let run = Run::new(
        plan.settings,
        toolbox,
        telemetry,
        session,
        Arc::clone(&reporter),
        stopper,
        plan.steps,
    );
    if matches!(plan.invocation, Command::Fmt { fix: true }) {
        make_guard!(this_run);
        let source = Source::new(this_run, plan.checkout, plan.snapshot);
        if let Some(changed) = run.step(Step::Fmt, Some(&source), fmt::fix).await {
            for file in changed {
                reporter.header(&format!("    formatted {}", file.display()));
            }
        }
    } else {
        outcome.published = crate::pipeline::run(&run, plan.checkout, plan.snapshot, permit).await;
    }
    outcome.stand_ins = run.toolbox.notes();
    outcome.records = run.finish().await;
    Ok(())
}

/// The outputs of the workflow's step: image, tag and digest.
fn outputs(report: &Report) -> Result<(), Failure> {
    let Some(path) = std::env::var_os("GITHUB_OUTPUT").filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    let Some(digest) = report.digest.as_ref().filter(|_| report.verdict.passed) else {
        return Ok(());
    };
    let text = format!(
        "image={}\ntag={}\ndigest={digest}\n",
        report.image, report.tag
    );
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .or_environment("cannot write GITHUB_OUTPUT")
}

async fn embedded_engine(
    command: EngineCommand,
    format: Option<&str>,
    reporter: &Reporter,
) -> Result<ExitCode, Failure> {
    match command {
        EngineCommand::Up => {
            let running = engine::embedded::up(&report::ask, reporter).await?;
            let how = if running.started_now {
                "started"
            } else {
                "was running"
            };
            reporter.header(&format!("the embedded engine {} {how}", running.version));
            report::data(&format!("{}\n", running.runner_host));
        }
        EngineCommand::Down => {
            let down = engine::embedded::down(reporter).await?;
            let what = if down.stopped == 0 {
                "no engine was running".to_owned()
            } else {
                format!("ended {}", down.stopped)
            };
            reporter.header(&what);
            for line in down.removed {
                reporter.header(&format!("removed {line}"));
            }
        }
        EngineCommand::Status => {
            let status = engine::embedded::status().await?;
            report::data(&match format {
                Some("json") => {
                    serde_json::to_string_pretty(&status)
                        .or_environment("the status cannot be written as JSON")?
                        + "\n"
                }
                _ => status_text(&status),
            });
        }
    }
    Ok(ExitCode::Success)
}

fn status_text(status: &engine::embedded::Status) -> String {
    let state = match (status.pid, status.healthy) {
        (Some(pid), true) => format!("runs, process {pid}"),
        (Some(pid), false) => format!("does not answer, process {pid}"),
        (None, _) if status.built => "does not run".to_owned(),
        (None, _) => "is not built".to_owned(),
    };
    let mut lines = vec![
        ("engine", format!("{} {state}", status.version)),
        ("state", format!("{} MB", status.state_bytes >> 20)),
        ("folder", status.folder.display().to_string()),
        ("log", status.log.display().to_string()),
    ];
    if let Some(url) = &status.runner_host {
        lines.insert(1, ("url", url.clone()));
    }
    if let Some(uptime) = status.uptime {
        lines.insert(1, ("uptime", report::format_duration(uptime)));
    }
    lines
        .iter()
        .map(|(name, value)| format!("{name:<8} {value}\n"))
        .collect()
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
