//! The caches of one run: what it restores, reuses and saves.

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
use crate::model::record::{
    CacheReport, CachedPart, ColdRun, IgnoredPart, PriorPass, Record, Status,
};
use crate::model::step::Step;
use common::failure::Failure;
use common::progress::{LastNotice, Progress};

/// The content of a volume before the first step that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The volume had content, so nothing was restored.
    Content,
    /// The volume was empty, and there was nothing to restore.
    Empty,
    /// The volume was empty, and its caches were restored.
    Restored,
}

/// The caches of one run.
pub struct Cache {
    pub(super) store: Store,
    /// The repository that the parts belong to.
    pub(super) of: String,
    commit: String,
    progress: Arc<dyn Progress>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) places: BTreeMap<Place, Arc<OnceCell<Found>>>,
    pub(super) restored: BTreeMap<Part, CachedPart>,
    pub(super) ignored: Vec<IgnoredPart>,
    /// Parts that the run used.
    pub(super) used: Vec<(Part, String)>,
    /// Steps that were skipped because they passed before.
    pub(super) before: BTreeMap<Step, PriorPass>,
    /// Steps that passed in this run.
    pub(super) now: BTreeMap<Step, (Key, tempfile::TempDir)>,
    /// Parts to save, with their files.
    pub(super) new: Vec<(Entry, PathBuf)>,
    /// The toolchain's key and the program of cargo-auditable.
    pub(super) tool: Option<(String, PathBuf)>,
    pub(super) unchanged: Vec<Part>,
    pub(super) unfinished: Option<store::Unfinished>,
    pub(super) save_ms: u64,
    pub(super) failures: Vec<String>,
}

impl Cache {
    /// Opens the caches in `folder`, which need not exist, for a run of `domain` on `commit` of the repository `of`.
    #[must_use]
    pub fn open(
        folder: &Path,
        domain: Domain,
        of: String,
        commit: String,
        progress: Arc<dyn Progress>,
    ) -> Self {
        Self {
            store: Store::open(folder, domain, &*progress),
            of,
            commit,
            progress,
            state: Mutex::default(),
        }
    }

