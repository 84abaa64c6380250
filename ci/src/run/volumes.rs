//! The engine's volumes: their names, and how what is worth it is carried into and out of them.
//!
//! What is in the folder of the caches goes into volumes that are empty, and what is new in them comes out. A failure here is never
//! the run's: without its cache it is only slower.

use std::path::PathBuf;
use std::time::Instant;

use dagger_sdk::{Container, DaggerConn};
use sha2::{Digest as _, Sha256};

use super::context::RunContext;
use crate::engine::graphql::{EngineError, unbroken};
use crate::image::archive::Platform;
use crate::model::step::Step;
use crate::runner_cache::cache::{Cache, Found};
use crate::runner_cache::contents::{self, File, LISTING};
use crate::runner_cache::place::Place;
use crate::runner_cache::store::Part;
use crate::trust::kind::Kind;
use common::failure::{Failure, OrFail};
use common::pins;

/// Where a volume is while something is put into it or taken out.
const VOLUME: &str = "/volume";

/// Takes the volume for this container alone. `$1` is the lock, the rest is what is at the volume's top.
const ALONE: &str = r#"set -eu
cd /volume
exec 9>>"$1"
flock 9
shift
"#;

/// Unpacks the packs beside a volume that is empty, and then moves all of it to its place: who finds it half moved, finds it without
/// its sources, and so takes everything for new.
const BRING: &str = r#"for name; do
  if [ -e "$name" ]; then echo something; exit; fi
done
rm -rf .brought
if [ -z "$(ls /packs)" ]; then echo nothing; exit; fi
mkdir .brought
for pack in /packs/*; do
  tar --extract --use-compress-program=zstd --file="$pack" --directory=.brought
done
for name; do
  if [ -e ".brought/$name" ]; then mv ".brought/$name" .; fi
done
rm -rf .brought
echo brought
"#;

/// Packs each list of files that was handed over.
const PACK: &str = r#"mkdir /out
for list in /lists/*; do
  tar --create --format=posix --pax-option=delete=atime,delete=ctime --numeric-owner --hard-dereference --no-recursion \
    --null --verbatim-files-from --files-from="$list" --use-compress-program='zstd -T0 -3' --file="/out/${list##*/}"
done
"#;

impl<K: Kind> RunContext<K> {
    /// The digest of what cargo works in when it does `step`: the toolchain's image, the distribution's packages beside it, the platform. What was made in
    /// another environment is never mixed with what is made in this one.
    ///
    /// # Errors
    /// When the toolchain cannot be had.
    pub async fn environment(&self, step: Step) -> Result<String, Failure> {
        let digest = self.toolchain_digest().await?;
        let platform = self.platform_of(step).unwrap_or(&self.platforms.engine);
        let packages = self.settings.packages_of(step).join(" ");
        let sum = Sha256::digest(format!("{digest}\n{packages}\n{platform}"));
        Ok(hex::encode(sum)[..16].to_owned())
    }

    /// The digest of the toolchain's image and the platform that it runs on, without the distribution's packages of one repository.
    ///
    /// # Errors
    /// When the toolchain image cannot be pulled, nor a stand-in for it be made.
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
            Place::Work(step) => self.environment(step).await,
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

    /// Brings what the caches of a throw-away runner have for `place` into the engine, where its volume is empty. Once in a run;
    /// whoever comes meanwhile waits.
    pub async fn bring(&self, place: Place) {
        let Some(cache) = &self.cache else { return };
        let found = cache.found_in(place);
        // In a box: each step's future would have it.
        let bring = Box::pin(found.get_or_init(|| async {
            let brought = unbroken(bring(self, cache, place)).await;
            brought.unwrap_or_else(|failure| {
                cache.fails(&format!("the cache of {place} is not used"), &failure);
                // What is half there is not there, but it is not a run without anything either.
                Found::Something
            })
        }));
        bring.await;
    }

    /// Takes what is new in these volumes out of the engine, for the next throw-away runner. `lockfile` is the text of the
    /// workspace's Cargo.lock. Nothing happens where the folder may not be written.
    pub async fn take(&self, places: &[Place], lockfile: &str) {
        let Some(cache) = &self.cache else { return };
        let begun = Instant::now();
        let taken = self.stopper.unless_stopped(Box::pin(async {
            if !cache.may_save() {
                return Ok(());
            }
            for place in places {
                if let Err(failure) = unbroken(take(self, cache, *place, lockfile)).await {
                    cache.fails(&format!("the cache of {place} is not kept"), &failure);
                }
            }
            cache.saving_took(begun.elapsed());
            Ok(())
        }));
        if let Err(failure) = taken.await {
            cache.fails("the cache is not kept", &failure);
        }
    }
}

