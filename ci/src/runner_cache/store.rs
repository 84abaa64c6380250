//! The directory that holds the caches of an ephemeral runner.
//!
//! `cache.json` lists the parts with their keys, and `blobs/` contains them under their SHA-256. Damaged parts, and caches of
//! another version or trust domain, are ignored with a notice. Anyone who can write to the directory controls the builds that use
//! it, so the storage service must restrict access (GitHub's caches are scoped by branch).

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use eyre::{WrapErr as _, ensure};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::pack::{self, Expected};
use crate::model::event::Domain;
use crate::model::record::{CachedPart, ColdRun};
use common::digest;
use common::failure::{Failure, OrFail};
use common::progress::Progress;
use common::provision;

/// Increases when an older `ci` would misread a newer cache.
const SCHEMA: u32 = 3;
/// The file at the top of the directory that lists the parts.
pub(crate) const LIST: &str = "cache.json";
const BLOBS: &str = "blobs";
const UNFINISHED: &str = ".unfinished-";
const LOCK: &str = ".lock";
/// The largest accepted size of the list.
const MAX_LIST_BYTES: u64 = 4 << 20;
/// The total size of all blobs. The least useful parts beyond it are left out. GitHub keeps 10 GB for each repository.
const MAX_BYTES: u64 = 4 << 30;
/// Parts that were not used for this long are stale.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(14 * 24);
/// The number of passes that are kept for each step, the newest first.
const MAX_PASSES: usize = 4;

/// The parts of the cache, ordered by their benefit in relation to their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// A step that passed, with its log and output files.
    Pass(crate::model::step::Step),
    /// cargo-auditable, compiled for one toolchain image.
    Tool,
    /// The packages that cargo downloaded.
    Cargo,
    /// The scanner's vulnerability database.
    Database,
    /// A step's build output of dependencies.
    Dependencies(crate::model::step::Step),
    /// A step's build output of the workspace.
    Workspace(crate::model::step::Step),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pass(step) => write!(f, "pass of {step}"),
            Self::Tool => f.write_str("tool"),
            Self::Cargo => f.write_str("cargo"),
            Self::Database => f.write_str("database"),
            Self::Dependencies(step) => write!(f, "{step}/dependencies"),
            Self::Workspace(step) => write!(f, "{step}/workspace"),
        }
    }
}

/// The list entry of a part.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The repository that the part belongs to; several repositories may share a directory.
    pub of: String,
    pub part: Part,
    /// The digest of everything that must be equal for the part to be usable.
    pub key: String,
    /// The digest of the part's file list, to detect changes.
    pub content: String,
    /// The SHA-256 of the blob in hexadecimal digits, which is also its file name.
    pub sha256: String,
    /// The size of the blob.
    pub bytes: u64,
    /// The total size of the unpacked files.
    pub unpacked: u64,
    /// The commit of the run that saved the part.
    pub commit: String,
    pub made: Timestamp,
    /// The last time that a run used the part.
    pub used: Timestamp,
}

impl Entry {
    /// The entry in the report of a run.
    #[must_use]
    pub fn cached_part(&self) -> CachedPart {
        CachedPart {
            part: self.part.to_string(),
            bytes: self.bytes,
            unpacked_bytes: self.unpacked,
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct List {
    schema: u32,
    domain: Domain,
    parts: Vec<Entry>,
    cold: Vec<ColdRun>,
}

impl List {
    fn empty(domain: Domain) -> Self {
        Self {
            schema: SCHEMA,
            domain,
            parts: Vec::new(),
            cold: Vec::new(),
        }
    }
}

/// The field that a list of any version has.
#[derive(Deserialize)]
struct Version {
    schema: u32,
}

/// The directory as it was when it was opened.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    domain: Domain,
    list: List,
    /// Why this run is not allowed to write to the directory.
    read_only: Option<String>,
}

/// The changes that a run makes to the directory.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// New parts, with their files in the [`Unfinished`] directory.
    pub new: Vec<(Entry, PathBuf)>,
    /// Parts that were used and are unchanged.
    pub used: Vec<(Part, String)>,
    /// The duration of the run, if it had no caches.
    pub cold: Option<ColdRun>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.new.is_empty() && self.used.is_empty() && self.cold.is_none()
    }
}

