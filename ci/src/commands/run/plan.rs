//! Plans a run, and validates as much as possible before an engine is used.

use crate::model::config_file::FILE;
use crate::model::event::Event;
use crate::model::image_name::Registry;
use crate::model::step::Step;
use crate::report;
use crate::runner_cache::store::LIST;
use crate::settings::{CacheCommand, Command, Invocation, Settings, cache_dir};
use crate::source::checkout::Checkout;
use crate::source::project::{Project, path_below_root};
use crate::source::snapshot::{Place, Snapshot};
use crate::source::submodules;
use crate::steps::scan;
use crate::trust::authority::{self, GitHub, Permit, Purpose};
use common::failure::Failure;
use common::progress::Progress;

/// A validated run.
pub(crate) struct Plan {
    /// The command to run.
    pub invocation: Command,
    pub settings: Settings,
    pub checkout: Checkout,
    /// The files of the checkout.
    pub snapshot: Snapshot,
    /// The permission to publish, if the run publishes.
    pub permit: Option<Permit<Registry>>,
    /// The requested steps, with those that they need.
    pub steps: Vec<Step>,
}

/// Plans and validates a run. `progress` shows what is fetched.
///
/// # Errors
/// When the settings are invalid (exit code 2), git fails (exit code 3), or publishing is not allowed (exit code 4).
pub(crate) fn plan(
    invocation: &Invocation,
    github: &GitHub,
    progress: &dyn Progress,
) -> Result<Plan, Failure> {
    let directory = invocation.directory()?;
    let mut checkout = Checkout::discover(&directory)?;
    let formats = matches!(invocation.command, Command::Fmt { fix: true });
    if formats {
        // --fix formats the working tree, whatever its git state is.
        checkout = checkout.as_on_disk();
    }
    let event = invocation.options.event.unwrap_or_else(|| github.event());
    let may_publish = event == Event::Push || matches!(invocation.command, Command::Publish);
    // What is published depends on nothing that an earlier run has left.
    let place = if may_publish {
        Place::Temporary
    } else {
        Place::Kept
    };
    let snapshot = checkout.snapshot(place, progress)?;
    let project = Project::find(
        snapshot.path(),
        &path_below_root(&checkout.root, &directory)?,
    )?;
    let read = |name: &str| match std::fs::read_to_string(project.sources.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::usage(format!("cannot read {name}")).because(error)),
    };
    let mut settings = invocation.settings(
        &checkout.root.join(&project.folder),
        &project,
        invocation.read_file(&project.sources)?.as_deref(),
        github,
    )?;
    let is_run = !invocation.command.steps().is_empty();
    if is_run {
        // A run that is refused below must not leave the reports of an earlier one.
        report::clear(&settings.report_dir)?;
    }
    if is_run || matches!(invocation.command, Command::Shell { .. }) {
        settings.read_access()?;
    }
    let checkout = checkout.with_tag_length(settings.tag_length)?;
    if let Command::Cache {
        command: CacheCommand::Save { dir } | CacheCommand::Restore { dir },
    } = &invocation.command
    {
        settings.cache_dir = Some(cache_dir(dir)?);
    }
    if let Some(folder) = &settings.cache_dir
        && checkout.is_source_path(&folder.join(LIST))
    {
        return Err(Failure::usage(format!(
            "cache directory {} is part of the sources: it is in the working tree, and git does not ignore it",
            folder.display()
        ))
        .hint("Use a directory elsewhere or below target/, or add it to .gitignore."));
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
            "repository {} has no owner, which {} requires",
            settings.repository, settings.registry
        ))
        .hint("Set repository in ci.toml to OWNER/NAME."));
    }
    if permit.is_some()
        && let Some(base) = &settings.image.base
        && base.digest().is_none()
    {
        return Err(Failure::usage(format!(
            "image.base in ci.toml has no digest: {base} can change, and published images must be reproducible"
        ))
        .hint("Run `ci build` to get the line with the current digest."));
    }
    let mut steps = invocation.command.steps();
    let runs_steps = !steps.is_empty();
    steps.retain(|step| settings.has(*step));
    if runs_steps && steps.is_empty() {
        return Err(
            Failure::usage(format!("{FILE} configures nothing for this command"))
                .hint("Add a [[gate]] with name and run to ci.toml."),
        );
    }
    let reading = match invocation.command {
        Command::Shell { step } if step.definition().reads_sources => vec![step],
        _ => steps.clone(),
    };
    submodules::require(snapshot.missing(), &reading, &settings.paths)?;
    Ok(Plan {
        invocation: invocation.command.clone(),
        settings,
        checkout,
        snapshot,
        permit,
        steps,
    })
}
