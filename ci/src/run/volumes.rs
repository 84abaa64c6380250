//! The engine's cache volumes: their names, and how they are restored and saved.
//!
//! Caches are restored into empty volumes, and new content is saved. A failure here does not fail the run, which is only slower
//! without its caches.

use std::path::PathBuf;
use std::time::Instant;

use dagger_sdk::{Container, DaggerConn};
use sha2::{Digest as _, Sha256};

use super::context::RunContext;
use crate::engine::graphql::{EngineError, catch_query_panics};
use crate::image::archive::Platform;
use crate::model::step::Step;
use crate::runner_cache::cache::{Cache, Found};
use crate::runner_cache::contents::{self, File, LISTING};
use crate::runner_cache::place::Place;
use crate::runner_cache::store::Part;
use crate::trust::kind::Kind;
use common::failure::{Failure, OrFail};
use common::scratch;

/// The mount point of a volume while it is restored or saved.
const VOLUME: &str = "/volume";

/// Locks the volume. `$1` is the lock file, and the other arguments are the entries at the volume's top.
const LOCK_VOLUME: &str = r#"set -eu
cd /volume
exec 9>>"$1"
flock 9
shift
"#;

/// Unpacks the packs into a temporary directory of an empty volume, and then moves the entries to the top, the sources last. If
/// this is interrupted, cargo finds no sources and considers everything as new.
const RESTORE: &str = r#"for name; do
  if [ -e "$name" ]; then echo content; exit; fi
done
rm -rf .restored
if [ -z "$(ls /packs)" ]; then echo empty; exit; fi
mkdir .restored
for pack in /packs/*; do
  tar --extract --use-compress-program=zstd --file="$pack" --directory=.restored
done
for name; do
  if [ -e ".restored/$name" ]; then mv ".restored/$name" .; fi
done
rm -rf .restored
echo restored
"#;

/// Packs the files of each list.
const PACK: &str = r#"mkdir /out
for list in /lists/*; do
  tar --create --format=posix --pax-option=delete=atime,delete=ctime --numeric-owner --hard-dereference --no-recursion \
    --null --verbatim-files-from --files-from="$list" --use-compress-program='zstd -T0 -3' --file="/out/${list##*/}"
done
"#;

impl<K: Kind> RunContext<K> {
    /// The digest of cargo's environment in `step`: the toolchain image, additional packages of the distribution, and the
    /// platform. Build outputs of different environments are never mixed.
    ///
    /// # Errors
    /// When the toolchain image can be neither pulled nor replaced by a stand-in (exit code 3).
    pub async fn environment(&self, step: Step) -> Result<String, Failure> {
        let digest = self.toolchain_digest().await?;
        let platform = self.platform_of(step).unwrap_or(&self.platforms.engine);
        let packages = self.settings.compiling_packages_of(step).join(" ");
        let rust = self.rust.identity();
        let sum = Sha256::digest(format!("{digest}\n{rust}\n{packages}\n{platform}"));
        Ok(hex::encode(sum)[..16].to_owned())
    }

    /// The digest of the toolchain image and its platform, without the packages of a single repository.
    ///
    /// # Errors
    /// When the toolchain image can be neither pulled nor replaced by a stand-in (exit code 3).
    pub async fn toolchain_key(&self, platform: Option<&Platform>) -> Result<String, Failure> {
        let digest = self.toolchain_digest().await?;
        let platform = platform.unwrap_or(&self.platforms.engine);
        let sum = Sha256::digest(format!("{digest}\n{platform}"));
        Ok(hex::encode(sum)[..16].to_owned())
    }

    async fn toolchain_digest(&self) -> Result<&String, Failure> {
        let digest = self
            .toolchain
            .get_or_try_init(|| async {
                let (_, digest) = self.toolbox.rust().await?.resolve(&self.client()).await?;
                Ok::<_, Failure>(digest)
            })
            .await?;
        Ok(digest)
    }

