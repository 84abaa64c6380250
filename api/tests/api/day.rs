//! The statistics of the last 24 hours: on the page, on badges, in `/api/v1/checks` and in the history.

use std::time::{Duration, SystemTime};

use api::{board::Board, history::Sample};
use serde_json::Value;
use tempfile::tempdir;

use crate::{
    history::{Served, record},
    routes::get,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn time(text: &Value) -> SystemTime {
    humantime::parse_rfc3339(text.as_str().unwrap()).unwrap()
}

/// What the places say that show the statistics of the last 24 hours.
#[derive(Debug, PartialEq)]
struct Figures {
    samples: u64,
    failures: u64,
    /// With two decimals, from the badge.
    uptime: String,
    label: String,
    known_since: Option<SystemTime>,
}

/// The figures of `cache`, which are the same everywhere.
async fn figures(served: &Served) -> Figures {
    let status = served.history("cache").await;
    let day = &status["day"];
    let history = served.history("cache/history?window=24h").await;
    for key in ["samples", "failures", "uptime", "known_since"] {
        assert_eq!(day[key], history[key], "{key}");
    }
    let number = |key: &str| day[key].as_u64().unwrap();
    let image = get(format!("{}/badge/cache.svg?uptime", served.url)).await;
    let image = image.text().await.unwrap();
    let (_, title) = image.split_once("<title>cache ").unwrap();
    let (label, title) = title.split_once(": ").unwrap();
    let (uptime, known) = title.split_once(" %").unwrap();
    let page = crate::client()
        .get(&served.url)
        .header("Accept", "text/html")
        .send();
    let page = page.await.unwrap().text().await.unwrap();
    assert!(page.contains(&format!("{uptime} %")), "{page}");
    let known_since = (!day["known_since"].is_null()).then(|| time(&day["known_since"]));
    assert_eq!(known.starts_with(", known since "), known_since.is_some());
    assert_eq!(page.contains("class=\"known\""), known_since.is_some());
    Figures {
        samples: number("samples"),
        failures: number("failures"),
        uptime: uptime.into(),
        label: label.into(),
        known_since,
    }
}

/// Records a result every 10 s from `from` ago to `to` ago.
fn record_since(
    board: &Board,
    now: SystemTime,
    from: Duration,
    to: Duration,
    latency: Option<u64>,
) {
    let mut ago = from;
    while ago > to {
        record(board, now - ago, latency);
        ago -= 10 * SECOND;
    }
}

#[actix_web::test]
async fn covers_24_hours_with_every_interval_also_after_a_restart() {
    let directory = tempdir().unwrap();
    for data in [None, Some(directory.path())] {
        let served = Served::start(data);
        let now = SystemTime::now();
        let board = &served.service.board;
        // The day before is not counted.
        record_since(board, now, 26 * HOUR, DAY + 2 * MINUTE, None);
        record_since(board, now, DAY - 20 * SECOND, 20 * HOUR, None);
        record_since(board, now, 20 * HOUR, Duration::ZERO, Some(20));
        let failures = 4 * 60 * 6 - 2;
        let expected = Figures {
            samples: failures + 20 * 60 * 6,
            failures,
            uptime: "83.35".into(),
            label: "24 h".into(),
            known_since: None,
        };
        assert_eq!(figures(&served).await, expected);
        served.stop().await;
        if data.is_some() {
            let served = Served::start(data);
            assert_eq!(figures(&served).await, expected);
            served.stop().await;
        }
    }
}

#[actix_web::test]
async fn says_since_when_results_are_known() {
    let directory = tempdir().unwrap();
    for data in [None, Some(directory.path())] {
        let now = SystemTime::now();
        let started = now - 5 * HOUR - 30 * MINUTE;
        let served = Served::start(data);
        for minute in 0..100 {
            let latency = (minute < 57).then_some(20);
            record(&served.service.board, started + minute * MINUTE, latency);
        }
        let check = async |served: &Served| {
            let figures = figures(served).await;
            assert_eq!((figures.samples, figures.failures), (100, 43));
            assert_eq!((&*figures.uptime, &*figures.label), ("57.00", "5 h"));
            let known_since = figures.known_since.unwrap();
            let early = started.duration_since(known_since).unwrap_or_default();
            assert!(early < MINUTE, "{known_since:?}");
            for window in ["6h", "24h", "25h", "7d", "30d", "1y"] {
                let query = format!("cache/history?window={window}");
                let known_since = time(&served.history(&query).await["known_since"]);
                let early = started.duration_since(known_since).unwrap_or_default();
                assert!(early < MINUTE, "{window}: {known_since:?}");
            }
            for window in ["1m", "5h"] {
                let query = format!("cache/history?window={window}");
                assert_eq!(served.history(&query).await["known_since"], Value::Null);
            }
        };
        check(&served).await;
        served.stop().await;
        if data.is_some() {
            let served = Served::start(data);
            check(&served).await;
            served.stop().await;
        }
    }
}

#[actix_web::test]
async fn does_not_count_results_from_while_the_clock_was_ahead() {
    let directory = tempdir().unwrap();
    for data in [None, Some(directory.path())] {
        let served = Served::start(data);
        let now = SystemTime::now();
        let board = &served.service.board;
        record(board, now - MINUTE, Some(1));
        record_since(board, now + 400 * DAY, HOUR, Duration::ZERO, None);
        record_since(board, now + 2 * HOUR, HOUR, Duration::ZERO, None);
        record(board, now, Some(1));
        let found = figures(&served).await;
        assert_eq!((found.samples, &*found.uptime), (2, "100"));
        for window in ["6h", "7d", "1y"] {
            let query = format!("cache/history?window={window}");
            assert_eq!(served.history(&query).await["samples"], 2, "{window}");
        }
        served.stop().await;
    }
}

#[actix_web::test]
async fn reads_the_last_day_from_the_store_after_a_clock_jump() {
    let directory = tempdir().unwrap();
    let served = Served::start(Some(directory.path()));
    let board = &served.service.board;
    let now = SystemTime::now();
    record(board, now, Some(1));
    // The day was not read at the start, because the clock was wrong.
    for minute in 1..=10 {
        let sample = Sample::new(now - minute * MINUTE, None);
        let index = board.find("cache").unwrap();
        board.store().unwrap().add(index, sample);
    }
    assert_eq!(served.history("cache").await["day"]["samples"], 1);
    board.reload(now);
    let found = figures(&served).await;
    assert_eq!((found.samples, found.failures), (11, 10));
    record(board, SystemTime::now(), Some(1));
    assert_eq!(figures(&served).await.samples, 12);
    served.stop().await;
}