/// The result of writing [`Changes`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// The new parts.
    pub saved: Vec<Part>,
    /// The parts that exceeded the size limit.
    pub left_out: Vec<Part>,
    /// The size of the stale blobs that were removed.
    pub pruned: u64,
    /// The size of all blobs.
    pub bytes: u64,
}

impl Store {
    /// Opens a directory, which need not exist. An unusable cache is ignored, with a notice to `progress`.
    #[must_use]
    pub(crate) fn open(folder: &Path, domain: Domain, progress: &dyn Progress) -> Self {
        let mut store = Self {
            folder: folder.to_owned(),
            domain,
            list: List::empty(domain),
            read_only: None,
        };
        match store.read() {
            Ok(None) => {}
            Ok(Some(list)) if list.domain == domain => store.list = list,
            Ok(Some(list)) if domain.can_read(list.domain) => {
                store.read_only = Some(format!(
                    "it belongs to {}, and other runs only read it",
                    list.domain
                ));
                store.list = list;
            }
            Ok(Some(list)) => progress.notice(&format!(
                "ignoring the cache in {}: it belongs to {}, and {domain} does not read it",
                folder.display(),
                list.domain
            )),
            Err(why) => progress.notice(&format!(
                "ignoring the cache in {}: {why:#}",
                folder.display()
            )),
        }
        store
    }

