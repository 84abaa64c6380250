//! `ci doctor`: what a run would use here, and every problem with its remedy.

use crate::engine::choice::Choice;
use crate::engine::embedded;
use crate::engine::find;
use crate::engine::runtime::{self, Readiness};
use crate::image::registry;
use crate::model::config_file::FILE;
use crate::model::event::Event;
use crate::report;
use crate::runner_cache::cache;
use crate::settings::Invocation;
use crate::settings::tables::Service;
use crate::source::checkout::Checkout;
use crate::source::project::{self, Package, Project};
use crate::trust::authority::GitHub;
use common::failure::{ExitCode, Failure};
use common::provision;

/// Looks around, changes nothing.
///
/// # Errors
/// When what was said on the command line is not valid. Problems of the machine are no errors of the doctor: they are
/// printed, and the exit code is 3.
pub async fn run(invocation: &Invocation) -> Result<ExitCode, Failure> {
    let github = GitHub::from_env();
    let mut findings = Findings::default();

    let directory = invocation.directory()?;
    let mut root = directory.clone();
    let mut project = None;
    match Checkout::discover(&directory) {
        Ok(checkout) => {
            let state = if checkout.is_clean() {
                "clean"
            } else {
                "with uncommitted changes: it cannot be published"
            };
            findings.good("git", format!("commit {}, {state}", checkout.commit.sha));
            let inside = project::below(&checkout.root, &directory)?;
            match Project::find(&checkout.root, &inside) {
                Ok(found) => {
                    root = checkout.root.join(&found.folder);
                    project = Some(found);
                }
                Err(failure) => findings.bad(
                    "workspace",
                    failure.to_string(),
                    failure.hint.unwrap_or_default(),
                ),
            }
        }
        Err(failure) => findings.bad("git", failure.to_string(), failure.hint.unwrap_or_default()),
    }
    let file = std::fs::read_to_string(root.join(FILE)).ok();
    // Without a workspace there is no service, but everything else can be looked at.
    let known = project.is_some();
    let project = project.unwrap_or_else(placeholder);
    let settings = invocation.settings(&root, &project, file.as_deref(), &github)?;
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
            format!("{binary} of the package {package}: GET {health} on port {port}"),
        );
    }
    findings.good(
        "publish",
        format!(
            "{}; to {}/{}",
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
    .reach()
    .await;
    findings.note(
        "registry",
        match reached {
            Ok(()) => format!("{} answers", settings.registry),
            Err(failure) => format!("{failure}: nothing can be published there from here"),
        },
    );

    let named = match &settings.engine {
        Choice::Url(url) => Some(url.clone()),
        Choice::Auto => find::named(),
        Choice::Docker | Choice::Embedded => None,
    };
    match (&settings.engine, named) {
        (_, Some(name)) => match find::listens(&name).await {
            Ok(()) => findings.good("engine", name),
            Err(failure) => findings.bad(
                "engine",
                failure.to_string(),
                failure.hint.unwrap_or_default(),
            ),
        },
        (Choice::Embedded, None) => findings.embedded(""),
        (choice, None) => match (choice, runtime::examine().await) {
            (_, Ok((runtime, Readiness::Ready))) => {
                findings.good("engine", format!("Dagger's own way, in {}", runtime.name));
            }
            (_, Ok((runtime, Readiness::NotPulled))) => {
                let name = runtime.name;
                findings.note(
                    "engine",
                    format!("{name} answers; a run pulls Dagger's engine with it, and sees whether it may run"),
                );
            }
            (Choice::Docker, Err(why)) => findings.bad("engine", why, runtime::REMEDY.into()),
            (_, Err(why)) => findings.embedded(&format!(" ({why})")),
        },
    }
    match provision::cache_root() {
        Ok(cache) => findings.good(
            "cache",
            format!(
                "{}, {} MB",
                cache.display(),
                provision::size_of(&cache) >> 20
            ),
        ),
        Err(failure) => findings.bad(
            "cache",
            failure.to_string(),
            failure.hint.unwrap_or_default(),
        ),
    }
    if let Some(folder) = &settings.cache_dir {
        match cache::describe(folder, settings.event.domain()) {
            Ok(what) => findings.good("cache-dir", what),
            Err(why) => findings.note("cache-dir", why),
        }
    }
    if let Ok(status) = embedded::status().await {
        let state = if status.healthy {
            "runs"
        } else {
            "does not run"
        };
        findings.good(
            "embedded",
            format!(
                "the engine {} {state}; state {} MB",
                status.version,
                status.state_bytes >> 20
            ),
        );
    }
    match free_space(&root) {
        Some(free) if free < MIN_FREE => findings.bad(
            "disk",
            format!("{} MB are free", free >> 20),
            format!(
                "Free some space: images and caches want {} GB.",
                MIN_FREE >> 30
            ),
        ),
        Some(free) => findings.good("disk", format!("{} GB are free", free >> 30)),
        None => {}
    }
    report::data(&findings.text);
    Ok(if findings.problems == 0 {
        ExitCode::Success
    } else {
        ExitCode::Environment
    })
}

/// What `ci doctor` says of publishing here.
fn publishing(github: &GitHub) -> &'static str {
    match github.event() {
        Event::Push => "this is a push to main on GitHub Actions: a run means to publish",
        Event::PullRequest => "this is a pull request: a run ends after its gates",
        Event::Local => "this is a local run: it ends after its gates",
    }
}

/// Stands for the workspace where there is none.
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

/// What a first run takes on the disk, about: 5 GiB.
const MIN_FREE: u64 = 5 << 30;

#[cfg(unix)]
fn free_space(path: &std::path::Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some(wide(stat.blocks_available()).saturating_mul(wide(stat.fragment_size())))
}

/// These numbers have other widths on other systems.
#[cfg(unix)]
fn wide(number: impl Into<u64>) -> u64 {
    number.into()
}

#[cfg(not(unix))]
fn free_space(_: &std::path::Path) -> Option<u64> {
    None
}

#[derive(Default)]
struct Findings {
    text: String,
    problems: usize,
}

impl Findings {
    fn good(&mut self, about: &str, what: String) {
        self.text += &format!("ok       {about:<10} {what}\n");
    }

    /// Not good, but no run of this machine's own needs it.
    fn note(&mut self, about: &str, what: String) {
        self.text += &format!("note     {about:<10} {what}\n");
    }

    /// The embedded engine is the one, and `why`.
    fn embedded(&mut self, why: &str) {
        self.good("engine", format!("the embedded one{why}"));
        for missing in embedded::missing() {
            let what = format!("{} is missing", missing.what);
            self.bad("engine", what, missing.remedy);
        }
    }

    fn bad(&mut self, about: &str, what: String, remedy: String) {
        self.problems += 1;
        self.text += &format!("problem  {about:<10} {what}\n                    {remedy}\n");
    }
}
