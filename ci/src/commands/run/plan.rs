//! What a run is going to do, and everything that is wrong with it before the engine is touched.

use crate::model::config_file::FILE;
use crate::model::image_name::Registry;
use crate::model::step::Step;
use crate::runner_cache::store::LIST;
use crate::settings::{CacheCommand, Command, Invocation, Settings, cache_dir};
use crate::source::checkout::{Checkout, Snapshot};
use crate::source::project::{Project, below};
use crate::steps::scan;
use crate::trust::authority::{self, GitHub, Permit, Purpose};
use common::failure::Failure;

/// Everything that can be known to be wrong is known here, before the engine is touched.
pub struct Plan {
    /// The command.
    pub invocation: Command,
    /// Everything that was said.
    pub settings: Settings,
    /// The commit.
    pub checkout: Checkout,
    /// Its files.
    pub snapshot: Snapshot,
    /// The permission to publish, where the run means to.
    pub permit: Option<Permit<Registry>>,
    /// The steps that are wanted.
    pub steps: Vec<Step>,
}

/// Looks at all of it.
///
/// # Errors
/// The first thing that is wrong: usage or settings (exit 2), a publish that is not allowed (exit 4), git (exit 3).
pub fn plan(invocation: &Invocation, github: &GitHub) -> Result<Plan, Failure> {
    let directory = invocation.directory()?;
    let mut checkout = Checkout::discover(&directory)?;
    let formats = matches!(invocation.command, Command::Fmt { fix: true });
    if formats {
        // What is formatted is the working tree, whatever git thinks of it.
        checkout = checkout.as_on_disk();
    }
    let snapshot = checkout.snapshot()?;
    let project = Project::find(snapshot.path(), &below(&checkout.root, &directory)?)?;
    let read = |name: &str| match std::fs::read_to_string(project.sources.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::usage(format!("{name} cannot be read")).because(error)),
    };
    let mut settings = invocation.settings(
        &checkout.root.join(&project.folder),
        &project,
        read(FILE)?.as_deref(),
        github,
    )?;
    if let Command::Cache {
        command: CacheCommand::Save { dir } | CacheCommand::Restore { dir },
    } = &invocation.command
    {
        settings.cache_dir = Some(cache_dir(dir)?);
    }
    if let Some(folder) = &settings.cache_dir
        && checkout.would_see(&folder.join(LIST))
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
    let mut steps = invocation.command.steps();
    let wants = !steps.is_empty();
    steps.retain(|step| settings.has(*step));
    if wants && steps.is_empty() {
        return Err(
            Failure::usage(format!("{FILE} configures nothing for this command"))
                .hint("`ci init` in an empty folder of the workspace shows how."),
        );
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
