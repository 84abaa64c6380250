//! The table layout of the database file, and the migration of files of earlier versions.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::SystemTime,
};

use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle,
    WriteTransaction,
};

use super::{
    fault::{Fault, guarded},
    rollup::{Resolution, Row},
    sample::Sample,
};

/// The size of the redb cache in bytes.
const CACHE: usize = 1024 * 1024;

/// Changes the tables of a file to those of the next version.
type Step = fn(&WriteTransaction) -> Result<(), redb::Error>;

/// The first step changes version 1 to version 2, and so on. A step that was released stays as it is; an incompatible change of
/// the layout is a new step.
const STEPS: [Step; 1] = [add_states];

/// The version of the table layout.
pub(super) const SCHEMA: u64 = STEPS.len() as u64 + 1;

/// Contains `schema`, and the number of the last written sample as `run` and `written`.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Keyed by start time and check name, in this order, so that writes and deletions affect adjacent rows.
pub(super) type Rollups = TableDefinition<'static, (u32, &'static str), Row>;

pub(super) const fn rollups(resolution: Resolution) -> Rollups {
    match resolution {
        Resolution::Minute => Rollups::new("minutes"),
        Resolution::Hour => Rollups::new("hours"),
        Resolution::Day => Rollups::new("days"),
    }
}

/// Keyed by check name: the time of the last result, and the state after it as JSON.
pub(super) const STATES: TableDefinition<&str, (u32, &str)> = TableDefinition::new("states");

/// Keyed by check name and start time: the end, 0 while the outage continues, and the error. The table is created by the first
/// outage.
pub(super) const OUTAGES: TableDefinition<(&str, u32), (u32, &str)> =
    TableDefinition::new("outages");

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .set_cache_size(CACHE)
        // Otherwise a damaged page is read as valid, or causes a panic, at some later time.
        .set_check_integrity_on_open(true);
    builder
}

/// Opens the file at `path`, which exists, and migrates it if it is of an earlier version.
pub(super) fn open(path: &Path) -> Result<Database, Fault> {
    let version = guarded(|| {
        let database = builder().open(path)?;
        let version = version(&database)?;
        if version == SCHEMA {
            return Ok(Ok(database));
        }
        database.close()?;
        Ok(Err(version))
    })?;
    match version {
        Ok(database) => {
            guarded(|| require_tables(&database))?;
            Ok(database)
        }
        Err(found) if found > SCHEMA => Err(Fault::Newer {
            found,
            supported: SCHEMA,
        }),
        Err(older) => migrate(path, older),
    }
}

/// Creates a file. It is renamed when it is complete, so that a kill leaves no incomplete file.
pub(super) fn create(path: &Path) -> Result<Database, Fault> {
    let unfinished = unfinished(path)?;
    let database = guarded(|| {
        let database = builder().create(&unfinished)?;
        let transaction = database.begin_write()?;
        transaction.open_table(META)?.insert("schema", SCHEMA)?;
        for resolution in Resolution::ALL {
            transaction.open_table(rollups(resolution))?;
        }
        transaction.open_table(STATES)?;
        transaction.commit()?;
        Ok(database)
    })?;
    finish(&unfinished, path)?;
    Ok(database)
}

/// Replaces the file at `path`, which is of `version`, by a migrated copy. It is not changed before the copy is complete, so that
/// a kill or a full disk loses nothing.
fn migrate(path: &Path, version: u64) -> Result<Database, Fault> {
    tracing::info!(file = %path.display(), from = version, to = SCHEMA, "migrating the history file");
    let unfinished = unfinished(path)?;
    let migrated = fs::copy(path, &unfinished)
        .map_err(Fault::from)
        .and_then(|_| guarded(|| upgrade(&unfinished, version)))
        .inspect_err(|_| {
            // An incomplete copy would keep a full disk full. It is replaced later in any case.
            let _ = fs::remove_file(&unfinished);
        })?;
    finish(&unfinished, path)?;
    Ok(migrated)
}

/// Changes the file at `path` from `version` to [`SCHEMA`], in one transaction.
fn upgrade(path: &Path, version: u64) -> Result<Database, redb::Error> {
    let steps = usize::try_from(version)
        .ok()
        .and_then(|version| STEPS.get(version.checked_sub(1)?..))
        .ok_or_else(|| redb::Error::Corrupted(format!("unknown schema {version}")))?;
    let database = builder().open(path)?;
    let transaction = database.begin_write()?;
    for step in steps {
        step(&transaction)?;
    }
    transaction.open_table(META)?.insert("schema", SCHEMA)?;
    transaction.commit()?;
    require_tables(&database)?;
    Ok(database)
}

/// The version of the layout in a file.
fn version(database: &Database) -> Result<u64, redb::Error> {
    let version = database.begin_read()?.open_table(META)?.get("schema")?;
    version
        .map(|version| version.value())
        .ok_or_else(|| redb::Error::Corrupted("not a history file of this program".into()))
}

