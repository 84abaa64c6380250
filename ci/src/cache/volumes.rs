//! The engine's volumes: what is in the folder goes into those that are empty, and what is new in them comes out.
//!
//! A failure here is never the run's: without its cache it is only slower.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use dagger_sdk::{Container, DaggerConn};

use super::contents::{self, File, LISTING};
use super::store::{Entry, Part};
use super::{Cache, Carried, Found, millis};
use crate::engine::{EngineError, unbroken};
use crate::evidence::Kind;
use crate::failure::{Failure, OrFail};
use crate::run::Run;
use crate::step::Step;

/// A volume that is worth carrying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Cargo's home.
    Cargo,
    /// Where a step's cargo works.
    Work(Step),
    /// The scanner's cache, with its database.
    Database,
}

impl Place {
    /// All of them, but for the volume of `fmt`, which compiles nothing.
    pub const ALL: [Self; 5] = [
        Self::Cargo,
        Self::Work(Step::Test),
        Self::Work(Step::Lint),
        Self::Work(Step::Build),
        Self::Database,
    ];

    fn parts(self) -> Vec<Part> {
        match self {
            Self::Cargo => vec![Part::Cargo],
            Self::Work(step) => vec![Part::Dependencies(step), Part::Workspace(step)],
            Self::Database => vec![Part::Database],
        }
    }

    /// What is at the top of the volume, each in its turn: with the last one it is whole.
    const fn tops(self) -> &'static [&'static str] {
        match self {
            Self::Cargo => &["git", "registry"],
            Self::Work(_) => &["used", "links", "target", "src"],
            Self::Database => &["db"],
        }
    }

    /// What keeps two who work in it apart.
    const fn lock(self) -> &'static str {
        match self {
            // Cargo's own.
            Self::Cargo => ".package-cache",
            Self::Work(_) | Self::Database => "lock",
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cargo => f.write_str("cargo"),
            Self::Work(step) => step.fmt(f),
            Self::Database => f.write_str("database"),
        }
    }
}

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

/// The toolchain's container with the volume in it, and Zstandard.
async fn helper<K: Kind>(
    run: &Run<K>,
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

impl Cache {
    /// Brings what the folder has of `place` into the engine, where its volume is empty. Once in a run; whoever comes meanwhile
    /// waits.
    pub async fn bring<K: Kind>(&self, run: &Run<K>, place: Place) {
        let cell = Arc::clone(self.state().places.entry(place).or_default());
        cell.get_or_init(|| async {
            let brought = unbroken(self.bring_now(run, place)).await;
            brought.unwrap_or_else(|failure| {
                self.fails(&format!("the cache of {place} is not used"), &failure);
                // What is half there is not there, but it is not a run without anything either.
                Found::Something
            })
        })
        .await;
    }

    async fn bring_now<K: Kind>(&self, run: &Run<K>, place: Place) -> Result<Found, Failure> {
        let key = run.key_of(place).await?;
        let mut packs = Vec::new();
        for part in place.parts() {
            let Some(entry) = self.store.find(&self.of, part, &key) else {
                if self.store.has_other(&self.of, part, &key) {
                    self.ignore(&part, "it is of another toolchain".to_owned());
                }
                continue;
            };
            match tokio::task::block_in_place(|| self.store.blob(entry, place.tops())) {
                Ok(blob) => packs.push((entry, blob)),
                Err(why) => self.ignore(&part, format!("{why:#}")),
            }
        }
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
        let found = match said.trim() {
            "brought" => Found::Brought,
            "nothing" => Found::Nothing,
            _ => Found::Something,
        };
        if found == Found::Brought {
            let mut state = self.state();
            for (entry, _) in packs {
                state.restored.insert(entry.part, Carried::of(entry));
                state.used.push((entry.part, entry.key.clone()));
            }
        }
        Ok(found)
    }

    /// Takes what is new in these volumes out of the engine, for the folder. Nothing happens where it may not be written.
    pub async fn take<K: Kind>(&self, run: &Run<K>, places: &[Place], lockfile: &str) {
        let begun = Instant::now();
        if let Some(why) = self.store.closed() {
            let folder = self.store.folder().display();
            self.narrator
                .notice(&format!("the cache in {folder} is left as it is: {why}"));
            return;
        }
        for place in places {
            if let Err(failure) = unbroken(self.take_now(run, *place, lockfile)).await {
                self.fails(&format!("the cache of {place} is not kept"), &failure);
            }
        }
        self.state().save_ms += millis(begun.elapsed());
    }

    async fn take_now<K: Kind>(
        &self,
        run: &Run<K>,
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
            let known = self.store.find(&self.of, part, &key);
            if known.is_some_and(|known| known.content == content) {
                let mut state = self.state();
                state.unchanged.push(part);
                state.used.push((part, key.clone()));
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
        let packs = self.unfinished_file(&format!("packs-{place}"))?;
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
            let file = packs.join(number.to_string());
            let entry: Entry =
                tokio::task::block_in_place(|| self.entry(part, &key, content, &file, unpacked))
                    .or_environment("the engine gave no pack")?;
            self.state().new.push((entry, file));
        }
        Ok(())
    }

    /// A new path in a folder of the store's for what is not whole yet.
    pub(super) fn unfinished_file(&self, name: &str) -> Result<PathBuf, Failure> {
        let mut state = self.state();
        let folder = match state.unfinished.take() {
            Some(there) => there,
            None => self.store.unfinished()?,
        };
        let path = folder.path().join(name);
        state.unfinished = Some(folder);
        Ok(path)
    }
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