    /// The cache key of a volume: its content is usable only with the same key.
    ///
    /// # Errors
    /// When the toolchain image can be neither pulled nor replaced by a stand-in (exit code 3).
    pub async fn key_of(&self, place: Place) -> Result<String, Failure> {
        match place {
            Place::Work(step) => self.environment(step).await,
            // Downloads do not depend on the environment.
            Place::Cargo | Place::Database => Ok("any".to_owned()),
        }
    }

    /// The name of a cache volume, which determines the runs that share it: the content of a pull request must not reach an image
    /// that main publishes. All repositories share downloads.
    ///
    /// # Errors
    /// When the toolchain image can be neither pulled nor replaced by a stand-in (exit code 3).
    pub async fn volume_of(&self, place: Place) -> Result<String, Failure> {
        let domain = self.settings.event.domain();
        let name = match place {
            Place::Cargo => "cargo-home".to_owned(),
            Place::Database => "trivy".to_owned(),
            Place::Work(step) => {
                let key = self.key_of(place).await?;
                format!(
                    "{}/{step}-{}-{key}",
                    self.settings.repository, self.rust.name
                )
            }
        };
        Ok(format!("infrastructure-lab-ci/{domain}/{name}"))
    }

    /// Restores the caches of an ephemeral runner for `place`, if the engine's volume is empty. This happens once in a run;
    /// concurrent callers wait for it.
    pub async fn restore(&self, place: Place) {
        let Some(cache) = &self.cache else { return };
        let found = cache.found_in(place);
        // Boxed to keep the futures of the steps small.
        let restored = Box::pin(found.get_or_init(|| async {
            let restored = catch_query_panics(restore(self, cache, place)).await;
            restored.unwrap_or_else(|failure| {
                cache.report_failure(&format!("cannot restore the cache of {place}"), &failure);
                // The volume may be partly restored, so that this does not count as a run without caches.
                Found::Content
            })
        }));
        restored.await;
    }

    /// Saves the new content of these volumes for the next ephemeral runner, if this run is allowed to write the caches.
    /// `lockfile` is the content of the workspace's Cargo.lock.
    pub async fn save(&self, places: &[Place], lockfile: &str) {
        let Some(cache) = &self.cache else { return };
        let begun = Instant::now();
        let saved = self.stopper.unless_stopped(Box::pin(async {
            if !cache.check_writable() {
                return Ok(());
            }
            for place in places {
                if let Err(failure) = catch_query_panics(save(self, cache, *place, lockfile)).await
                {
                    cache.report_failure(&format!("cannot save the cache of {place}"), &failure);
                }
            }
            cache.add_save_time(begun.elapsed());
            Ok(())
        }));
        if let Err(failure) = saved.await {
            cache.report_failure("cannot save the cache", &failure);
        }
    }
}

/// Creates a toolchain container with Zstandard in which the volume is mounted.
async fn volume_container<K: Kind>(
    run: &RunContext<K>,
    client: &DaggerConn,
    place: Place,
) -> Result<Container, Failure> {
    let volume = client.cache_volume(run.volume_of(place).await?);
    let container = run.toolbox.rust().await?.container(client, None)?;
    Ok(run
        .connected(client, container)
        .with_exec(vec![
            "sh",
            "-c",
            "command -v zstd >/dev/null || { apt-get -q update && apt-get -q install --yes --no-install-recommends zstd; }",
        ])
        .with_mounted_cache(VOLUME, volume)
        // The engine must not cache commands, because the content of the volume changes.
        .with_env_variable("RUN_ID", &run.id))
}

fn with_script(container: &Container, place: Place, script: &str) -> Container {
    let script = format!("{LOCK_VOLUME}{script}");
    let mut command = vec!["sh", "-c", &script, "sh", place.lock()];
    command.extend(place.tops());
    container.with_exec(command)
}

