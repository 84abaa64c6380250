//! `ci run` and the commands of single steps, from the plan to the report.

pub(super) mod plan;
mod prefetch;
pub(super) mod session;
mod shell;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use self::plan::{Plan, plan};
use self::session::Outcome;
use crate::engine::runtime::{self, Runtime};
use crate::model::record::{Record, Status};
use crate::model::step::Step;
use crate::report::{self, Previous, Report, Reporter, SCHEMA, Verdict};
use crate::run::stopper::{Stop, Stopper};
use crate::settings::{Command, Invocation};
use crate::trust::authority::GitHub;
use common::failure::{ExitCode, Failure, OrFail};
use common::progress::Progress as _;

/// Runs the steps of the command, and reports the results.
pub(super) async fn run(invocation: &Invocation, stopper: &Stopper) -> ExitCode {
    let github = GitHub::from_env(invocation.options.release_branch.as_deref());
    let early = Reporter::before_the_plan(invocation, &github);
    let run = info_span!(
        "run",
        exit_code = Empty,
        commit = Empty,
        otel.status_code = Empty
    );
    let ended = run_plan(invocation, stopper, &github, &early);
    let code = match ended.instrument(run.clone()).await {
        Ok(code) => code,
        Err(failure) => {
            early.refused(&failure);
            failure.code
        }
    };
    run.record("exit_code", code as u8);
    if code != ExitCode::Success {
        run.record("otel.status_code", "ERROR");
    }
    code
}

/// # Errors
/// When the plan is invalid, and nothing has run. Later failures are part of the report.
async fn run_plan(
    invocation: &Invocation,
    stopper: &Stopper,
    github: &GitHub,
    early: &Reporter,
) -> Result<ExitCode, Failure> {
    let start = jiff::Timestamp::now();
    let begun = Instant::now();
    let plan = info_span!("plan").in_scope(|| plan(invocation, github, early))?;
    Span::current().record("commit", &plan.checkout.commit.sha);
    let loader = match plan.invocation {
        Command::Build { load: true, .. } => Some(runtime::find_loader().await?),
        _ => None,
    };
    let Plan {
        settings, checkout, ..
    } = &plan;
    let reporter = Arc::new(Reporter::new(settings, github.credential()));
    let output = match &plan.invocation {
        Command::Build { output, .. } => output.as_deref(),
        _ => None,
    };
    let previous = report::prepare(&settings.report_dir, &checkout.root, output)?;
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
    if let Some(why) = github.unpublished_push() {
        reporter.notice(&why);
    }
    let image = format!(
        "{}/{}:{}",
        settings.registry, settings.repository, checkout.state
    );
    let mut report = Report {
        schema: SCHEMA,
        ci: super::version::program(),
        verdict: Verdict::of(ExitCode::Success),
        commit: checkout.commit.sha.clone(),
        clean: checkout.is_clean(),
        tag: checkout.state.to_string(),
        image,
        digest: None,
        event: settings.event,
        platform: None,
        engine: None,
        rust: None,
        prepared: Vec::new(),
        left_out: settings.narrowings(),
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

    let Outcome {
        engine,
        platform,
        result,
    } = session::run(plan, stopper, &reporter).await;
    report.engine = engine;
    report.platform = platform;
    let mut failure = None;
    match result {
        Err(failed) => failure = Some(failed),
        Ok(ended) => {
            report.rust = Some(ended.rust);
            report.stand_ins = ended.stand_ins;
            report.steps = ended.records;
            report.publish = ended.published;
            report.cache = ended.cache;
        }
    }
    let build = |record: &&Record| record.name == Step::Build;
    let built = report.steps.iter().find(build);
    report.digest = built.and_then(|record| record.digest.clone());
    if let Command::Build { output, .. } = &command
        && built.is_some_and(|record| record.status == Status::Passed)
    {
        let archive = directory.join("image.tar");
        let delivered = deliver(
            &archive,
            output.as_deref(),
            loader,
            &report.image,
            &reporter,
        );
        failure = delivered.await.err();
    }
    for step in wanted {
        if !report.steps.iter().any(|record| record.name == step) {
            let why = "the run ended before this step".to_owned();
            report.steps.push(Record::skipped(step, why));
        }
    }
    let of_steps = report.steps.iter().filter_map(|record| record.code);
    let code = ExitCode::of_all(of_steps.chain(failure.as_ref().map(|failure| failure.code)));
    if let Some(failure) = &failure {
        reporter.failed(failure);
        report.error = Some(failure.to_string());
        report.hint.clone_from(&failure.hint);
    }
    report.verdict = Verdict::of(code);
    report.prepared = reporter.prepared();
    report.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let written = info_span!("write the reports")
        .in_scope(|| write(&report, &directory, previous.as_ref(), &reporter));
    if let Err(failure) = written {
        reporter.failed(&failure);
        report.verdict = Verdict::of(ExitCode::of_all([report.verdict.reason, failure.code]));
        report.error = Some(failure.to_string());
    }
    reporter.verdict(&report);
    Ok(report.verdict.reason)
}

/// Writes the reports, and the outputs for GitHub Actions.
fn write(
    report: &Report,
    directory: &Path,
    previous: Option<&Previous>,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let summary = report::write(report, directory, previous, |text| reporter.redact(text))?;
    report::write_github_outputs(report, directory, &summary)
}

/// Copies and loads a built image, as the options of `ci build` request.
async fn deliver(
    archive: &Path,
    output: Option<&Path>,
    loader: Option<Runtime>,
    image: &str,
    reporter: &Reporter,
) -> Result<(), Failure> {
    if let Some(output) = output {
        std::fs::copy(archive, output)
            .or_environment(format!("cannot write {}", output.display()))?;
    }
    if let Some(runtime) = loader {
        runtime.load(archive, image).await?;
        reporter.header(&format!("loaded {image} into {}", runtime.name));
    }
    Ok(())
}