/// The toolchain's container with the volume in it, and Zstandard.
async fn helper<K: Kind>(
    run: &RunContext<K>,
    client: &DaggerConn,
    place: Place,
) -> Result<Container, Failure> {
    let volume = client.cache_volume(run.volume_of(place).await?);
    Ok(run
        .toolbox
        .rust()
        .await?
        .container(client, None)?
        .with_exec(vec![
            "sh",
            "-c",
            "command -v zstd >/dev/null || { apt-get -q update && apt-get -q install --yes --no-install-recommends zstd; }",
        ])
        .with_mounted_cache(VOLUME, volume)
        // What is in a volume is another thing each time.
        .with_env_variable("RUN_ID", &run.id))
}

fn with_script(container: &Container, place: Place, script: &str) -> Container {
    let script = format!("{ALONE}{script}");
    let mut command = vec!["sh", "-c", &script, "sh", place.lock()];
    command.extend(place.tops());
    container.with_exec(command)
}

async fn bring<K: Kind>(
    run: &RunContext<K>,
    cache: &Cache,
    place: Place,
) -> Result<Found, Failure> {
    let key = run.key_of(place).await?;
    let packs = tokio::task::block_in_place(|| cache.packs_for(place, &key));
    let client = run.client();
    let mut container = helper(run, &client, place)
        .await?
        .with_directory("/packs", client.directory());
    for (number, (_, blob)) in packs.iter().enumerate() {
        let pack = client.host().file(blob.display().to_string());
        container = container.with_mounted_file(format!("/packs/{number}"), pack);
    }
    let said = with_script(&container, place, BRING).stdout().await;
    let said = said.map_err(|error| cannot(error.into(), "unpack it"))?;
    Ok(match said.trim() {
        "brought" => {
            cache.brought(packs);
            Found::Brought
        }
        "nothing" => Found::Nothing,
        _ => Found::Something,
    })
}

async fn take<K: Kind>(
    run: &RunContext<K>,
    cache: &Cache,
    place: Place,
    lockfile: &str,
) -> Result<(), Failure> {
    let key = run.key_of(place).await?;
    let client = run.client();
    let container = helper(run, &client, place).await?;
    let listed = format!(
        "mkdir /out\n{LISTING} > /out/listing\nif [ -e used ]; then cp used /out/; else : > /out/used; fi\n"
    );
    let folder = tempfile::tempdir().or_environment("cannot make a folder for the lists")?;
    with_script(&container, place, &listed)
        .directory("/out")
        .export(folder.path().display().to_string())
        .await
        .map_err(|error| cannot(error.into(), "look into it"))?;
    let read = |name: &str| {
        std::fs::read(folder.path().join(name)).or_environment("the engine gave no list")
    };
    let strange = "the volume has something strange in it";
    let files = contents::listing(&read("listing")?)
        .map_err(|error| Failure::environment(strange).because(error))?;
    let used = String::from_utf8_lossy(&read("used")?).into_owned();
    let parts = parts(place, &files, &used, lockfile)
        .map_err(|error| Failure::environment(strange).because(error))?;

    let lists = tempfile::tempdir().or_environment("cannot make a folder for the lists")?;
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
            .or_environment("cannot write a list")?;
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
    .map_err(|error| cannot(error.into(), "pack it"))?;
    for (number, (part, content, unpacked)) in new.into_iter().enumerate() {
        let file: PathBuf = packs.join(number.to_string());
        tokio::task::block_in_place(|| cache.add(part, &key, content, file, unpacked))
            .or_environment("the engine gave no pack")?;
    }
    Ok(())
}

/// What of a volume is worth carrying, by part.
fn parts(
    place: Place,
    files: &[File],
    used: &str,
    lockfile: &str,
) -> eyre::Result<Vec<(Part, Vec<File>)>> {
    Ok(match place {
        Place::Cargo => vec![(Part::Cargo, contents::worth_of_home(files, lockfile)?)],
        Place::Work(step) => {
            let worth = contents::worth(files, used)?;
            vec![
                (Part::Dependencies(step), worth.dependencies),
                (Part::Workspace(step), worth.workspace),
            ]
        }
        Place::Database => {
            let database = files.iter().filter(|it| it.is_file_below("db"));
            vec![(Part::Database, database.cloned().collect())]
        }
    })
}

fn cannot(error: EngineError, what: &str) -> Failure {
    match error {
        EngineError::Exec { output, .. } => {
            let said = output.lines().last().unwrap_or_default().to_owned();
            Failure::environment(format!("the engine cannot {what}: {said}"))
        }
        other => other.into_environment(&format!("the engine cannot {what}")),
    }
}