async fn restore<K: Kind>(
    run: &RunContext<K>,
    cache: &Cache,
    place: Place,
) -> Result<Found, Failure> {
    let key = run.key_of(place).await?;
    let packs = tokio::task::block_in_place(|| cache.packs_for(place, &key));
    let client = run.client();
    let mut container = volume_container(run, &client, place)
        .await?
        .with_directory("/packs", client.directory());
    for (number, (_, blob)) in packs.iter().enumerate() {
        let pack = client.host().file(blob.display().to_string());
        container = container.with_mounted_file(format!("/packs/{number}"), pack);
    }
    let output = with_script(&container, place, RESTORE).stdout().await;
    let output = output.map_err(|error| engine_failure(error.into(), "cannot unpack the cache"))?;
    Ok(match output.trim() {
        "restored" => {
            cache.restored(packs);
            Found::Restored
        }
        "empty" => Found::Empty,
        _ => Found::Content,
    })
}

async fn save<K: Kind>(
    run: &RunContext<K>,
    cache: &Cache,
    place: Place,
    lockfile: &str,
) -> Result<(), Failure> {
    let key = run.key_of(place).await?;
    let client = run.client();
    let container = volume_container(run, &client, place).await?;
    let listed = format!(
        "mkdir /out\n{LISTING} > /out/listing\nif [ -e used ]; then cp used /out/; else : > /out/used; fi\n"
    );
    let folder = scratch::folder().or_environment("cannot create a temporary directory")?;
    with_script(&container, place, &listed)
        .directory("/out")
        .export(folder.path().display().to_string())
        .await
        .map_err(|error| engine_failure(error.into(), "cannot list the volume"))?;
    let read = |name: &str| {
        std::fs::read(folder.path().join(name)).or_environment("the engine returned no list")
    };
    let unexpected = "unexpected content of the volume";
    let files = contents::parse_listing(&read("listing")?)
        .map_err(|error| Failure::environment(unexpected).because(error))?;
    let used = String::from_utf8_lossy(&read("used")?).into_owned();
    let parts = select_parts(place, &files, &used, lockfile)
        .map_err(|error| Failure::environment(unexpected).because(error))?;

    let lists = scratch::folder().or_environment("cannot create a temporary directory")?;
    let mut new = Vec::new();
    for (part, files) in parts {
        if files.is_empty() {
            continue;
        }
        let content = contents::digest(&files);
        if cache.is_unchanged(part, &key, &content) {
            continue;
        }
        let name = format!("{}", new.len());
        std::fs::write(lists.path().join(&name), contents::names(&files))
            .or_environment("cannot write the list of files")?;
        new.push((part, content, contents::bytes(&files)));
    }
    if new.is_empty() {
        return Ok(());
    }
    let packs = cache.unfinished_file(&format!("packs-{place}"))?;
    let lists = client.host().directory(lists.path().display().to_string());
    with_script(
        &container.with_mounted_directory("/lists", lists),
        place,
        PACK,
    )
    .directory("/out")
    .export(packs.display().to_string())
    .await
    .map_err(|error| engine_failure(error.into(), "cannot pack the volume"))?;
    for (number, (part, content, unpacked)) in new.into_iter().enumerate() {
        let file: PathBuf = packs.join(number.to_string());
        tokio::task::block_in_place(|| cache.add(part, &key, content, file, unpacked))
            .or_environment("the engine returned no pack")?;
    }
    Ok(())
}

/// Selects the files to save from a volume, by part.
fn select_parts(
    place: Place,
    files: &[File],
    used: &str,
    lockfile: &str,
) -> eyre::Result<Vec<(Part, Vec<File>)>> {
    Ok(match place {
        Place::Cargo => vec![(Part::Cargo, contents::select_from_home(files, lockfile)?)],
        Place::Work(step) => {
            let selection = contents::select_used(files, used)?;
            vec![
                (Part::Dependencies(step), selection.dependencies),
                (Part::Workspace(step), selection.workspace),
            ]
        }
        Place::Database => {
            let database = files.iter().filter(|it| it.is_file_below("db"));
            vec![(Part::Database, database.cloned().collect())]
        }
    })
}

fn engine_failure(error: EngineError, message: &str) -> Failure {
    match error {
        EngineError::Exec { output, .. } => {
            let cause = output.lines().last().unwrap_or_default();
            Failure::environment(format!("{message}: {cause}"))
        }
        other => other.into_environment(message),
    }
}
