//! Restarts on a data directory, also of an earlier version.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use api::{Settings, history::Store};
use redb::{Database, ReadableTable, TableDefinition};
use reqwest::header::ACCEPT;
use tempfile::tempdir;

use crate::{
    history::{Served, record, settings},
    routes::get,
};

/// Settings with these thresholds, and critical checks.
fn with_thresholds(data: &Path, failures: u32, successes: u32) -> Settings {
    let mut settings = settings(Some(data));
    for check in &mut settings.checks {
        check.critical = true;
        check.failures = failures.try_into().unwrap();
        check.successes = successes.try_into().unwrap();
    }
    settings
}

async fn text(served: &Served, path: &str) -> String {
    let url = format!("{}{path}", served.url);
    let request = crate::client().get(url).header(ACCEPT, "text/html");
    request.send().await.unwrap().text().await.unwrap()
}

#[actix_web::test]
async fn restores_an_outage_before_the_first_probe() {
    let directory = tempdir().unwrap();
    let settings = || with_thresholds(directory.path(), 3, 2);
    let served = Served::start_with(settings());
    let hour_ago = SystemTime::now() - Duration::from_secs(60 * 60);
    for seconds in 0..4 {
        let at = hour_ago + Duration::from_millis(1000 * seconds + 250);
        record(&served.service.board, at, None);
    }
    let before = served.history("cache").await;
    assert_eq!(before["state"], "down");
    assert_eq!(before["last"]["error"], "connection lost");
    let other = served.history("other").await;
    served.stop().await;

    for _ in 0..2 {
        let served = Served::start_with(settings());
        let after = served.history("cache").await;
        for key in ["state", "since", "last"] {
            assert_eq!(after[key], before[key], "{key}");
        }
        assert_eq!(served.history("other").await["state"], other["state"]);
        let health = get(format!("{}/health", served.url)).await;
        let health: serde_json::Value = health.json().await.unwrap();
        assert_eq!(health["status"], "warn");
        let component = &health["checks"]["cache:responseTime"][0];
        assert_eq!(component["status"], "fail");
        assert_eq!(component["output"], "connection lost");
        let metrics = text(&served, "/metrics").await;
        let up = metrics
            .lines()
            .find(|line| line.starts_with("check_up{check=\"cache\""))
            .unwrap();
        assert!(up.ends_with(" 0.0"), "{up}");
        assert!(text(&served, "/").await.contains("<h2>Outage</h2>"));
        assert!(
            text(&served, "/badge/cache.svg")
                .await
                .contains("cache: down")
        );
        let page = text(&served, "/checks/cache").await;
        assert_eq!(page.matches(">ongoing</td>").count(), 1, "{page}");
        // A restart is not a change of the state.
        let changes = served.service.board.changes();
        let (missed, _) = changes.listen(Some(&changes.id(0)));
        assert_eq!(missed.len(), 0);
        served.stop().await;
    }

    let served = Served::start_with(settings());
    for _ in 0..2 {
        record(&served.service.board, SystemTime::now(), Some(1));
    }
    served.stop().await;
    // Only one outage is known, and it has ended.
    let served = Served::start_with(settings());
    let page = text(&served, "/checks/cache").await;
    assert!(!page.contains(">ongoing</td>"), "{page}");
    let outages = page
        .matches("<span class=\"error\">connection lost")
        .count();
    assert_eq!(outages, 1, "{page}");
    served.stop().await;
}