/// Fails if a table is missing or of another type.
fn require_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_read()?;
    for resolution in Resolution::ALL {
        transaction.open_table(rollups(resolution))?;
    }
    transaction.open_table(STATES)?;
    Ok(())
}

/// The path for a file that is to become the one at `path`; removes what a kill has left there.
fn unfinished(path: &Path) -> io::Result<PathBuf> {
    let unfinished = path.with_extension("redb.new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(unfinished),
    }
}

/// Renames the complete file.
fn finish(unfinished: &Path, path: &Path) -> io::Result<()> {
    fs::rename(unfinished, path)?;
    sync_parent(path)
}

/// Syncs the directory of `path`, so that its file names survive a power failure.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// What the results of version 1 say about the state of a check.
struct Derived {
    down: bool,
    since: u32,
    /// The start of the last roll-up.
    last: u32,
    /// The number of failures since the last success, and when they began.
    failing: (u32, u32),
}

/// Version 2 stores the state of each check. Version 1 has only roll-ups, so the state is derived from them: a check is down after
/// three consecutive failures, the default of `failures`, and up after a success.
fn add_states(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    const THRESHOLD: u32 = 3;
    type Rollups = TableDefinition<'static, (u32, &'static str), (u32, Vec<(u8, u32)>)>;
    const TABLES: [(Rollups, u32); 3] = [
        (Rollups::new("minutes"), 60),
        (Rollups::new("hours"), 60 * 60),
        (Rollups::new("days"), 24 * 60 * 60),
    ];
    const STATES: TableDefinition<&str, (u32, &str)> = TableDefinition::new("states");

    let now = Sample::new(SystemTime::now(), None).seconds();
    // Of each table, the part that is older than the next finer one.
    let mut parts = Vec::new();
    let mut end = u32::MAX;
    for (definition, seconds) in TABLES {
        // Opening it for writing would create it.
        if !transaction
            .list_tables()?
            .any(|table| table.name() == definition.name())
        {
            return Err(TableError::TableDoesNotExist(definition.name().into()).into());
        }
        let table = transaction.open_table(definition)?;
        let to = end.saturating_sub(seconds - 1);
        if let Some(first) = table.first()? {
            end = end.min(first.0.value().0);
        }
        parts.push((table, to));
    }
    let mut states: HashMap<String, Derived> = HashMap::new();
    for (table, to) in parts.iter().rev() {
        for row in table.range(..(*to, ""))? {
            let (key, row) = row?;
            let ((start, name), (failures, answers)) = (key.value(), row.value());
            let Some(check) = states.get_mut(name) else {
                let down = answers.is_empty();
                states.insert(
                    name.to_owned(),
                    Derived {
                        down,
                        since: start,
                        last: start,
                        failing: (if down { failures } else { 0 }, start),
                    },
                );
                continue;
            };
            // Results from while the clock was ahead.
            if start > now && check.last <= now {
                continue;
            }
            check.last = start;
            if !answers.is_empty() {
                check.failing = (0, start);
                if std::mem::take(&mut check.down) {
                    check.since = start;
                }
                continue;
            }
            if check.failing.0 == 0 {
                check.failing.1 = start;
            }
            check.failing.0 = check.failing.0.saturating_add(failures);
            if check.failing.0 >= THRESHOLD && !check.down {
                check.down = true;
                check.since = check.failing.1;
            }
        }
    }
    let mut table = transaction.open_table(STATES)?;
    for (name, check) in states {
        let (state, failed) = if check.down {
            ("down", 0)
        } else {
            ("up", check.failing.0)
        };
        let json = format!(
            r#"{{"state":"{state}","since":{{"secs_since_epoch":{},"nanos_since_epoch":0}},"streaks":{{"failed":{failed},"failed_or_degraded":{failed}}}}}"#,
            check.since
        );
        table.insert(name.as_str(), (check.last, json.as_str()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::{TempDir, tempdir};

    use super::*;
    use crate::history::rollup::Rollup;

    /// A file that the last release with version 1 wrote: `website` succeeded seven times, and `database` failed seven times.
    const RELEASED: &str = include_str!("../../tests/fixtures/history-schema-1.txt");

    /// The bytes of a fixture: hexadecimal digits, or one byte and how often it is repeated.
    fn bytes(fixture: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in fixture.split_whitespace() {
            let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
            let parsed: Vec<u8> = (0..digits.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
                .collect();
            bytes.extend(parsed.repeat(times.parse().unwrap()));
        }
        bytes
    }

    fn directory_with(file: &[u8]) -> TempDir {
        let directory = tempdir().unwrap();
        fs::write(directory.path().join("history.redb"), file).unwrap();
        directory
    }

    /// Opens the file, and returns the stored states by name.
    fn states(directory: &TempDir) -> HashMap<String, (u32, serde_json::Value)> {
        let database = open(&directory.path().join("history.redb")).unwrap();
        let table = database.begin_read().unwrap().open_table(STATES).unwrap();
        let rows = table.iter().unwrap().map(Result::unwrap);
        rows.map(|(name, row)| {
            let (last, state) = row.value();
            let state = serde_json::from_str(state).unwrap();
            (name.value().to_owned(), (last, state))
        })
        .collect()
    }

    #[test]
    fn migrates_a_released_file_of_version_1() {
        let directory = directory_with(&bytes(RELEASED));
        // A migration that was killed.
        fs::write(directory.path().join("history.redb.new"), [1; 5000]).unwrap();
        let database = open(&directory.path().join("history.redb")).unwrap();
        let transaction = database.begin_read().unwrap();
        for resolution in Resolution::ALL {
            let table = transaction.open_table(rollups(resolution)).unwrap();
            for (name, failures) in [("website", 0), ("database", 7)] {
                let mut all = Rollup::default();
                for row in table.iter().unwrap() {
                    let (key, row) = row.unwrap();
                    if key.value().1 == name {
                        all.merge(&row.value().into());
                    }
                }
                assert_eq!((all.summary().samples, all.failures()), (7, failures));
            }
        }
        drop((transaction, database));
        let states = states(&directory);
        assert_eq!(states["website"].1["state"], "up");
        assert_eq!(states["database"].1["state"], "down");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn keeps_the_old_file_when_the_migration_fails() {
        let directory = directory_with(&bytes(RELEASED));
        let obstacle = directory.path().join("history.redb.new");
        fs::create_dir(&obstacle).unwrap();
        let path = directory.path().join("history.redb");
        assert!(matches!(open(&path), Err(Fault::Io(_))));
        assert_eq!(version(&Database::open(&path).unwrap()).unwrap(), 1);
        fs::remove_dir(&obstacle).unwrap();
        assert_eq!(states(&directory).len(), 2);
    }

    #[test]
    fn derives_the_state_from_the_results_of_version_1() {
        const MINUTE: u32 = 60;
        const HOUR: u32 = 60 * MINUTE;
        const DAY: u32 = 24 * HOUR;
        const NOW: u32 = 1_700_006_400;
        /// Seconds before `NOW`, the number of failures, and whether there are successes.
        type Part = &'static [(u32, u32, bool)];
        type Case = (&'static str, [Part; 3], &'static str, u32, u64);
        let cases: [Case; 8] = [
            (
                "up",
                [&[(120, 0, true), (60, 0, true)], &[], &[]],
                "up",
                120,
                0,
            ),
            (
                "blip",
                [&[(180, 0, true), (120, 1, false), (60, 1, false)], &[], &[]],
                "up",
                180,
                2,
            ),
            (
                "down",
                [
                    &[
                        (240, 0, true),
                        (180, 1, false),
                        (120, 1, false),
                        (60, 1, false),
                    ],
                    &[],
                    &[],
                ],
                "down",
                180,
                0,
            ),
            (
                "recovered",
                [&[(180, 9, false), (120, 2, true), (60, 0, true)], &[], &[]],
                "up",
                120,
                0,
            ),
            ("first", [&[(60, 1, false)], &[], &[]], "down", 60, 0),
            // The hour and the day that contain finer roll-ups are not counted again.
            (
                "long-down",
                [
                    &[(60, 6, false)],
                    &[(HOUR, 360, false), (DAY, 360, false)],
                    &[(DAY, 8640, false), (3 * DAY, 8640, false)],
                ],
                "down",
                3 * DAY,
                0,
            ),
            (
                "not-probed-for-a-year",
                [&[], &[], &[(370 * DAY, 8, false)]],
                "down",
                370 * DAY,
                0,
            ),
            // Results from while the clock was ahead do not count.
            ("clock", [&[(60, 0, true)], &[], &[]], "up", 60, 0),
        ];
        let directory = tempdir().unwrap();
        let database = Database::create(directory.path().join("history.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        for (at, table) in ["minutes", "hours", "days"].into_iter().enumerate() {
            let table: Rollups = TableDefinition::new(table);
            let mut table = transaction.open_table(table).unwrap();
            for (name, parts, ..) in &cases {
                for (before, failures, successes) in parts[at] {
                    let bins = if *successes {
                        vec![(80, 1)]
                    } else {
                        Vec::new()
                    };
                    table
                        .insert((NOW - before, *name), (*failures, bins))
                        .unwrap();
                }
            }
            table
                .insert((4_000_000_000, "clock"), (99, Vec::new()))
                .unwrap();
        }
        transaction
            .open_table(META)
            .unwrap()
            .insert("schema", 1)
            .unwrap();
        transaction.commit().unwrap();
        drop(database);

        let states = states(&directory);
        assert_eq!(states.len(), cases.len());
        for (name, _, state, since, failed) in cases {
            let (_, json) = &states[name];
            assert_eq!(json["state"], state, "{name}");
            assert_eq!(json["streaks"]["failed"], failed, "{name}");
            assert_eq!(json["streaks"]["failed_or_degraded"], failed, "{name}");
            assert_eq!(
                json["since"]["secs_since_epoch"],
                u64::from(NOW - since),
                "{name}"
            );
        }
    }
}
