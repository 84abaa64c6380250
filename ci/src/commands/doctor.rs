//! `ci doctor`: checks this machine's setup and suggests fixes.

use crate::engine::choice::Choice;
use crate::engine::disk::{DiskLimit, Space};
use crate::engine::embedded;
use crate::engine::find;
use crate::engine::runtime::{self, Readiness};
use crate::image::archive::Platform;
use crate::image::registry;
use crate::model::event::Event;
use crate::model::step::Step;
use crate::report;
use crate::run::turns::{Machine, Turns};
use crate::runner_cache::cache;
use crate::settings::Invocation;
use crate::settings::tables::Service;
use crate::source::checkout::Checkout;
use crate::source::project::{self, Package, Project};
use crate::source::snapshot::Place;
use crate::source::submodules;
use crate::source::toolchain::Channel;
use crate::steps::build;
use crate::trust::authority::GitHub;
use common::failure::{ExitCode, Failure};
use common::pins;
use common::progress::Silent;
use common::provision;

/// Checks the setup without changing anything. Problems of the machine are printed, and the exit code is 3.
///
/// # Errors
/// When a setting is invalid (exit code 2).
pub(super) async fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let github = GitHub::from_env(invocation.options.release_branch.as_deref());
    let mut findings = Findings::default();

    let directory = invocation.directory()?;
    let mut root = directory.clone();
    let mut project = None;
    let mut snapshot = None;
    match Checkout::discover(&directory) {
        Ok(checkout) => {
            let state = if checkout.is_clean() {
                "clean"
            } else {
                "with uncommitted changes, which cannot be published"
            };
            findings.good("git", format!("commit {}, {state}", checkout.commit.sha));
            match checkout.snapshot(Place::Temporary, &Silent) {
                Ok(taken) => snapshot = Some(taken),
                Err(failure) => findings.failed("sources", failure),
            }
            let inside = project::path_below_root(&checkout.root, &directory)?;
            match Project::find(&checkout.root, &inside) {
                Ok(found) => {
                    root = checkout.root.join(&found.folder);
                    project = Some(found);
                }
                Err(failure) => findings.failed("workspace", failure),
            }
        }
        Err(failure) => findings.failed("git", failure),
    }
    let file = invocation.read_file(&root)?;
    // Without a workspace everything but the service can still be checked.
    let known = project.is_some();
    let project = project.unwrap_or_else(placeholder);
    let settings = invocation.settings(&root, &project, file.as_deref(), &github)?;
    let steps: Vec<_> = Step::gates().filter(|step| settings.has(*step)).collect();
    if let Some(snapshot) = &snapshot
        && let Err(failure) = submodules::require(snapshot.missing(), &steps, &settings.paths)
    {
        findings.failed("sources", failure);
    }
    if known {
        let Service {
            package,
            binary,
            port,
            health,
            ..
        } = &settings.service;
        findings.good(
            "service",
            format!("{binary} of package {package}: GET {health} on port {port}"),
        );
    }
    findings.good(
        "toolchain",
        match &settings.toolchain {
            Some(file) => format!(
                "Rust {}, because of {}",
                file.channel.as_ref().map_or(pins::RUST, Channel::name),
                file.path.display()
            ),
            None => format!("Rust {}, as there is no rust-toolchain.toml", pins::RUST),
        },
    );
    let platform = settings.platform.clone();
    let platform = platform.unwrap_or_else(Platform::default_published);
    if let Err(failure) = build::env(&settings, &platform) {
        findings.failed("build", failure);
    }
    findings.good(
        "publish",
        format!(
            "{}; repository {}/{}",
            publishing(&github),
            settings.registry,
            settings.repository
        ),
    );

    let reached = registry::Client::new(
        &settings.registry,
        &settings.repository,
        None,
        registry::Access::Read,
    )?
    .check_reachable()
    .await;
    match reached {
        Ok(()) => findings.good("registry", format!("{} is reachable", settings.registry)),
        Err(failure) => findings.note(
            "registry",
            format!("{failure}; this machine cannot publish there"),
            "Check the network if this machine is to publish. Other runs do not need the registry.",
        ),
    }

    let named = match &settings.engine {
        Choice::Url(url) => Some(url.clone()),
        Choice::Auto => find::from_environment(),
        Choice::Docker | Choice::Embedded => None,
    };
    let is_here = named.as_deref().is_none_or(find::is_on_this_machine);
    match (&settings.engine, named) {
        (_, Some(name)) => match find::check_url(&name).await {
            Ok(()) => findings.good("engine", name),
            Err(failure) => findings.failed("engine", failure),
        },
        (Choice::Embedded, None) => findings.embedded(""),
        (choice, None) => match (choice, runtime::examine().await) {
            (_, Ok((runtime, Readiness::Ready))) => {
                findings.good("engine", format!("Dagger's engine in {}", runtime.name));
            }
            (_, Ok((runtime, Readiness::NotPulled))) => {
                let name = runtime.name;
                findings.note(
                    "engine",
                    format!("{name} is available; a run will pull Dagger's engine image and try to start it"),
                    "Choose the embedded engine with --engine embedded if the image cannot be pulled.",
                );
            }
            (Choice::Docker, Err(why)) => findings.bad("engine", why, runtime::FIX.into()),
            (_, Err(why)) => findings.embedded(&format!(" ({why})")),
        },
    }
    let machine = is_here.then(Machine::here).flatten();
    let turns = Turns::new(&steps, settings.jobs, settings.memory, machine, |_| false);
    findings.good("memory", turns.description().to_owned());
    match provision::cache_root() {
        Ok(cache) => findings.good("cache", cache.display().to_string()),
        Err(failure) => findings.failed("cache", failure),
    }
    if let Some(folder) = &settings.cache_dir {
        match cache::describe(folder, settings.event.domain()) {
            Ok(what) => findings.good("cache-dir", what),
            Err(why) => findings.note(
                "cache-dir",
                why,
                "The next run fills it. To begin anew, delete the directory.",
            ),
        }
    }
    if cfg!(target_os = "linux") {
        let state = if embedded::is_running().await {
            "running"
        } else {
            "not running"
        };
        findings.good("embedded", format!("engine v{} {state}", pins::DAGGER));
    }
    let limit = DiskLimit::from_env().and_then(|limit| limit.bytes(&provision::cache_root()?));
    match limit {
        Ok(bytes) => findings.good(
            "engine-disk",
            format!(
                "an engine on this machine keeps at most {} GB",
                bytes / 1_000_000_000
            ),
        ),
        Err(failure) => findings.failed("engine-disk", failure),
    }
    match Space::of(&root).map(|space| space.available) {
        Ok(free) if free < MIN_FREE => findings.bad(
            "disk",
            format!("{} MB free", free >> 20),
            format!(
                "Free some space: images and caches need {} GB.",
                MIN_FREE >> 30
            ),
        ),
        Ok(free) => findings.good("disk", format!("{} GB free", free >> 30)),
        Err(error) => findings.note(
            "disk",
            format!("cannot read its size: {error}"),
            "Check with df that images and caches have enough space.",
        ),
    }
    report::data(&findings.text);
    Ok(if findings.problems == 0 {
        ExitCode::Success
    } else {
        ExitCode::Environment
    })
}

