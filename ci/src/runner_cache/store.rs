//! The folder in which the caches of a throw-away runner are carried from one to the next.
//!
//! `cache.json` lists the parts, by what each is valid for; `blobs/` holds them, each under its SHA-256. What is not whole, is of
//! another version or of another trust domain is passed over with a word. Whoever can write the folder can put anything into the
//! builds that use it: who that may be is for the store to say that carries it (GitHub's caches are scoped by branch).

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use eyre::{WrapErr as _, ensure};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::pack::{self, Expected};
use crate::model::event::Domain;
use crate::model::record::{Carried, Cold};
use common::digest;
use common::failure::{Failure, OrFail};
use common::progress::Progress;
use common::provision;

/// Grows when an older `ci` would read a newer cache wrongly.
const SCHEMA: u32 = 2;
/// The list of what a cache holds, at the top of its folder.
pub const LIST: &str = "cache.json";
const BLOBS: &str = "blobs";
const UNFINISHED: &str = ".unfinished-";
const LOCK: &str = ".lock";
/// A list of more bytes is not one of ours.
const MOST_LISTED: u64 = 4 << 20;
/// All blobs together: what does not fit is left out, the least useful first. GitHub keeps 10 GB for each repository.
const MOST_BYTES: u64 = 4 << 30;
/// What nobody has used for so long is stale.
const KEPT: SignedDuration = SignedDuration::from_hours(14 * 24);
/// So many passes of one step are kept, the newest.
const PASSES: usize = 4;

/// What a part of the cache is, by name, in the order of its use for its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// What a step's pass was, and of what.
    Pass(crate::model::step::Step),
    /// cargo-auditable, compiled for one toolchain image.
    Tool,
    /// The packages that cargo has downloaded.
    Cargo,
    /// The scanner's database.
    Database,
    /// What a step's cargo has made of the packages of others.
    Dependencies(crate::model::step::Step),
    /// What a step's cargo has made of the workspace.
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

/// A part that lies in the folder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The repository whose part it is: several services may share a folder.
    pub of: String,
    /// What it is.
    pub part: Part,
    /// The digest of all that has to be the same for it to be of use.
    pub key: String,
    /// The digest of the list of what is in it, by which it is known to be unchanged.
    pub content: String,
    /// The SHA-256 of its blob, in hexadecimal digits, which is the blob's name.
    pub sha256: String,
    /// The blob's length.
    pub bytes: u64,
    /// The length of all files in it.
    pub unpacked: u64,
    /// The commit of the run that made it.
    pub commit: String,
    /// When it was made.
    pub made: Timestamp,
    /// When it was last of use.
    pub used: Timestamp,
}

impl Entry {
    /// Its line in the report of a run.
    #[must_use]
    pub fn carried(&self) -> Carried {
        Carried {
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
    cold: Vec<Cold>,
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

/// Of a list of any version.
#[derive(Deserialize)]
struct Version {
    schema: u32,
}

/// The folder, as it was when it was opened.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    domain: Domain,
    list: List,
    /// Why nothing may be written into it.
    closed: Option<String>,
}

/// What a run leaves for the next ones.
#[derive(Debug, Default)]
pub struct Changes {
    /// New parts, and the files in the [`Unfinished`] folder that they are.
    pub new: Vec<(Entry, PathBuf)>,
    /// Parts that were of use as they are.
    pub used: Vec<(Part, String)>,
    /// How long it took, where nothing was there.
    pub cold: Option<Cold>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.new.is_empty() && self.used.is_empty() && self.cold.is_none()
    }
}

/// What became of the changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The parts that are new in the folder.
    pub saved: Vec<Part>,
    /// Those that did not fit.
    pub left_out: Vec<Part>,
    /// How many bytes of stale ones are gone.
    pub pruned: u64,
    /// All that is in the folder now.
    pub bytes: u64,
}

