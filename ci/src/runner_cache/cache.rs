//! What a run does with the caches that it was given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::key::Key;
use super::place::Place;
use super::store::{self, Changes, Entry, Part, Store, Written};
use crate::model::event::Domain;
use crate::model::record::{CacheReport, Carried, Cold, Ignored, Passed, Record, Status};
use crate::model::step::Step;
use common::failure::Failure;
use common::progress::{LastNotice, Progress};

/// What was found in a volume of the engine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was in use before: nothing was brought.
    Something,
    /// Nothing, and nothing was brought.
    Nothing,
    /// Nothing, and something was brought.
    Brought,
}

/// The caches of one run.
pub struct Cache {
    pub(super) store: Store,
    /// The repository whose parts they are.
    pub(super) of: String,
    commit: String,
    narrator: Arc<dyn Progress>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) places: BTreeMap<Place, Arc<OnceCell<Found>>>,
    pub(super) restored: BTreeMap<Part, Carried>,
    pub(super) ignored: Vec<Ignored>,
    /// Parts that were of use.
    pub(super) used: Vec<(Part, String)>,
    /// What was taken from the passes.
    pub(super) before: BTreeMap<Step, Passed>,
    /// What has passed now.
    pub(super) now: BTreeMap<Step, (Key, tempfile::TempDir)>,
    /// Parts for the folder, with the files that they are.
    pub(super) new: Vec<(Entry, PathBuf)>,
    /// The toolchain that cargo-auditable was used for, and the program.
    pub(super) tool: Option<(String, PathBuf)>,
    pub(super) unchanged: Vec<Part>,
    pub(super) unfinished: Option<store::Unfinished>,
    pub(super) save_ms: u64,
    pub(super) failures: Vec<String>,
}

impl Cache {
    /// The caches in `folder`, which need not exist, for a run of `domain` on `commit` of the repository `of`.
    #[must_use]
    pub fn open(
        folder: &Path,
        domain: Domain,
        of: String,
        commit: String,
        narrator: Arc<dyn Progress>,
    ) -> Self {
        Self {
            store: Store::open(folder, domain, &*narrator),
            of,
            commit,
            narrator,
            state: Mutex::default(),
        }
    }

    /// Tells of a failure that is not the run's: without its cache it is only slower.
    pub fn fails(&self, what: &str, failure: &Failure) {
        self.narrator.notice(&format!("{what}: {failure}"));
        self.state().failures.push(format!("{what}: {failure}"));
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that a part is not used, and says why.
    pub(super) fn ignore(&self, part: &dyn std::fmt::Display, reason: String) {
        self.narrator
            .notice(&format!("the cache's {part} is not used: {reason}"));
        self.state().ignored.push(Ignored {
            part: part.to_string(),
            reason,
        });
    }

    pub(super) fn entry(
        &self,
        part: Part,
        key: &str,
        content: String,
        file: &Path,
        unpacked: u64,
    ) -> std::io::Result<Entry> {
        let (sha256, bytes) = store::measure(file)?;
        let now = Timestamp::now();
        Ok(Entry {
            of: self.of.clone(),
            part,
            key: key.to_owned(),
            content,
            sha256,
            bytes,
            unpacked,
            commit: self.commit.clone(),
            made: now,
            used: now,
        })
    }

    /// What was found in the engine's volume of `place`, once it has been looked into.
    pub fn found_in(&self, place: Place) -> Arc<OnceCell<Found>> {
        Arc::clone(self.state().places.entry(place).or_default())
    }

    /// The parts of `place` that are valid for `key`, with their files. What is not whole is passed over with a word.
    pub fn packs_for(&self, place: Place, key: &str) -> Vec<(Entry, PathBuf)> {
        let mut packs = Vec::new();
        for part in place.parts() {
            let Some(entry) = self.store.find(&self.of, part, key) else {
                if self.store.has_other(&self.of, part, key) {
                    self.ignore(&part, "it is of another toolchain".to_owned());
                }
                continue;
            };
            match self.store.blob(entry, place.tops()) {
                Ok(blob) => packs.push((entry.clone(), blob)),
                Err(why) => self.ignore(&part, format!("{why:#}")),
            }
        }
        packs
    }

    /// Remembers that these parts are in the engine now.
    pub fn brought(&self, packs: Vec<(Entry, PathBuf)>) {
        let mut state = self.state();
        for (entry, _) in packs {
            state.restored.insert(entry.part, entry.carried());
            state.used.push((entry.part, entry.key));
        }
    }

    /// Whether the folder may be written; says why where it may not.
    #[must_use]
    pub fn may_save(&self) -> bool {
        let Some(why) = self.store.closed() else {
            return true;
        };
        let folder = self.store.folder().display();
        self.narrator
            .notice(&format!("the cache in {folder} is left as it is: {why}"));
        false
    }

    /// Whether the folder has this part already, with the same content.
    pub fn is_unchanged(&self, part: Part, key: &str, content: &str) -> bool {
        let known = self.store.find(&self.of, part, key);
        let unchanged = known.is_some_and(|known| known.content == content);
        if unchanged {
            let mut state = self.state();
            state.unchanged.push(part);
            state.used.push((part, key.to_owned()));
        }
        unchanged
    }

    /// Remembers a new part for the folder: a pack that lies in `file`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn add(
        &self,
        part: Part,
        key: &str,
        content: String,
        file: PathBuf,
        unpacked: u64,
    ) -> std::io::Result<()> {
        let entry = self.entry(part, key, content, &file, unpacked)?;
        self.state().new.push((entry, file));
        Ok(())
    }