/// Whether a run would publish.
fn publishing(github: &GitHub) -> &'static str {
    match github.event() {
        Event::Push => "push to main on GitHub Actions: a run publishes",
        Event::PullRequest => "pull request: a run ends after the gates",
        Event::Local => "local run: a run ends after the gates",
    }
}

/// A project for the settings when there is no workspace.
fn placeholder() -> Project {
    Project {
        packages: vec![Package {
            name: "api".to_owned(),
            programs: vec!["api".to_owned()],
            ..Package::default()
        }],
        ..Project::default()
    }
}

/// The approximate disk space of a first run, in bytes.
const MIN_FREE: u64 = 5 << 30;

#[derive(Default)]
struct Findings {
    text: String,
    problems: usize,
}

impl Findings {
    fn good(&mut self, about: &str, what: String) {
        self.text += &format!("ok       {about:<10} {what}\n");
    }

    /// Adds information that does not affect local runs.
    fn note(&mut self, about: &str, what: String, fix: &str) {
        self.text += &format!("note     {about:<10} {what}\n                    {fix}\n");
    }

    /// Reports that the embedded engine is used because of `why`, and what it lacks.
    fn embedded(&mut self, why: &str) {
        self.good("engine", format!("embedded{why}"));
        for missing in embedded::missing() {
            let what = format!("{} is missing", missing.what);
            self.bad("engine", what, missing.fix);
        }
    }

    fn failed(&mut self, about: &str, failure: Failure) {
        let fix = failure.hint.clone();
        let again = || "Fix the cause, and run `ci doctor` again.".to_owned();
        self.bad(about, failure.to_string(), fix.unwrap_or_else(again));
    }

    fn bad(&mut self, about: &str, what: String, fix: String) {
        self.problems += 1;
        self.text += &format!("problem  {about:<10} {what}\n                    {fix}\n");
    }
}