    fn read(&self) -> eyre::Result<Option<List>> {
        let path = self.folder.join(LIST);
        let data = match path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            data => data?,
        };
        ensure!(data.is_file(), "{LIST} is not a file");
        ensure!(data.len() <= MAX_LIST_BYTES, "{LIST} is too large");
        let text = fs::read(&path)?;
        let damaged = || format!("{LIST} is damaged");
        let version: Version = serde_json::from_slice(&text).wrap_err_with(damaged)?;
        ensure!(
            version.schema == SCHEMA,
            "its schema version is {}, not {SCHEMA}",
            version.schema
        );
        let list: List = serde_json::from_slice(&text).wrap_err_with(damaged)?;
        for entry in &list.parts {
            ensure!(
                is_sum(&entry.sha256),
                "{LIST} is damaged: invalid blob name {:?}",
                entry.sha256
            );
        }
        Ok(Some(list))
    }

    #[must_use]
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The number of parts and their total size.
    #[must_use]
    pub(crate) fn size(&self) -> (usize, u64) {
        let parts = &self.list.parts;
        (parts.len(), parts.iter().map(|part| part.bytes).sum())
    }

    /// The trust domain of this run.
    #[must_use]
    pub(crate) fn domain(&self) -> Domain {
        self.domain
    }

    /// Why this run is not allowed to write to the directory; `None` if it is.
    #[must_use]
    pub(crate) fn read_only_reason(&self) -> Option<&str> {
        self.read_only.as_deref()
    }

    /// Finds the part with this key.
    #[must_use]
    pub(crate) fn find(&self, of: &str, part: Part, key: &str) -> Option<&Entry> {
        let found = |it: &&Entry| it.of == of && it.part == part && it.key == key;
        self.list.parts.iter().find(found)
    }

    /// The newest entry of the part, with any key.
    #[must_use]
    pub(crate) fn newest(&self, of: &str, part: Part) -> Option<&Entry> {
        let parts = self.list.parts.iter();
        let parts = parts.filter(|it| it.of == of && it.part == part);
        parts.max_by_key(|it| it.made)
    }

    /// Whether the part exists with another key.
    #[must_use]
    pub(crate) fn has_other(&self, of: &str, part: Part, key: &str) -> bool {
        let other = |it: &Entry| it.of == of && it.part == part && it.key != key;
        self.list.parts.iter().any(other)
    }

    /// The last run of this repository without caches.
    #[must_use]
    pub(crate) fn cold(&self, of: &str) -> Option<&ColdRun> {
        self.list.cold.iter().find(|cold| cold.of == of)
    }

    /// Returns the path of a part's blob, after checking that it is intact and contains only paths below `tops`.
    ///
    /// # Errors
    /// When a check fails.
    pub(crate) fn blob(&self, entry: &Entry, tops: &[&str]) -> eyre::Result<PathBuf> {
        let path = self.blob_path(&entry.sha256);
        pack::check(
            &path,
            &Expected {
                sha256: &entry.sha256,
                bytes: entry.bytes,
                unpacked: entry.unpacked,
                tops,
            },
        )?;
        Ok(path)
    }

    fn blob_path(&self, sha256: &str) -> PathBuf {
        self.folder.join(BLOBS).join(sha256)
    }

    /// Creates a directory for unfinished files. It is removed when the returned value is dropped, or by the next writer if this
    /// process is killed.
    ///
    /// # Errors
    /// When the directory cannot be created.
    pub(crate) fn unfinished(&self) -> Result<Unfinished, Failure> {
        let cannot = || format!("cannot write to {}", self.folder.display());
        fs::create_dir_all(&self.folder).or_environment(cannot())?;
        loop {
            let folder = tempfile::Builder::new()
                .prefix(UNFINISHED)
                .tempdir_in(&self.folder)
                .or_environment(cannot())?;
            // Another writer may remove it before it is locked.
            if let Some(lock) = lock_new(folder.path()).or_environment(cannot())? {
                return Ok(Unfinished {
                    folder,
                    _lock: lock,
                });
            }
        }
    }

    /// Writes the changes and removes stale parts: those of this repository that a new part replaces, and those that were not
    /// used for two weeks. Changes by concurrent writers are preserved.
    ///
    /// # Errors
    /// When the directory cannot be written; the old list then stays intact.
    pub(crate) async fn write(
        &self,
        of: &str,
        changes: Changes,
        progress: &dyn Progress,
    ) -> Result<Written, Failure> {
        self.write_limited(MAX_BYTES, of, changes, progress).await
    }

    async fn write_limited(
        &self,
        max_bytes: u64,
        of: &str,
        changes: Changes,
        progress: &dyn Progress,
    ) -> Result<Written, Failure> {
        let cannot = || format!("cannot write the cache in {}", self.folder.display());
        if changes.is_empty() {
            return Ok(Written {
                bytes: self.size().1,
                ..Written::default()
            });
        }
        let blobs = self.folder.join(BLOBS);
        fs::create_dir_all(&blobs).or_environment(cannot())?;
        let _lock = provision::lock(&self.folder.join(LOCK), progress, "the same cache").await?;
        // Another process may have written since the directory was opened.
        let mut list = match self.read() {
            Ok(Some(list)) if list.domain == self.domain => list,
            Ok(Some(list)) if list.domain == Domain::Main => {
                return Err(Failure::environment(cannot())
                    .hint("Use another directory: this one now belongs to main, and other runs only read it."));
            }
            _ => List::empty(self.domain),
        };
        let before: BTreeSet<_> = list.parts.iter().map(|it| it.sha256.clone()).collect();
        let now = Timestamp::now();
        let mut saved = Vec::new();
        for (part, key) in changes.used {
            for entry in &mut list.parts {
                if entry.of == of && entry.part == part && entry.key == key {
                    entry.used = now;
                }
            }
        }
        for (entry, file) in changes.new {
            let to = self.blob_path(&entry.sha256);
            fs::rename(&file, &to).or_environment(cannot())?;
            list.parts.retain(|old| !replaces(&entry, old));
            saved.push(entry.part);
            list.parts.push(entry);
        }
        if let Some(cold) = changes.cold {
            list.cold.retain(|old| old.of != cold.of);
            list.cold.push(cold);
        }
        let left_out = self.prune(&mut list, now, max_bytes);
        saved.retain(|part| !left_out.contains(part));
        self.replace_list(&list).or_environment(cannot())?;
        let after: BTreeSet<_> = list.parts.iter().map(|it| it.sha256.as_str()).collect();
        let mut pruned = 0;
        for blob in fs::read_dir(&blobs).or_environment(cannot())?.flatten() {
            let name = blob.file_name();
            let name = name.to_string_lossy();
            if is_sum(&name) && !after.contains(&*name) {
                let bytes = provision::size_of(&blob.path());
                let removed = fs::remove_file(blob.path()).is_ok();
                pruned += if removed && before.contains(&*name) {
                    bytes
                } else {
                    0
                };
            }
        }
        self.sweep();
        Ok(Written {
            saved,
            left_out,
            pruned,
            bytes: after
                .iter()
                .filter_map(|name| self.blob_path(name).metadata().ok())
                .map(|data| data.len())
                .sum(),
        })
    }

    /// Removes stale parts and those that exceed the limit from the list; returns the latter.
    fn prune(&self, list: &mut List, now: Timestamp, max_bytes: u64) -> Vec<Part> {
        list.parts
            .retain(|entry| now.duration_since(entry.used) <= MAX_AGE);
        list.cold
            .retain(|cold| list.parts.iter().any(|entry| entry.of == cold.of));
        // The most useful first, the newest first among equals.
        list.parts
            .sort_by(|a, b| (a.part, b.used, b.made).cmp(&(b.part, a.used, a.made)));
        let mut left_out = Vec::new();
        let mut passes = std::collections::BTreeMap::<_, usize>::new();
        let mut room = max_bytes;
        list.parts.retain(|entry| {
            if let Part::Pass(step) = entry.part {
                let count = passes.entry((entry.of.clone(), step)).or_default();
                *count += 1;
                if *count > MAX_PASSES {
                    return false;
                }
            }
            let rest = room.checked_sub(entry.bytes);
            match rest {
                Some(rest) => room = rest,
                None => left_out.push(entry.part),
            }
            rest.is_some()
        });
        left_out
    }

    /// Replaces the list atomically.
    fn replace_list(&self, list: &List) -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        serde_json::to_writer_pretty(&mut file, list)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(self.folder.join(LIST))?;
        Ok(())
    }

    /// Removes the unfinished files of writers that were killed.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                continue;
            }
            // A failed removal only costs disk space.
            let _ = match File::open(entry.path().join(LOCK)) {
                Ok(lock) if lock.try_lock().is_ok() => fs::remove_dir_all(entry.path()),
                // The writer was killed before it created the lock; a live writer creates another directory.
                Err(error) if error.kind() == ErrorKind::NotFound => fs::remove_dir(entry.path()),
                _ => Ok(()),
            };
        }
    }
}

