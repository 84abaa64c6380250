//! The caches of a throw-away runner: what its engine would have to make anew is carried in a folder from one run to the next.
//!
//! `store.rs` is the folder, `archive.rs` a packed part of it, `contents.rs` what is worth to be one, `volumes.rs` the way into and
//! out of the engine, `passes.rs` what has passed before, `tools.rs` cargo-auditable.

mod archive;
mod contents;
mod passes;
mod store;
mod tools;
mod volumes;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::OnceCell;

pub use passes::{Key, Passed};
pub use store::{Cold, LIST, Part, Written};
pub use volumes::Place;

use crate::authority::Domain;
use crate::failure::Failure;
use crate::narrator::Narrator;
use crate::step::{Record, Status, Step};
use store::{Changes, Entry, Store};

/// The steps for which cargo works.
const CARGO_STEPS: [Step; 4] = [Step::Test, Step::Fmt, Step::Lint, Step::Build];

/// What a run did with the caches that it was given: a part of the report.
#[derive(Clone, Debug, Serialize)]
pub struct CacheReport {
    /// The folder.
    pub folder: String,
    /// Whose caches they are.
    pub domain: Domain,
    /// Whether they were only read: main's are written by main alone.
    pub read_only: bool,
    /// What was brought into the engine.
    pub restored: Vec<Carried>,
    /// What was there and not used, and why.
    pub ignored: Vec<Ignored>,
    /// The steps that have passed before with the same inputs, and were not done again.
    pub passed_before: Vec<Step>,
    /// What was put into the folder.
    pub saved: Vec<Carried>,
    /// What is in the folder as it was.
    pub unchanged: Vec<String>,
    /// What did not fit.
    pub left_out: Vec<String>,
    /// How many bytes of stale parts are gone.
    pub pruned_bytes: u64,
    /// All that is in the folder now, in bytes.
    pub bytes: u64,
    /// How long the saving took, in milliseconds.
    pub save_ms: u64,
    /// What could not be brought or kept for a reason that is not the cache's own.
    pub failures: Vec<String>,
    /// How much sooner cargo's steps were done than when nothing was there, in milliseconds.
    pub gained_ms: Option<u64>,
    /// The run that this is measured by, where there was one.
    pub measured_by: Option<Cold>,
}

/// A part that was carried.
#[derive(Clone, Debug, Serialize)]
pub struct Carried {
    /// Which.
    pub part: String,
    /// How much that was, packed, in bytes.
    pub bytes: u64,
    /// And how much unpacked.
    pub unpacked_bytes: u64,
}

impl Carried {
    fn of(entry: &Entry) -> Self {
        Self {
            part: entry.part.to_string(),
            bytes: entry.bytes,
            unpacked_bytes: entry.unpacked,
        }
    }
}

/// A part that was not used.
#[derive(Clone, Debug, Serialize)]
pub struct Ignored {
    /// Which.
    pub part: String,
    /// Why.
    pub reason: String,
}

/// What was found in a volume of the engine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It was in use before: nothing was brought.
    Something,
    /// Nothing, and nothing was brought.
    Nothing,
    /// Nothing, and something was brought.
    Brought,
}

/// The caches of one run.
pub struct Cache {
    store: Store,
    /// The repository whose parts they are.
    of: String,
    commit: String,
    narrator: Arc<dyn Narrator>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    places: BTreeMap<Place, Arc<OnceCell<Found>>>,
    restored: BTreeMap<Part, Carried>,
    ignored: Vec<Ignored>,
    /// Parts that were of use.
    used: Vec<(Part, String)>,
    /// What was taken from the passes.
    before: BTreeMap<Step, Passed>,
    /// What has passed now.
    now: BTreeMap<Step, (Key, tempfile::TempDir)>,
    /// Parts for the folder, with the files that they are.
    new: Vec<(Entry, std::path::PathBuf)>,
    /// The toolchain that cargo-auditable was used for, and the program.
    tool: Option<(String, std::path::PathBuf)>,
    unchanged: Vec<Part>,
    unfinished: Option<store::Unfinished>,
    save_ms: u64,
    failures: Vec<String>,
}

impl Cache {
    /// The caches in `folder`, which need not exist, for a run of `domain` on `commit` of the repository `of`.
    #[must_use]
    pub fn open(
        folder: &Path,
        domain: Domain,
        of: String,
        commit: String,
        narrator: Arc<dyn Narrator>,
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that a part is not used, and says why.
    fn ignore(&self, part: &dyn std::fmt::Display, reason: String) {
        self.narrator
            .notice(&format!("the cache's {part} is not used: {reason}"));
        self.state().ignored.push(Ignored {
            part: part.to_string(),
            reason,
        });
    }

    fn entry(
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

    /// How long cargo's steps took together, where each of them was done or had passed before.
    fn span(records: &BTreeMap<Step, Record>) -> Option<u64> {
        let ends = CARGO_STEPS.map(|step| {
            let record = records.get(&step)?;
            let start = record.start?.as_millisecond();
            (record.status == Status::Passed).then(|| {
                (
                    start,
                    start + i64::try_from(record.duration_ms).unwrap_or(i64::MAX),
                )
            })
        });
        let ends: Option<Vec<_>> = ends.into_iter().collect();
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
            let all = [
                Place::Work(Step::Test),
                Place::Work(Step::Lint),
                Place::Work(Step::Build),
            ];
            state.before.is_empty()
                && all.iter().all(|place| {
                    let found = state.places.get(place).and_then(|it| it.get().copied());
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
                .map(|(entry, _)| Carried::of(entry))
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
    let told = Told::default();
    let store = Store::open(folder, domain, &told);
    let said = told.0.into_inner().unwrap_or_else(PoisonError::into_inner);
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

/// Remembers what there is to notice.
#[derive(Default)]
struct Told(Mutex<String>);

impl Narrator for Told {
    fn begin(&self, _: &str) {}
    fn line(&self, _: &str) {}
    fn done(&self, _: &str, _: std::time::Duration) {}
    fn notice(&self, text: &str) {
        text.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