impl Store {
    /// Opens a folder, which need not exist. What cannot be used is passed over, and `narrator` says why.
    #[must_use]
    pub fn open(folder: &Path, domain: Domain, narrator: &dyn Progress) -> Self {
        let mut store = Self {
            folder: folder.to_owned(),
            domain,
            list: List::empty(domain),
            closed: None,
        };
        match store.read() {
            Ok(None) => {}
            Ok(Some(list)) if list.domain == domain => store.list = list,
            Ok(Some(list)) if domain.reads(list.domain) => {
                store.closed = Some(format!("it is {}'s, which others only read", list.domain));
                store.list = list;
            }
            Ok(Some(list)) => narrator.notice(&format!(
                "the cache in {} is {}'s, and not for {domain}: it is not used",
                folder.display(),
                list.domain
            )),
            Err(why) => narrator.notice(&format!(
                "the cache in {} is not used: {why:#}",
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
        ensure!(data.len() <= MOST_LISTED, "{LIST} is too large");
        let text = fs::read(&path)?;
        let damaged = || format!("{LIST} is damaged");
        let version: Version = serde_json::from_slice(&text).wrap_err_with(damaged)?;
        ensure!(
            version.schema == SCHEMA,
            "it is of another version ({}, this is {SCHEMA})",
            version.schema
        );
        let list: List = serde_json::from_slice(&text).wrap_err_with(damaged)?;
        for entry in &list.parts {
            ensure!(
                is_sum(&entry.sha256),
                "{LIST} is damaged: a blob is called {:?}",
                entry.sha256
            );
        }
        Ok(Some(list))
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many parts there are, and how many bytes they have.
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        let parts = &self.list.parts;
        (parts.len(), parts.iter().map(|part| part.bytes).sum())
    }

    /// Whose caches this run uses.
    #[must_use]
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// Why nothing may be written into it, where nothing may.
    #[must_use]
    pub fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// The part that is valid for `key`.
    #[must_use]
    pub fn find(&self, of: &str, part: Part, key: &str) -> Option<&Entry> {
        let found = |it: &&Entry| it.of == of && it.part == part && it.key == key;
        self.list.parts.iter().find(found)
    }

    /// Whether there is such a part that is valid for something else.
    #[must_use]
    pub fn has_other(&self, of: &str, part: Part, key: &str) -> bool {
        let other = |it: &Entry| it.of == of && it.part == part && it.key != key;
        self.list.parts.iter().any(other)
    }

    /// How long the steps of this repository took when nothing was there.
    #[must_use]
    pub fn cold(&self, of: &str) -> Option<&Cold> {
        self.list.cold.iter().find(|cold| cold.of == of)
    }

    /// The blob of a part, proven to be what it says, with nothing in it that is not below one of `tops`.
    ///
    /// # Errors
    /// Why it is not.
    pub fn blob(&self, entry: &Entry, tops: &[&str]) -> eyre::Result<PathBuf> {
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

    /// A folder for what is not whole yet. It vanishes with the value that is returned, and with the next writer where its own
    /// was killed.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn unfinished(&self) -> Result<Unfinished, Failure> {
        let cannot = || format!("cannot write into {}", self.folder.display());
        fs::create_dir_all(&self.folder).or_environment(cannot())?;
        loop {
            let folder = tempfile::Builder::new()
                .prefix(UNFINISHED)
                .tempdir_in(&self.folder)
                .or_environment(cannot())?;
            // Until it is locked, who sweeps takes it for one that was left.
            if let Some(lock) = hold(folder.path()).or_environment(cannot())? {
                return Ok(Unfinished {
                    folder,
                    _lock: lock,
                });
            }
        }
    }

    /// Writes what has changed, and prunes what is stale: parts of this repository that are valid for what is not used any more,
    /// and what nobody has used for two weeks. Others who write meanwhile lose nothing.
    ///
    /// # Errors
    /// When the folder cannot be written; then the list is the old one, and whole.
    pub async fn write(
        &self,
        of: &str,
        changes: Changes,
        narrator: &dyn Progress,
    ) -> Result<Written, Failure> {
        self.write_at_most(MOST_BYTES, of, changes, narrator).await
    }

    async fn write_at_most(
        &self,
        most: u64,
        of: &str,
        changes: Changes,
        narrator: &dyn Progress,
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
        let _turn = provision::lock(&self.folder.join(LOCK), narrator, "the same cache").await?;
        // Somebody else may have written since this one was opened.
        let mut list = match self.read() {
            Ok(Some(list)) if list.domain == self.domain => list,
            Ok(Some(list)) if list.domain == Domain::Main => {
                return Err(Failure::environment(cannot())
                    .hint("It has become main's, which others only read."));
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
        let left_out = self.prune(&mut list, now, most);
        saved.retain(|part| !left_out.contains(part));
        self.replace(&list).or_environment(cannot())?;
        let after: BTreeSet<_> = list.parts.iter().map(|it| it.sha256.as_str()).collect();
        let mut pruned = 0;
        for blob in fs::read_dir(&blobs).or_environment(cannot())?.flatten() {
            let name = blob.file_name();
            let name = name.to_string_lossy();
            if is_sum(&name) && !after.contains(&*name) {
                let bytes = provision::size_of(&blob.path());
                let gone = fs::remove_file(blob.path()).is_ok();
                pruned += if gone && before.contains(&*name) {
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

    /// Takes out what is stale or does not fit; returns what of it is new.
    fn prune(&self, list: &mut List, now: Timestamp, most: u64) -> Vec<Part> {
        list.parts
            .retain(|entry| now.duration_since(entry.used) <= KEPT);
        list.cold
            .retain(|cold| list.parts.iter().any(|entry| entry.of == cold.of));
        // The most useful first, and of equals the newest.
        list.parts
            .sort_by(|a, b| (a.part, b.used, b.made).cmp(&(b.part, a.used, a.made)));
        let mut left_out = Vec::new();
        let mut passes = std::collections::BTreeMap::<_, usize>::new();
        let mut room = most;
        list.parts.retain(|entry| {
            if let Part::Pass(step) = entry.part {
                let count = passes.entry((entry.of.clone(), step)).or_default();
                *count += 1;
                if *count > PASSES {
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

    /// Whole or not at all.
    fn replace(&self, list: &List) -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        serde_json::to_writer_pretty(&mut file, list)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(self.folder.join(LIST))?;
        Ok(())
    }

    /// Removes what writers have left that were killed.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                continue;
            }
            // What cannot be removed now only takes space.
            let _ = match File::open(entry.path().join(LOCK)) {
                Ok(lock) if lock.try_lock().is_ok() => fs::remove_dir_all(entry.path()),
                // Its writer was killed before it made its lock; one that lives makes another folder.
                Err(error) if error.kind() == ErrorKind::NotFound => fs::remove_dir(entry.path()),
                _ => Ok(()),
            };
        }
    }
}

/// Locks a new folder; none where a sweep was faster.
fn hold(folder: &Path) -> std::io::Result<Option<File>> {
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

/// Of a volume's part there is one, and of passes those of several inputs.
fn replaces(new: &Entry, old: &Entry) -> bool {
    new.of == old.of
        && new.part == old.part
        && (new.key == old.key || !matches!(new.part, Part::Pass(_)))
}

/// A folder for what is not whole yet.
#[derive(Debug)]
pub struct Unfinished {
    folder: tempfile::TempDir,
    _lock: File,
}

impl Unfinished {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// What there is to know of a new blob: its name and length.
///
/// # Errors
/// When it cannot be read.
pub fn measure(file: &Path) -> std::io::Result<(String, u64)> {
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

    fn opened(folder: &Path, domain: Domain) -> (Store, String) {
        let told = LastNotice::default();
        let store = Store::open(folder, domain, &told);
        (store, told.into_text())
    }

    /// A part whose blob has one file, with `content`.
    fn part(unfinished: &Unfinished, part: Part, key: &str, content: &str) -> (Entry, PathBuf) {
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
        save_at_most(store, MOST_BYTES, parts).await
    }

    async fn save_at_most(store: &Store, most: u64, parts: &[(Part, &str, &str)]) -> Written {
        let unfinished = store.unfinished().unwrap();
        let new = parts
            .iter()
            .map(|(of, key, content)| part(&unfinished, *of, key, content))
            .collect();
        let changes = Changes {
            new,
            ..Changes::default()
        };
        store
            .write_at_most(most, OF, changes, &Silent)
            .await
            .unwrap()
    }

    fn blobs(folder: &Path) -> usize {
        fs::read_dir(folder.join(BLOBS)).unwrap().count()
    }

    const TESTS: Part = Part::Workspace(Step::Test);

    #[tokio::test]
    async fn what_is_saved_is_found_again_by_what_it_is_valid_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/cache");
        let (store, told) = opened(&path, Domain::Local);
        assert_eq!(told, "");
        let written = save(&store, &[(Part::Cargo, "k", "1"), (TESTS, "k", "2")]).await;
        assert_eq!(written.saved, [Part::Cargo, TESTS]);
        let (store, told) = opened(&path, Domain::Local);
        assert_eq!(told, "");
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
    async fn what_is_replaced_goes_and_passes_are_kept_to_a_few() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = opened(folder.path(), Domain::Local);
        save(&store, &[(TESTS, "old toolchain", "1")]).await;
        let written = save(&store, &[(TESTS, "k", "2")]).await;
        assert!(written.pruned > 0);
        assert_eq!(blobs(folder.path()), 1);
        for key in 0..PASSES + 3 {
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
        let (store, _) = opened(folder.path(), Domain::Local);
        let has = |key: usize| {
            store
                .find(OF, Part::Pass(Step::Test), &key.to_string())
                .is_some()
        };
        assert!((3..PASSES + 3).all(has) && !(0..3).any(has));
        assert!(store.find(OF, TESTS, "k").is_some());
        assert_eq!(blobs(folder.path()), PASSES + 1);
    }

    #[tokio::test]
    async fn what_nobody_uses_goes_and_what_does_not_fit_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = opened(folder.path(), Domain::Local);
        let noise: String = (0..4000).map(|i| format!("{:x}", i * 7919)).collect();
        save(&store, &[(Part::Cargo, "k", "small")]).await;
        let written = save_at_most(&store, 600, &[(TESTS, "k", &noise)]).await;
        assert_eq!((written.saved, written.left_out), (vec![], vec![TESTS]));
        assert!(written.bytes <= 600 && blobs(folder.path()) == 1);

        let list = folder.path().join(LIST);
        let (store, _) = opened(folder.path(), Domain::Local);
        let used = store.find(OF, Part::Cargo, "k").unwrap().used;
        let long_ago = used - KEPT - SignedDuration::from_secs(60);
        let text = fs::read_to_string(&list).unwrap();
        fs::write(
            &list,
            text.replace(&used.to_string(), &long_ago.to_string()),
        )
        .unwrap();
        save(&store, &[(TESTS, "k", "2")]).await;
        let (store, _) = opened(folder.path(), Domain::Local);
        assert!(store.find(OF, Part::Cargo, "k").is_none());
        assert!(store.find(OF, TESTS, "k").is_some());
    }

    #[tokio::test]
    async fn who_writes_at_the_same_time_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (one, _) = opened(folder.path(), Domain::Local);
        let (two, _) = opened(folder.path(), Domain::Local);
        // What one of them has not finished stays when the other one writes, and what the dead have left does not.
        let unfinished = one.unfinished().unwrap();
        let dead = folder.path().join(format!("{UNFINISHED}dead"));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let stillborn = folder.path().join(format!("{UNFINISHED}stillborn"));
        fs::create_dir(&stillborn).unwrap();
        save(&two, &[(Part::Cargo, "k", "1")]).await;
        assert!(unfinished.path().exists() && !dead.exists() && !stillborn.exists());
        save(&one, &[(TESTS, "k", "2")]).await;
        let (store, _) = opened(folder.path(), Domain::Local);
        assert!(store.find(OF, Part::Cargo, "k").is_some());
        assert!(store.find(OF, TESTS, "k").is_some());
    }

    #[test]
    fn who_begins_while_another_one_sweeps_has_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = opened(folder.path(), Domain::Local);
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    store.sweep();
                }
            });
            let there = (0..1000).all(|_| {
                let unfinished = store.unfinished();
                unfinished.is_ok_and(|it| fs::write(it.path().join("pack"), "").is_ok())
            });
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(there);
        });
    }

    #[tokio::test]
    async fn mains_cache_is_read_by_all_and_written_by_main_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (main, _) = opened(folder.path(), Domain::Main);
        save(&main, &[(TESTS, "k", "main's")]).await;
        for domain in [Domain::Pr, Domain::Local] {
            let (store, told) = opened(folder.path(), domain);
            assert_eq!(told, "");
            assert!(store.find(OF, TESTS, "k").is_some());
            assert!(store.closed().unwrap().contains("main's"));
            let changes = Changes {
                used: vec![(TESTS, "k".to_owned())],
                ..Changes::default()
            };
            assert!(store.write(OF, changes, &Silent).await.is_err());
        }
        assert!(opened(folder.path(), Domain::Main).0.closed().is_none());
    }

    #[tokio::test]
    async fn nobody_reads_what_a_pull_request_or_a_person_has_written_but_they_themselves() {
        for (writer, others) in [
            (Domain::Pr, [Domain::Main, Domain::Local]),
            (Domain::Local, [Domain::Main, Domain::Pr]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (store, _) = opened(folder.path(), writer);
            save(&store, &[(TESTS, "k", "theirs")]).await;
            for other in others {
                let (store, told) = opened(folder.path(), other);
                assert!(store.find(OF, TESTS, "k").is_none());
                assert!(told.contains("it is not used"), "{told}");
            }
            // Main starts anew.
            let (main, _) = opened(folder.path(), Domain::Main);
            save(&main, &[(Part::Cargo, "k", "main's")]).await;
            let (main, _) = opened(folder.path(), Domain::Main);
            assert!(main.find(OF, TESTS, "k").is_none());
            assert!(main.find(OF, Part::Cargo, "k").is_some());
            assert_eq!(blobs(folder.path()), 1);
        }
    }

    #[tokio::test]
    async fn a_list_that_cannot_be_used_is_passed_over_with_a_word() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = opened(folder.path(), Domain::Local);
        save(&store, &[(TESTS, "k", "1")]).await;
        let list = folder.path().join(LIST);
        let whole = fs::read_to_string(&list).unwrap();
        let sum = store.read().unwrap().unwrap().parts[0].sha256.clone();
        for (text, why) in [
            (&whole[..whole.len() / 2], "damaged"),
            ("", "damaged"),
            ("[]", "damaged"),
            (
                &whole.replace("\"schema\": 2", "\"schema\": 1"),
                "another version (1, this is 2)",
            ),
            (
                &whole.replace("\"domain\": \"local\"", "\"domain\": \"mine\""),
                "damaged",
            ),
            (
                &whole.replace(&sum, &format!("../{}", &sum[3..])),
                "a blob is called",
            ),
            (&" ".repeat(5 << 20), "too large"),
        ] {
            fs::write(&list, text).unwrap();
            let (store, told) = opened(folder.path(), Domain::Local);
            assert!(
                told.contains(why) && told.contains("is not used"),
                "{why}: {told}"
            );
            assert!(store.find(OF, TESTS, "k").is_none());
        }
        // It is not followed, and the next one who writes mends it.
        #[cfg(unix)]
        {
            fs::remove_file(&list).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", &list).unwrap();
            assert!(
                opened(folder.path(), Domain::Local)
                    .1
                    .contains("not a file")
            );
        }
        save(&store, &[(TESTS, "k", "1")]).await;
        assert_eq!(opened(folder.path(), Domain::Local).1, "");
    }

    #[tokio::test]
    async fn a_blob_that_is_a_link_or_not_there_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = opened(folder.path(), Domain::Local);
        save(&store, &[(TESTS, "k", "1")]).await;
        let (store, _) = opened(folder.path(), Domain::Local);
        let entry = store.find(OF, TESTS, "k").unwrap();
        let blob = store.blob_path(&entry.sha256);
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&blob, &elsewhere).unwrap();
        let said = format!("{:#}", store.blob(entry, &["src"]).unwrap_err());
        assert!(said.contains("not there"), "{said}");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&elsewhere, &blob).unwrap();
            let said = format!("{:#}", store.blob(entry, &["src"]).unwrap_err());
            assert!(said.contains("not a file"), "{said}");
        }
    }
}