    /// Reports a failure of the cache. It does not fail the run, which is only slower without a cache.
    pub fn report_failure(&self, what: &str, failure: &Failure) {
        self.progress.notice(&format!("{what}: {failure}"));
        self.state().failures.push(format!("{what}: {failure}"));
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records and reports that a part is ignored.
    pub(super) fn ignore(&self, part: &dyn std::fmt::Display, reason: String) {
        self.progress
            .notice(&format!("ignoring the cached {part}: {reason}"));
        self.state().ignored.push(IgnoredPart {
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

    /// What the engine's volume of `place` contained; set when the volume is restored.
    pub fn found_in(&self, place: Place) -> Arc<OnceCell<Found>> {
        Arc::clone(self.state().places.entry(place).or_default())
    }

    /// The parts of `place` that are valid for `key`, with their files. Damaged parts are ignored with a notice.
    pub fn packs_for(&self, place: Place, key: &str) -> Vec<(Entry, PathBuf)> {
        let mut packs = Vec::new();
        for part in place.parts() {
            let Some(entry) = self.store.find(&self.of, part, key) else {
                if self.store.has_other(&self.of, part, key) {
                    self.ignore(&part, "made with another toolchain".to_owned());
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

    /// Records that these parts were restored.
    pub fn restored(&self, packs: Vec<(Entry, PathBuf)>) {
        let mut state = self.state();
        for (entry, _) in packs {
            state.restored.insert(entry.part, entry.cached_part());
            state.used.push((entry.part, entry.key));
        }
    }

    /// Whether the directory is writable for this run; reports the reason if not.
    #[must_use]
    pub fn check_writable(&self) -> bool {
        let Some(why) = self.store.read_only_reason() else {
            return true;
        };
        let folder = self.store.folder().display();
        self.progress.notice(&format!(
            "the cache in {folder} is read-only for this run: {why}"
        ));
        false
    }

    /// Whether the directory already has this part with the same content.
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

    /// Records a new part to save, whose pack is in `file`.
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

    /// Adds to the time spent on saving.
    pub fn add_save_time(&self, time: Duration) {
        self.state().save_ms += millis(time);
    }

    /// Returns a new path in the store's directory for unfinished files.
    ///
    /// # Errors
    /// When the directory cannot be created.
    pub fn unfinished_file(&self, name: &str) -> Result<PathBuf, Failure> {
        let mut state = self.state();
        let folder = match state.unfinished.take() {
            Some(folder) => folder,
            None => self.store.unfinished()?,
        };
        let path = folder.path().join(name);
        state.unfinished = Some(folder);
        Ok(path)
    }

    /// The time from the start of the first cargo step to the end of the last one, in milliseconds; `None` unless all passed.
    fn span(records: &BTreeMap<Step, Record>) -> Option<u64> {
        let cargo_steps = Step::all().iter().copied();
        let cargo_steps = cargo_steps.filter(|step| step.definition().reads_sources);
        let ends = cargo_steps.filter(|step| is_expected(*step, records));
        let ends = ends.map(|step| {
            let record = records.get(&step)?;
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

    /// Writes the directory and returns a report. `log` returns the log of a step.
    pub async fn close(
        self,
        records: &BTreeMap<Step, Record>,
        log: impl Fn(Step) -> String,
    ) -> CacheReport {
        let begun = std::time::Instant::now();
        let span = Self::span(records);
        let cold = self.store.cold(&self.of).cloned();
        let was_cold = {
            let state = self.state();
            let is_compiled_in =
                |place: &Place| matches!(place, Place::Work(step) if step.definition().compiles);
            let mut compiled_in = state.places.iter().filter(|(it, _)| is_compiled_in(it));
            state.before.is_empty()
                && compiled_in.all(|(_, found)| found.get() == Some(&Found::Empty))
        };
        let mut written = Written::default();
        if self.store.read_only_reason().is_none() {
            self.add_passes(records, log);
            self.add_tool();
            let changes = {
                let mut state = self.state();
                state.new.sort_by_key(|(entry, _)| entry.part);
                state.unchanged.sort_unstable();
                Changes {
                    new: std::mem::take(&mut state.new),
                    used: std::mem::take(&mut state.used),
                    cold: span.filter(|_| was_cold).map(|duration_ms| ColdRun {
                        of: self.of.clone(),
                        commit: self.commit.clone(),
                        duration_ms,
                    }),
                }
            };
            let sizes: Vec<_> = changes
                .new
                .iter()
                .map(|(entry, _)| entry.cached_part())
                .collect();
            match self.store.write(&self.of, changes, &*self.progress).await {
                Ok(done) => written = done,
                Err(failure) => self.report_failure("cannot save the cache", &failure),
            }
            let saved: Vec<_> = written.saved.iter().map(ToString::to_string).collect();
            let kept = |carried: &CachedPart| saved.contains(&carried.part);
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
        saved: Vec<CachedPart>,
        cold: Option<ColdRun>,
        span: Option<u64>,
        begun: std::time::Instant,
    ) -> CacheReport {
        let mut state = self.state();
        let was_used = !state.restored.is_empty() || !state.before.is_empty();
        let gained_ms = cold
            .as_ref()
            .zip(span)
            .filter(|_| was_used)
            .and_then(|(cold, span)| cold.duration_ms.checked_sub(span));
        CacheReport {
            folder: self.store.folder().display().to_string(),
            domain: self.store.domain(),
            read_only: self.store.read_only_reason().is_some(),
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
            measured_by: cold.filter(|_| was_used),
        }
    }
}

/// Describes the caches in a directory for a run of `domain`.
///
/// # Errors
/// When such a run would ignore them; the message has the reason.
pub(crate) fn describe(folder: &Path, domain: Domain) -> Result<String, String> {
    let notice = LastNotice::default();
    let store = Store::open(folder, domain, &notice);
    let reason = notice.into_text();
    if !reason.is_empty() {
        return Err(reason);
    }
    let (parts, bytes) = store.size();
    let access = store
        .read_only_reason()
        .map_or(String::new(), |why| format!("; {why}"));
    Ok(format!(
        "{}: {parts} parts, {} MB{access}",
        folder.display(),
        bytes / 1_000_000
    ))
}

/// Whether a complete run has a record of `step`. An optional step has one only if the project configures it.
fn is_expected(step: Step, records: &BTreeMap<Step, Record>) -> bool {
    records.contains_key(&step) || !step.definition().optional
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
