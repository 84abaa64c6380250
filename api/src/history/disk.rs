//! The database file of the roll-ups.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use redb::{Database, ReadableDatabase, ReadableTable, StorageError, TableError};

use super::{
    fault::{Fault, guarded},
    outage::{self, Outage},
    recent::day_before,
    rollup::{Resolution, Rollup},
    sample::Sample,
    schema::{self, META, OUTAGES, STATES, rollups, sync_parent},
};

/// An open database file, locked against other processes.
pub(super) struct Disk {
    database: Database,
    /// Locked while the file is open, so that no process moves a file aside that another one has just created.
    _lock: File,
}

impl Disk {
    /// Opens the file in `directory`, or creates it. A file of an earlier version is migrated; an unusable file is moved aside.
    pub(super) fn open(directory: &Path) -> Result<Self, Fault> {
        fs::create_dir_all(directory)?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("history.lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Fault::Locked,
            TryLockError::Error(error) => error.into(),
        })?;
        let path = directory.join("history.redb");
        let database = if path.try_exists()? {
            match schema::open(&path) {
                Err(fault @ (Fault::Damaged(_) | Fault::Newer { .. })) => {
                    let newer = matches!(fault, Fault::Newer { .. });
                    let aside = move_aside(&path, if newer { "newer" } else { "damaged" })?;
                    tracing::warn!(
                        file = %path.display(),
                        aside = %aside.display(),
                        reason = %fault,
                        "cannot read the history file, moved it aside and created a new one"
                    );
                    schema::create(&path)?
                }
                opened => opened?,
            }
        } else {
            schema::create(&path)?
        };
        Ok(Self {
            database,
            _lock: lock,
        })
    }

    /// Closes the file cleanly.
    pub(super) fn close(self) -> Result<(), Fault> {
        guarded(|| Ok(self.database.close()?))
    }

    /// Adds `samples`, replaces `states`, and records that the samples of `run` are written up to `number`, in one transaction.
    pub(super) fn write<'a>(
        &self,
        samples: impl IntoIterator<Item = (&'a str, Sample)>,
        states: impl IntoIterator<Item = (&'a str, (u32, &'a str))>,
        (run, number): (u64, u64),
    ) -> Result<(), Fault> {
        let mut checks: HashMap<&str, Vec<Sample>> = HashMap::new();
        for (name, sample) in samples {
            checks.entry(name).or_default().push(sample);
        }
        guarded(|| {
            let transaction = self.database.begin_write()?;
            for resolution in Resolution::ALL {
                let mut table = transaction.open_table(rollups(resolution))?;
                for (name, samples) in &checks {
                    let mut added = BTreeMap::new();
                    resolution.group(samples.iter().copied(), &mut added);
                    for (start, mut rollup) in added {
                        if let Some(before) = table.get((start, *name))? {
                            rollup.merge(&before.value().into());
                        }
                        table.insert((start, *name), rollup.row())?;
                    }
                }
            }
            {
                let mut table = transaction.open_table(STATES)?;
                for (name, state) in states {
                    table.insert(name, state)?;
                }
                let mut meta = transaction.open_table(META)?;
                meta.insert("run", run)?;
                meta.insert("written", number)?;
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Adds `outages` of checks, or replaces those with the same start.
    pub(super) fn write_outages<'a>(
        &self,
        outages: impl IntoIterator<Item = (&'a str, &'a Outage)>,
    ) -> Result<(), Fault> {
        guarded(|| {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(OUTAGES)?;
                for (name, outage) in outages {
                    let end = outage.end.map_or(0, outage::seconds);
                    let key = (name, outage::seconds(outage.start));
                    table.insert(key, (end, outage.error.as_str()))?;
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// The outages of a check, oldest first.
    pub(super) fn outages(&self, name: &str) -> Result<Vec<Outage>, Fault> {
        guarded(|| {
            let transaction = self.database.begin_read()?;
            let table = match transaction.open_table(OUTAGES) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                table => table?,
            };
            let mut outages = Vec::new();
            for row in table.range((name, 0)..=(name, u32::MAX))? {
                let (key, value) = row?;
                let (end, error) = value.value();
                outages.push(Outage {
                    start: outage::time(key.value().1),
                    end: (end != 0).then(|| outage::time(end)),
                    error: error.to_owned(),
                });
            }
            Ok(outages)
        })
    }

    /// Deletes the rows that have aged: of the periods that have started at `now` and have results of any check, only the newest
    /// [`Resolution::kept`] remain. Their number shows how much time has passed even if `now` is wrong. Later periods, which were
    /// written while the clock was ahead, are neither counted nor deleted.
    pub(super) fn prune(&self, now: SystemTime) -> Result<(), Fault> {
        let now = Sample::new(now, None).seconds;
        guarded(|| {
            let transaction = self.database.begin_write()?;
            for resolution in Resolution::ALL {
                let mut table = transaction.open_table(rollups(resolution))?;
                let mut oldest = now.saturating_add(1);
                for _ in 0..resolution.kept() {
                    match table.range(..(oldest, ""))?.next_back() {
                        Some(row) => (oldest, _) = row?.0.value(),
                        None => break,
                    }
                }
                table.retain_in::<(u32, &str), _>(..(oldest, ""), |_, _| false)?;
                // States and outages are kept as long as results.
                if resolution == Resolution::Day {
                    let mut states = transaction.open_table(STATES)?;
                    states.retain(|_, (last, _)| last >= oldest)?;
                    let mut outages = transaction.open_table(OUTAGES)?;
                    outages.retain(|_, (end, _)| end == 0 || end >= oldest)?;
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// The number of the last sample of `run` that is written.
    pub(super) fn written(&self, run: u64) -> Result<u64, Fault> {
        guarded(|| written(&self.database.begin_read()?.open_table(META)?, run))
    }

    /// The roll-ups of a check from the one that starts at `from` to the one that contains `to`, and the number of the last
    /// sample of `run` in them.
    pub(super) fn read(
        &self,
        name: &str,
        resolution: Resolution,
        (from, to): (u32, u32),
        run: u64,
    ) -> Result<(BTreeMap<u32, Rollup>, u64), Fault> {
        guarded(|| {
            let transaction = self.database.begin_read()?;
            let written = written(&transaction.open_table(META)?, run)?;
            let table = transaction.open_table(rollups(resolution))?;
            let mut found = BTreeMap::new();
            for start in (from..=to).step_by(resolution.seconds() as usize) {
                if let Some(row) = table.get((start, name))? {
                    found.insert(start, row.value().into());
                }
            }
            Ok((found, written))
        })
    }

    /// The states of the checks `names`.
    pub(super) fn states(&self, names: &[String]) -> Result<Vec<Option<String>>, Fault> {
        guarded(|| {
            let table = self.database.begin_read()?.open_table(STATES)?;
            names
                .iter()
                .map(|name| {
                    let row = table.get(name.as_str())?;
                    Ok(row.map(|row| row.value().1.to_owned()))
                })
                .collect()
        })
    }

    /// Calls `visit` with each minute of the day before `now`, newest first: the index of the check in `names`, the start of the
    /// minute, and the roll-up.
    pub(super) fn visit_day(
        &self,
        names: &[String],
        now: SystemTime,
        mut visit: impl FnMut(usize, u32, &Rollup),
    ) -> Result<(), Fault> {
        let indices: HashMap<&str, usize> = names
            .iter()
            .enumerate()
            .map(|(index, name)| (name.as_str(), index))
            .collect();
        let (from, to) = day_before(now);
        guarded(|| {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(rollups(Resolution::Minute))?;
            // Includes a minute that starts in this second.
            for row in table.range((from, "")..(to.saturating_add(1), ""))?.rev() {
                let (key, row) = row?;
                let (start, name) = key.value();
                if let Some(index) = indices.get(name) {
                    visit(*index, start, &row.value().into());
                }
            }
            Ok(())
        })
    }

    /// All roll-ups of a check.
    #[cfg(test)]
    pub(super) fn all(&self, name: &str, resolution: Resolution) -> BTreeMap<u32, Rollup> {
        let transaction = self.database.begin_read().unwrap();
        let table = transaction.open_table(rollups(resolution)).unwrap();
        table
            .iter()
            .unwrap()
            .map(Result::unwrap)
            .filter(|(key, _)| key.value().1 == name)
            .map(|(key, row)| (key.value().0, row.value().into()))
            .collect()
    }
}

/// Renames the file at `path` to an unused name that says `why`.
fn move_aside(path: &Path, why: &str) -> io::Result<PathBuf> {
    // Without colons, which some file systems do not allow.
    let time = humantime::format_rfc3339_seconds(SystemTime::now())
        .to_string()
        .replace(':', "-");
    let mut aside = path.with_extension(format!("redb.{why}-{time}"));
    let mut more = 1;
    while aside.symlink_metadata().is_ok() {
        more += 1;
        aside = path.with_extension(format!("redb.{why}-{time}-{more}"));
    }
    fs::rename(path, &aside)?;
    sync_parent(path)?;
    Ok(aside)
}

/// The number of the last written sample of `run`; 0 if another run wrote last.
fn written(meta: &impl ReadableTable<&'static str, u64>, run: u64) -> Result<u64, redb::Error> {
    let value = |key| -> Result<_, StorageError> { Ok(meta.get(key)?.map(|value| value.value())) };
    Ok(if value("run")? == Some(run) {
        value("written")?.unwrap_or(0)
    } else {
        0
    })
}

#[cfg(test)]
mod tests {
    use std::{sync::LazyLock, time::Duration};

    use proptest::prelude::*;
    use redb::{ReadableTableMetadata, TableDefinition};
    use tempfile::{TempDir, tempdir};

    use super::*;
    use crate::history::schema::SCHEMA;

    /// The start of the test data.
    const START: u32 = 1_800_000_000;
    const DAY: u32 = Resolution::Day.seconds();

    fn sample(seconds: u32, milliseconds: u64) -> Sample {
        Sample::new(time(seconds), Some(Duration::from_millis(milliseconds)))
    }

    fn time(seconds: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into())
    }

    /// A directory whose file has the samples of one day.
    fn filled() -> TempDir {
        let directory = tempdir().unwrap();
        let disk = Disk::open(directory.path()).unwrap();
        for hour in 0..24 {
            let samples = (0..360).map(|it| ("cache", sample(START + hour * 3600 + it * 10, 5)));
            disk.write(samples, [], (1, 1)).unwrap();
        }
        disk.close().unwrap();
        directory
    }

    /// The bytes of the file in [`filled`].
    static WHOLE: LazyLock<Vec<u8>> =
        LazyLock::new(|| fs::read(filled().path().join("history.redb")).unwrap());

    fn count(disk: &Disk, name: &str) -> u64 {
        let (rollups, _) = disk
            .read(
                name,
                Resolution::Day,
                (START - START % DAY, START + 2 * DAY),
                1,
            )
            .unwrap();
        rollups
            .values()
            .map(|rollup| rollup.summary().samples)
            .sum()
    }

    fn damaged_files(directory: &TempDir) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("history.redb.damaged-"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn keeps_one_year_and_deletes_older_data_and_removed_checks() {
        let directory = tempdir().unwrap();
        let disk = Disk::open(directory.path()).unwrap();
        let mut now = START;
        for day in 0..500 {
            // One sample per hour; the check `removed` exists only in the first month.
            let samples = (0..24).flat_map(|hour| {
                let sample = sample(START + day * DAY + hour * 3600, u64::from(day) + 1);
                let removed = (day < 30).then_some(("removed", sample));
                removed.into_iter().chain([("cache", sample)])
            });
            now = START + day * DAY + DAY - 1;
            let removed = (day < 30).then_some(("removed", (now, "{}")));
            let states = removed.into_iter().chain([("cache", (now, "{}"))]);
            disk.write(samples, states, (1, u64::from(day))).unwrap();
            if day % 20 == 19 {
                disk.prune(time(now)).unwrap();
            }
        }

        let read = |name, resolution: Resolution, window: u32| {
            let from = resolution.start(now - window);
            let (rollups, written) = disk.read(name, resolution, (from, now), 1).unwrap();
            assert_eq!(written, 499);
            rollups
        };
        let days = read("cache", Resolution::Day, 366 * DAY);
        assert_eq!(days.len(), 367);
        for (start, rollup) in &days {
            let day = f64::from((start + DAY - 1 - START) / DAY + 1);
            let summary = rollup.summary();
            // Days start at midnight UTC, but the days of this test do not.
            let p50 = summary.latency_ms.unwrap().p50;
            assert!((p50 - day).abs() <= 0.05 * day + 1.0, "{p50} on day {day}");
            assert!(summary.samples == 24 || *start == Resolution::Day.start(now));
        }
        assert_eq!(read("cache", Resolution::Hour, 15 * DAY).len(), 15 * 24 + 1);
        assert_eq!(read("cache", Resolution::Minute, 6 * 60 * 60).len(), 6);
        assert!(read("removed", Resolution::Day, 366 * DAY).len() <= 1);

        // No other rows are left.
        let lengths = |disk: &Disk| {
            Resolution::ALL.map(|resolution| {
                let transaction = disk.database.begin_read().unwrap();
                let table = transaction.open_table(rollups(resolution)).unwrap();
                table.len().unwrap()
            })
        };
        assert_eq!(lengths(&disk), [1500, 400, 400]);
        assert_eq!(
            Resolution::ALL.map(|resolution| disk.all("removed", resolution).len()),
            [0; 3]
        );

        let states = disk.states(&["cache", "removed"].map(String::from));
        assert_eq!(states.unwrap(), [Some("{}".into()), None]);

        // After 400 days without the service, old rows remain until they are replaced by new ones.
        let later = now + 400 * DAY;
        for days in [0..100, 100..399, 399..400] {
            let last = later + (days.end - 1) * DAY;
            let samples = days.map(|day| ("cache", sample(later + day * DAY, 1)));
            disk.write(samples, [], (2, 1)).unwrap();
            disk.prune(time(last)).unwrap();
            assert_eq!(lengths(&disk), [1500, 400, 400]);
        }
        let days = disk.all("cache", Resolution::Day);
        assert_eq!(days.keys().next(), Some(&Resolution::Day.start(later)));
    }

    #[test]
    fn merges_separate_writes_and_records_the_run() {
        let directory = filled();
        let disk = Disk::open(directory.path()).unwrap();
        assert_eq!(count(&disk, "cache"), 24 * 360);
        assert_eq!(count(&disk, "cach"), 0);
        assert_eq!(disk.written(1).unwrap(), 1);
        assert_eq!(disk.written(2).unwrap(), 0);
        let (minutes, _) = disk
            .read("cache", Resolution::Minute, (START, START + 3599), 1)
            .unwrap();
        assert_eq!(minutes.len(), 60);
        assert!(minutes.values().all(|minute| minute.summary().samples == 6));
    }

    #[test]
    fn visits_the_minutes_of_the_last_day() {
        let directory = filled();
        let disk = Disk::open(directory.path()).unwrap();
        let last = START + DAY - 10;
        disk.write([("new", sample(last, 7))], [], (1, 2)).unwrap();
        let names = ["unknown", "cache", "new"].map(String::from);
        let visit = |now| {
            let mut minutes = vec![Vec::new(); names.len()];
            disk.visit_day(&names, time(now), |index, start, rollup| {
                minutes[index].push((start, rollup.summary().samples));
            })
            .unwrap();
            minutes
        };
        let minutes = visit(START + DAY - 1);
        assert_eq!(minutes[0], []);
        assert_eq!(minutes[1].len(), 1440);
        assert!(minutes[1].is_sorted_by_key(|(start, _)| u32::MAX - start));
        assert!(minutes[1].iter().all(|(_, samples)| *samples == 6));
        assert_eq!(minutes[2], [(last - last % 60, 1)]);
        // A minute that has just started is included.
        disk.write([("new", sample(START + DAY, 7))], [], (1, 3))
            .unwrap();
        assert_eq!(visit(START + DAY)[2].len(), 2);
        // The first minute is included as long as a part of it is less than a day ago.
        assert_eq!(visit(START + DAY + 59)[1].len(), 1440);
        assert_eq!(visit(START + DAY + 60)[1].len(), 1439);
        assert_eq!(visit(START + 3 * DAY), vec![Vec::new(); 3]);
    }

    #[test]
    fn moves_foreign_and_damaged_files_aside_without_overwriting_them() {
        let foreign: Vec<(&str, Vec<u8>)> = vec![
            ("text", b"another program's notes\n".repeat(1000)),
            ("short", b"x".to_vec()),
            ("zeros", vec![0; 1 << 20]),
            (
                "sqlite",
                [b"SQLite format 3\0".to_vec(), vec![7; 8192]].concat(),
            ),
        ];
        for (what, bytes) in foreign {
            let directory = tempdir().unwrap();
            let path = directory.path().join("history.redb");
            // Twice, which is usually within one second.
            for more in 1..=2 {
                fs::write(&path, &bytes).unwrap();
                let disk = Disk::open(directory.path()).unwrap();
                disk.write([("cache", sample(START, 1))], [], (1, 1))
                    .unwrap();
                drop(disk);
                let aside = damaged_files(&directory);
                assert_eq!(aside.len(), more, "{what}: {aside:?}");
                for name in aside {
                    assert_eq!(fs::read(directory.path().join(name)).unwrap(), bytes);
                }
            }
            // The new file is usable.
            let disk = Disk::open(directory.path()).unwrap();
            assert_eq!(count(&disk, "cache"), 1);
            assert_eq!(damaged_files(&directory).len(), 2);
        }
    }

    #[test]
    fn moves_a_file_of_another_program_aside() {
        let numbers: TableDefinition<&str, u64> = TableDefinition::new("meta");
        let words: TableDefinition<&str, &str> = TableDefinition::new("meta");
        let schema = |version: u64| {
            move |transaction: &redb::WriteTransaction| {
                let mut table = transaction.open_table(numbers).unwrap();
                table.insert("schema", version).unwrap();
            }
        };
        let write: [&dyn Fn(&redb::WriteTransaction); 5] = [
            &|_| {},
            &|transaction| {
                let mut table = transaction.open_table(words).unwrap();
                table.insert("schema", "1").unwrap();
            },
            &schema(0),
            &schema(1),
            &schema(SCHEMA),
        ];
        for write in write {
            let directory = tempdir().unwrap();
            let database = Database::create(directory.path().join("history.redb")).unwrap();
            let transaction = database.begin_write().unwrap();
            write(&transaction);
            transaction.commit().unwrap();
            drop(database);
            Disk::open(directory.path()).unwrap();
            assert_eq!(damaged_files(&directory).len(), 1);
        }
    }

    #[test]
    fn moves_a_file_of_a_later_version_aside() {
        let directory = filled();
        let path = directory.path().join("history.redb");
        let set_version = |path: &Path, version: u64| {
            let database = Database::open(path).unwrap();
            let transaction = database.begin_write().unwrap();
            let mut meta = transaction.open_table(META).unwrap();
            meta.insert("schema", version).unwrap();
            drop(meta);
            transaction.commit().unwrap();
        };
        set_version(&path, SCHEMA + 1);
        let new = Disk::open(directory.path()).unwrap();
        assert_eq!(count(&new, "cache"), 0);
        drop(new);
        assert_eq!(damaged_files(&directory).len(), 0);
        let aside = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_str().unwrap().contains("history.redb.newer-"))
            .unwrap();
        // As if the later version had the same tables.
        set_version(&aside, SCHEMA);
        fs::rename(aside, path).unwrap();
        let old = Disk::open(directory.path()).unwrap();
        assert_eq!(count(&old, "cache"), 24 * 360);
    }

    #[test]
    fn does_not_touch_a_locked_file() {
        let directory = filled();
        let holder = Disk::open(directory.path()).unwrap();
        assert!(matches!(Disk::open(directory.path()), Err(Fault::Locked)));
        drop(holder);
        // The same applies to a file that another program has open with redb.
        let reader = redb::ReadOnlyDatabase::open(directory.path().join("history.redb")).unwrap();
        assert!(matches!(Disk::open(directory.path()), Err(Fault::Locked)));
        drop(reader);
        assert_eq!(
            count(&Disk::open(directory.path()).unwrap(), "cache"),
            24 * 360
        );
        assert_eq!(damaged_files(&directory).len(), 0);
    }

    #[test]
    fn replaces_an_incomplete_new_file() {
        let directory = tempdir().unwrap();
        fs::write(directory.path().join("history.redb.new"), [1; 5000]).unwrap();
        Disk::open(directory.path()).unwrap();
        assert_eq!(damaged_files(&directory).len(), 0);
        assert!(!directory.path().join("history.redb.new").exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_damaged_file_is_read_correctly_or_moved_aside(
            flips in prop::collection::vec((0.0..1.0_f64, 1_u8..), 0..20),
            left in prop_oneof![Just(1.0), 0.0..1.0_f64],
        ) {
            let directory = tempdir().unwrap();
            let path = directory.path().join("history.redb");
            let mut bytes = WHOLE.clone();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                clippy::cast_sign_loss,
                reason = "a place in a small file"
            )]
            let place = |share: f64| (share * bytes.len() as f64) as usize;
            let places: Vec<_> = flips.iter().map(|(share, by)| (place(*share), by)).collect();
            let left = place(left);
            for (place, by) in places {
                bytes[place] ^= by;
            }
            bytes.truncate(left);
            fs::write(&path, &bytes).unwrap();

            let disk = Disk::open(directory.path()).unwrap();
            let aside = damaged_files(&directory);
            if let [aside] = &aside[..] {
                prop_assert!(fs::read(directory.path().join(aside)).unwrap() == bytes, "the file was changed");
                prop_assert_eq!(count(&disk, "cache"), 0);
            } else {
                prop_assert_eq!(aside.len(), 0);
                let left = count(&disk, "cache");
                // An empty file counts as missing; with a damaged commit slot, redb uses the previous commit.
                prop_assert!(bytes.is_empty() || left == 24 * 360 || left == 23 * 360, "{}", left);
            }
            disk.write([("cache", sample(START, 1))], [], (1, 9)).unwrap();
        }
    }
}
