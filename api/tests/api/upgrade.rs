//! Starts on a data directory of an earlier version.

use std::{fs, path::Path, time::SystemTime};

use redb::{Database, ReadableTable, TableDefinition};
use tempfile::tempdir;

use crate::history::Served;

/// A table of roll-ups in version 1.
type RollupsOfVersion1 = TableDefinition<'static, (u32, &'static str), (u32, Vec<(u8, u32)>)>;

fn seconds_ago(seconds: u32) -> u32 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    u32::try_from(now.as_secs()).unwrap() - seconds
}

/// Writes a file as the releases with version 1 did: `cache` fails since two hours, and succeeded the year before, once a day.
fn write_version_1(directory: &Path) {
    const MINUTE: u32 = 60;
    const HOUR: u32 = 60 * MINUTE;
    const DAY: u32 = 24 * HOUR;
    let database = Database::create(directory.join("history.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    for (name, length) in [("minutes", MINUTE), ("hours", HOUR), ("days", DAY)] {
        let definition: RollupsOfVersion1 = TableDefinition::new(name);
        let mut table = transaction.open_table(definition).unwrap();
        let mut add = |before: u32, success: bool| {
            let time = seconds_ago(before);
            let start = time - time % length;
            let (mut failures, mut bins) = table
                .get((start, "cache"))
                .unwrap()
                .map_or_else(Default::default, |row| row.value());
            if success {
                bins = vec![(80, bins.first().map_or(1, |(_, count)| count + 1))];
            } else {
                failures += 1;
            }
            table.insert((start, "cache"), (failures, bins)).unwrap();
        };
        for day in 1..=300 {
            add(day * DAY, true);
        }
        for minute in 0..120 {
            add(minute * MINUTE, false);
        }
    }
    let meta: TableDefinition<&str, u64> = TableDefinition::new("meta");
    let mut meta = transaction.open_table(meta).unwrap();
    for (key, value) in [("schema", 1), ("run", u64::MAX), ("written", 420)] {
        meta.insert(key, value).unwrap();
    }
    drop(meta);
    transaction.commit().unwrap();
}

#[actix_web::test]
async fn keeps_the_history_of_version_1() {
    let directory = tempdir().unwrap();
    write_version_1(directory.path());
    // The second start finds the migrated file.
    for _ in 0..2 {
        let served = Served::start(Some(directory.path()));
        for (window, samples) in [("6h", 120), ("7d", 127), ("1y", 420)] {
            let history = served
                .history(&format!("cache/history?window={window}"))
                .await;
            // The day of the clock change can be in the window or not.
            let found = history["samples"].as_u64().unwrap();
            assert!(found.abs_diff(samples) <= 1, "{window}: {found}");
        }
        served.stop().await;
        let mut files: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["history.lock", "history.redb"]);
    }
}