#[actix_web::test]
async fn restores_the_state_degraded_below_a_base_path() {
    let directory = tempdir().unwrap();
    let start = || {
        let mut settings = with_thresholds(directory.path(), 2, 2);
        settings.base_path = "/status".into();
        for check in &mut settings.checks {
            check.degraded_above = Some(Duration::from_millis(100));
        }
        Served::start_with(settings)
    };
    let served = start();
    let hour_ago = SystemTime::now() - Duration::from_secs(60 * 60);
    record(&served.service.board, hour_ago, Some(1));
    // One slow response before the restart and one after it.
    let slow = hour_ago + Duration::from_secs(1);
    record(&served.service.board, slow, Some(200));
    assert_eq!(served.history("cache").await["state"], "up");
    served.stop().await;
    let served = start();
    let since = slow + Duration::from_secs(1);
    record(&served.service.board, since, Some(300));
    let before = served.history("cache").await;
    assert_eq!(before["state"], "degraded");
    let warning = before["last"]["warning"].as_str().unwrap();
    assert!(warning.starts_with("slow response: "), "{warning}");
    served.stop().await;

    for _ in 0..2 {
        let served = start();
        let after = served.history("cache").await;
        for key in ["state", "since", "last"] {
            assert_eq!(after[key], before[key], "{key}");
        }
        // A slow response is a success.
        assert_eq!(after["day"]["samples"], 3);
        assert_eq!(after["day"]["uptime"], 1.0);
        let history = served.history("cache/history").await;
        assert_eq!(history["state"], "degraded");
        assert_eq!(history["uptime"], 1.0);
        let health: serde_json::Value = get(format!("{}/status/health", served.url))
            .await
            .json()
            .await
            .unwrap();
        let component = &health["checks"]["cache:responseTime"][0];
        assert_eq!(component["status"], "warn");
        assert_eq!(component["output"], warning);
        let metrics = text(&served, "/status/metrics").await;
        for (metric, value) in [("check_up", "1.0"), ("check_degraded", "1.0")] {
            let start = format!("{metric}{{check=\"cache\"");
            let line = metrics.lines().find(|line| line.starts_with(&start));
            assert!(line.unwrap().ends_with(&format!(" {value}")), "{line:?}");
        }
        let page = text(&served, "/status").await;
        assert!(page.contains("<h2>Degraded</h2>"), "{page}");
        assert!(page.contains("\"/status/checks/cache\""), "{page}");
        let page = text(&served, "/status/checks/cache").await;
        assert!(page.contains("<strong>Degraded</strong>"), "{page}");
        assert!(page.contains(warning), "{page}");
        assert!(page.contains("\"/status/badge/cache.svg\""), "{page}");
        assert!(page.contains("No outage is known"), "{page}");
        let badge = text(&served, "/status/badge/cache.svg").await;
        assert!(badge.contains("cache: degraded"), "{badge}");
        let badge = text(&served, "/status/badge/cache.svg?uptime").await;
        assert!(badge.contains(": 100 %"), "{badge}");
        // A restart is not a change of the state.
        let changes = served.service.board.changes();
        let (missed, _) = changes.listen(Some(&changes.id(0)));
        assert_eq!(missed.len(), 0);
        served.stop().await;
    }

    for state in ["degraded", "up"] {
        let served = start();
        let board = &served.service.board;
        record(board, SystemTime::now(), Some(1));
        assert_eq!(served.history("cache").await["state"], state);
        let changes = board.changes();
        let (missed, _) = changes.listen(Some(&changes.id(0)));
        let data: Vec<&str> = missed.iter().map(|event| &*event.data).collect();
        assert_eq!(data.len(), usize::from(state == "up"), "{data:?}");
        if let [data] = data[..] {
            assert!(data.contains(r#""from":"degraded","to":"up""#), "{data}");
        }
        served.stop().await;
    }
}

#[actix_web::test]
async fn restores_the_state_of_a_check_that_a_reload_adds() {
    let directory = tempdir().unwrap();
    let settings = || with_thresholds(directory.path(), 1, 1);
    let served = Served::start_with(settings());
    record(&served.service.board, SystemTime::now(), None);
    let before = served.history("cache").await;
    assert_eq!(before["state"], "down");
    served.stop().await;

    let mut without = settings();
    without.checks.retain(|check| check.name != "cache");
    let served = Served::start_with(without);
    assert_eq!(served.service.board.find("cache"), None);
    served.service.board.configure(settings().checks);
    let after = served.history("cache").await;
    for key in ["state", "since", "last", "day"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    served.stop().await;
}

#[actix_web::test]
async fn restores_consecutive_results() {
    let directory = tempdir().unwrap();
    let mut before = None;
    // One result in each run of the service.
    for (result, state) in [
        (None, "pending"),
        (None, "pending"),
        (None, "down"),
        (Some(1), "down"),
        (Some(1), "up"),
        (None, "up"),
        (None, "up"),
        (Some(1), "up"),
        (None, "up"),
        (None, "up"),
        (None, "down"),
    ] {
        let served = Served::start_with(with_thresholds(directory.path(), 3, 2));
        if let Some(before) = before {
            assert_eq!(served.history("cache").await["state"], before);
        }
        record(&served.service.board, SystemTime::now(), result);
        assert_eq!(served.history("cache").await["state"], state);
        before = Some(state);
        served.stop().await;
    }
}

#[actix_web::test]
async fn continues_after_a_state_of_a_later_version() {
    const STATES: TableDefinition<&str, (u32, &str)> = TableDefinition::new("states");
    for (stored, state) in [
        (r#""state":"throttled","new":[]"#, "up"),
        (
            r#""state":"half-open","last":{"time":{"secs_since_epoch":1,"nanos_since_epoch":0},"latency_ms":1.0,"error":"lost"}"#,
            "down",
        ),
    ] {
        let directory = tempdir().unwrap();
        drop(Store::open(directory.path(), Vec::new()).unwrap());
        let database = Database::open(directory.path().join("history.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        let json = format!(
            r#"{{{stored},"since":{{"secs_since_epoch":1790000000,"nanos_since_epoch":500000000}}}}"#
        );
        transaction
            .open_table(STATES)
            .unwrap()
            .insert("cache", (1_790_000_000, json.as_str()))
            .unwrap();
        transaction.commit().unwrap();
        drop(database);
        let served = Served::start(Some(directory.path()));
        let status = served.history("cache").await;
        assert_eq!(status["state"], state);
        assert_eq!(status["since"], "2026-09-21T14:13:20.500Z");
        record(&served.service.board, SystemTime::now(), Some(1));
        assert_eq!(served.history("cache").await["state"], "up");
        served.stop().await;
    }
}

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
        let status = served.history("cache").await;
        assert_eq!(status["state"], "down");
        let since = humantime::parse_rfc3339(status["since"].as_str().unwrap()).unwrap();
        let down = SystemTime::now().duration_since(since).unwrap();
        assert!((119..=121).contains(&(down.as_secs() / 60)), "{down:?}");
        // Version 1 has not stored outages.
        let page = text(&served, "/checks/cache").await;
        assert_eq!(page.matches(">ongoing</td>").count(), 1, "{page}");
        served.stop().await;
        let mut files: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["history.lock", "history.redb"]);
    }
}