    /// Adds to the time that the saving has taken.
    pub fn saving_took(&self, time: Duration) {
        self.state().save_ms += millis(time);
    }

    /// A new path in a folder of the store's for what is not whole yet.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn unfinished_file(&self, name: &str) -> Result<PathBuf, Failure> {
        let mut state = self.state();
        let folder = match state.unfinished.take() {
            Some(there) => there,
            None => self.store.unfinished()?,
        };
        let path = folder.path().join(name);
        state.unfinished = Some(folder);
        Ok(path)
    }

    /// How long cargo's steps took together, where each of them was done or had passed before.
    fn span(records: &BTreeMap<Step, Record>) -> Option<u64> {
        // A project need not have every step.
        let has = |step: &&Step| records.contains_key(step) || !step.definition().optional;
        let cargos = Step::all().iter().filter(has);
        let cargos = cargos.filter(|step| step.definition().reads_sources);
        let ends = cargos.map(|step| {
            let record = records.get(step)?;
            let start = record.start?.as_millisecond();
            (record.status == Status::Passed).then(|| {
                (
                    start,
                    start + i64::try_from(record.duration_ms).unwrap_or(i64::MAX),
                )
            })
        });
        let ends: Option<Vec<_>> = ends.collect();
        let ends = ends?;
        let first = ends.iter().map(|(start, _)| *start).min()?;
        let last = ends.iter().map(|(_, end)| *end).max()?;
        u64::try_from(last - first).ok()
    }

    /// Writes the folder, and says what became of everything. `log` is what a step has written.
    pub async fn close(
        self,
        records: &BTreeMap<Step, Record>,
        log: impl Fn(Step) -> String,
    ) -> CacheReport {
        let begun = std::time::Instant::now();
        let span = Self::span(records);
        let cold = self.store.cold(&self.of).cloned();
        let nothing_was_there = {
            let state = self.state();
            let has = |step: &&Step| records.contains_key(step) || !step.definition().optional;
            let compile = Step::all().iter().filter(has);
            let mut compile = compile.filter(|step| step.definition().compiles);
            state.before.is_empty()
                && compile.all(|step| {
                    let place = state.places.get(&Place::Work(*step));
                    let found = place.and_then(|it| it.get().copied());
                    found == Some(Found::Nothing)
                })
        };
        let mut written = Written::default();
        if self.store.closed().is_none() {
            self.add_passes(records, log);
            self.add_tool();
            let changes = {
                let mut state = self.state();
                state.new.sort_by_key(|(entry, _)| entry.part);
                state.unchanged.sort_unstable();
                Changes {
                    new: std::mem::take(&mut state.new),
                    used: std::mem::take(&mut state.used),
                    cold: span.filter(|_| nothing_was_there).map(|duration_ms| Cold {
                        of: self.of.clone(),
                        commit: self.commit.clone(),
                        duration_ms,
                    }),
                }
            };
            let sizes: Vec<_> = changes
                .new
                .iter()
                .map(|(entry, _)| entry.carried())
                .collect();
            match self.store.write(&self.of, changes, &*self.narrator).await {
                Ok(done) => written = done,
                Err(failure) => self.fails("the cache is not kept", &failure),
            }
            let saved: Vec<_> = written.saved.iter().map(ToString::to_string).collect();
            let kept = |carried: &Carried| saved.contains(&carried.part);
            self.state().new.clear();
            return self.report(
                written,
                sizes.into_iter().filter(kept).collect(),
                cold,
                span,
                begun,
            );
        }
        self.report(written, Vec::new(), cold, span, begun)
    }

    fn report(
        &self,
        written: Written,
        saved: Vec<Carried>,
        cold: Option<Cold>,
        span: Option<u64>,
        begun: std::time::Instant,
    ) -> CacheReport {
        let mut state = self.state();
        let was_of_use = !state.restored.is_empty() || !state.before.is_empty();
        let gained_ms = cold
            .as_ref()
            .zip(span)
            .filter(|_| was_of_use)
            .and_then(|(cold, span)| cold.duration_ms.checked_sub(span));
        CacheReport {
            folder: self.store.folder().display().to_string(),
            domain: self.store.domain(),
            read_only: self.store.closed().is_some(),
            restored: std::mem::take(&mut state.restored).into_values().collect(),
            ignored: std::mem::take(&mut state.ignored),
            passed_before: state.before.keys().copied().collect(),
            saved,
            unchanged: state.unchanged.iter().map(ToString::to_string).collect(),
            left_out: written.left_out.iter().map(ToString::to_string).collect(),
            pruned_bytes: written.pruned,
            bytes: written.bytes,
            save_ms: state.save_ms + millis(begun.elapsed()),
            failures: std::mem::take(&mut state.failures),
            gained_ms,
            measured_by: cold.filter(|_| was_of_use),
        }
    }
}

/// What there is in a folder for a run of `domain`, for people.
///
/// # Errors
/// Why such a run would not use it.
pub fn describe(folder: &Path, domain: Domain) -> Result<String, String> {
    let told = LastNotice::default();
    let store = Store::open(folder, domain, &told);
    let said = told.into_text();
    if !said.is_empty() {
        return Err(said);
    }
    let (parts, bytes) = store.size();
    let access = store
        .closed()
        .map_or(String::new(), |why| format!("; {why}"));
    Ok(format!(
        "{}: {parts} parts, {} MB{access}",
        folder.display(),
        bytes / 1_000_000
    ))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