/// Locks a new directory; `None` if another writer has removed it meanwhile.
fn lock_new(folder: &Path) -> std::io::Result<Option<File>> {
    let lock = match File::create(folder.join(LOCK)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(folder.join(LOCK).exists().then_some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn is_sum(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether `new` replaces `old`: there is only one key for each part of a volume, but several for passes.
fn replaces(new: &Entry, old: &Entry) -> bool {
    new.of == old.of
        && new.part == old.part
        && (new.key == old.key || !matches!(new.part, Part::Pass(_)))
}

/// A directory for unfinished files.
#[derive(Debug)]
pub(crate) struct Unfinished {
    folder: tempfile::TempDir,
    _lock: File,
}

impl Unfinished {
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Returns the SHA-256 and the size of a new blob.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn measure(file: &Path) -> std::io::Result<(String, u64)> {
    let sum = digest::sha256_of_file(file)?;
    let bytes = file.metadata()?.len();
    Ok((sum.trim_start_matches("sha256:").to_owned(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::step::Step;
    use common::progress::{LastNotice, Silent};

    const OF: &str = "acme/shop";

    /// Opens the directory; returns the store and the notice.
    fn open(folder: &Path, domain: Domain) -> (Store, String) {
        let notice = LastNotice::default();
        let store = Store::open(folder, domain, &notice);
        (store, notice.into_text())
    }

    /// Packs a part with one file.
    fn pack_part(
        unfinished: &Unfinished,
        part: Part,
        key: &str,
        content: &str,
    ) -> (Entry, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        fs::write(folder.path().join("src/file"), content).unwrap();
        let file = unfinished.path().join(format!("{part:?}{key}"));
        let unpacked = pack::pack(folder.path(), &file).unwrap();
        let (sha256, bytes) = measure(&file).unwrap();
        let now = Timestamp::now();
        let entry = Entry {
            of: OF.into(),
            part,
            key: key.into(),
            content: String::new(),
            sha256,
            bytes,
            unpacked,
            commit: "4f2a91c".into(),
            made: now,
            used: now,
        };
        (entry, file)
    }

    async fn save(store: &Store, parts: &[(Part, &str, &str)]) -> Written {
        save_limited(store, MAX_BYTES, parts).await
    }

    async fn save_limited(store: &Store, max_bytes: u64, parts: &[(Part, &str, &str)]) -> Written {
        let unfinished = store.unfinished().unwrap();
        let new = parts
            .iter()
            .map(|(part, key, content)| pack_part(&unfinished, *part, key, content))
            .collect();
        let changes = Changes {
            new,
            ..Changes::default()
        };
        store
            .write_limited(max_bytes, OF, changes, &Silent)
            .await
            .unwrap()
    }

    fn blobs(folder: &Path) -> usize {
        fs::read_dir(folder.join(BLOBS)).unwrap().count()
    }

    const TESTS: Part = Part::Workspace(Step::Test);

    #[tokio::test]
    async fn finds_saved_parts_by_repository_part_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/cache");
        let (store, notice) = open(&path, Domain::Local);
        assert_eq!(notice, "");
        let written = save(&store, &[(Part::Cargo, "k", "1"), (TESTS, "k", "2")]).await;
        assert_eq!(written.saved, [Part::Cargo, TESTS]);
        let (store, notice) = open(&path, Domain::Local);
        assert_eq!(notice, "");
        let entry = store.find(OF, TESTS, "k").unwrap();
        let blob = store.blob(entry, &["src"]).unwrap();
        pack::unpack(&blob, &path.join("out")).unwrap();
        assert_eq!(fs::read_to_string(path.join("out/src/file")).unwrap(), "2");
        assert!(store.find(OF, TESTS, "other").is_none());
        assert!(store.has_other(OF, TESTS, "other"));
        assert!(store.find("acme/other", TESTS, "k").is_none());
        assert!(store.blob(entry, &["target"]).is_err());
    }

    #[tokio::test]
    async fn removes_replaced_parts_and_limits_passes() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = open(folder.path(), Domain::Local);
        save(&store, &[(TESTS, "old toolchain", "1")]).await;
        let written = save(&store, &[(TESTS, "k", "2")]).await;
        assert!(written.pruned > 0);
        assert_eq!(blobs(folder.path()), 1);
        for key in 0..MAX_PASSES + 3 {
            save(
                &store,
                &[(
                    Part::Pass(Step::Test),
                    &key.to_string(),
                    &format!("pass {key}"),
                )],
            )
            .await;
        }
        let (store, _) = open(folder.path(), Domain::Local);
        let has = |key: usize| {
            store
                .find(OF, Part::Pass(Step::Test), &key.to_string())
                .is_some()
        };
        assert!((3..MAX_PASSES + 3).all(has) && !(0..3).any(has));
        assert!(store.find(OF, TESTS, "k").is_some());
        assert_eq!(blobs(folder.path()), MAX_PASSES + 1);
    }

    #[tokio::test]
    async fn removes_unused_parts_and_leaves_out_those_that_do_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = open(folder.path(), Domain::Local);
        let noise: String = (0..4000).map(|i| format!("{:x}", i * 7919)).collect();
        save(&store, &[(Part::Cargo, "k", "small")]).await;
        let written = save_limited(&store, 600, &[(TESTS, "k", &noise)]).await;
        assert_eq!((written.saved, written.left_out), (vec![], vec![TESTS]));
        assert!(written.bytes <= 600 && blobs(folder.path()) == 1);

        let list = folder.path().join(LIST);
        let (store, _) = open(folder.path(), Domain::Local);
        let used = store.find(OF, Part::Cargo, "k").unwrap().used;
        let long_ago = used - MAX_AGE - SignedDuration::from_secs(60);
        let text = fs::read_to_string(&list).unwrap();
        fs::write(
            &list,
            text.replace(&used.to_string(), &long_ago.to_string()),
        )
        .unwrap();
        save(&store, &[(TESTS, "k", "2")]).await;
        let (store, _) = open(folder.path(), Domain::Local);
        assert!(store.find(OF, Part::Cargo, "k").is_none());
        assert!(store.find(OF, TESTS, "k").is_some());
    }

    #[tokio::test]
    async fn concurrent_writers_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (one, _) = open(folder.path(), Domain::Local);
        let (two, _) = open(folder.path(), Domain::Local);
        // Unfinished files of a live writer stay, and those of killed writers are removed.
        let unfinished = one.unfinished().unwrap();
        let dead = folder.path().join(format!("{UNFINISHED}dead"));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let stillborn = folder.path().join(format!("{UNFINISHED}stillborn"));
        fs::create_dir(&stillborn).unwrap();
        save(&two, &[(Part::Cargo, "k", "1")]).await;
        assert!(unfinished.path().exists() && !dead.exists() && !stillborn.exists());
        save(&one, &[(TESTS, "k", "2")]).await;
        let (store, _) = open(folder.path(), Domain::Local);
        assert!(store.find(OF, Part::Cargo, "k").is_some());
        assert!(store.find(OF, TESTS, "k").is_some());
    }

    #[test]
    fn unfinished_directory_survives_a_concurrent_sweep() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = open(folder.path(), Domain::Local);
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    store.sweep();
                }
            });
            let all_usable = (0..1000).all(|_| {
                let unfinished = store.unfinished();
                unfinished.is_ok_and(|it| fs::write(it.path().join("pack"), "").is_ok())
            });
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(all_usable);
        });
    }

    #[tokio::test]
    async fn all_domains_read_mains_cache_but_only_main_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        let (main, _) = open(folder.path(), Domain::Main);
        save(&main, &[(TESTS, "k", "main's")]).await;
        for domain in [Domain::Pr, Domain::Local] {
            let (store, notice) = open(folder.path(), domain);
            assert_eq!(notice, "");
            assert!(store.find(OF, TESTS, "k").is_some());
            assert!(store.read_only_reason().unwrap().contains("to main"));
            let changes = Changes {
                used: vec![(TESTS, "k".to_owned())],
                ..Changes::default()
            };
            assert!(store.write(OF, changes, &Silent).await.is_err());
        }
        let (store, _) = open(folder.path(), Domain::Main);
        assert!(store.read_only_reason().is_none());
    }

    #[tokio::test]
    async fn other_domains_do_not_read_pull_request_and_local_caches() {
        for (writer, others) in [
            (Domain::Pr, [Domain::Main, Domain::Local]),
            (Domain::Local, [Domain::Main, Domain::Pr]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (store, _) = open(folder.path(), writer);
            save(&store, &[(TESTS, "k", "theirs")]).await;
            for other in others {
                let (store, notice) = open(folder.path(), other);
                assert!(store.find(OF, TESTS, "k").is_none());
                assert!(notice.contains("does not read it"), "{notice}");
            }
            // Main replaces the cache.
            let (main, _) = open(folder.path(), Domain::Main);
            save(&main, &[(Part::Cargo, "k", "main's")]).await;
            let (main, _) = open(folder.path(), Domain::Main);
            assert!(main.find(OF, TESTS, "k").is_none());
            assert!(main.find(OF, Part::Cargo, "k").is_some());
            assert_eq!(blobs(folder.path()), 1);
        }
    }

    #[tokio::test]
    async fn ignores_an_unusable_list_with_a_notice() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = open(folder.path(), Domain::Local);
        save(&store, &[(TESTS, "k", "1")]).await;
        let list = folder.path().join(LIST);
        let whole = fs::read_to_string(&list).unwrap();
        let sum = store.read().unwrap().unwrap().parts[0].sha256.clone();
        for (text, why) in [
            (&whole[..whole.len() / 2], "damaged"),
            ("", "damaged"),
            ("[]", "damaged"),
            (
                &whole.replace("\"schema\": 3", "\"schema\": 2"),
                "its schema version is 2, not 3",
            ),
            (
                &whole.replace("\"domain\": \"local\"", "\"domain\": \"mine\""),
                "damaged",
            ),
            (
                &whole.replace(&sum, &format!("../{}", &sum[3..])),
                "invalid blob name",
            ),
            (&" ".repeat(5 << 20), "too large"),
        ] {
            fs::write(&list, text).unwrap();
            let (store, notice) = open(folder.path(), Domain::Local);
            assert!(
                notice.contains(why) && notice.contains("ignoring the cache in"),
                "{why}: {notice}"
            );
            assert!(store.find(OF, TESTS, "k").is_none());
        }
        // A link is not followed, and the next writer replaces it.
        #[cfg(unix)]
        {
            fs::remove_file(&list).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", &list).unwrap();
            assert!(open(folder.path(), Domain::Local).1.contains("not a file"));
        }
        save(&store, &[(TESTS, "k", "1")]).await;
        assert_eq!(open(folder.path(), Domain::Local).1, "");
    }

    #[tokio::test]
    async fn rejects_a_missing_blob_and_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = open(folder.path(), Domain::Local);
        save(&store, &[(TESTS, "k", "1")]).await;
        let (store, _) = open(folder.path(), Domain::Local);
        let entry = store.find(OF, TESTS, "k").unwrap();
        let blob = store.blob_path(&entry.sha256);
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&blob, &elsewhere).unwrap();
        let error = format!("{:#}", store.blob(entry, &["src"]).unwrap_err());
        assert!(error.contains("is missing"), "{error}");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&elsewhere, &blob).unwrap();
            let error = format!("{:#}", store.blob(entry, &["src"]).unwrap_err());
            assert!(error.contains("not a regular file"), "{error}");
        }
    }
}
