//! `GET /api/v1/checks/{name}/history`, from memory and from disk. The tests record the results of checks themselves.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use actix_web::{App, HttpServer, dev::ServerHandle, web};
use api::{
    Application, Settings,
    board::Board,
    checks::{Check, ProbeError, Target, TlsOptions, tcp},
    history::StoreState,
    routes,
    service::Service,
};
use reqwest::{StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::routes::get;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub fn settings(data: Option<&Path>) -> Settings {
    let check = |name: &str| Check {
        name: name.into(),
        display_name: None,
        target: Target::Tcp(tcp::Target {
            host: name.into(),
            port: 1,
        }),
        critical: false,
        interval: Duration::from_secs(10),
        jitter: Duration::ZERO,
        timeout: Duration::from_secs(5),
        failures: 1.try_into().unwrap(),
        successes: 1.try_into().unwrap(),
        degraded_above: None,
        tls: TlsOptions::default(),
        group: None,
        hide_target: false,
    };
    Settings {
        checks: ["other", "cache"].map(check).into(),
        data: data.map(Into::into),
        ..Settings::default()
    }
}

/// The service with its routes, but without probes.
pub struct Served {
    pub service: web::Data<Service>,
    pub url: String,
    handle: ServerHandle,
}

impl Served {
    pub fn start(data: Option<&Path>) -> Self {
        Self::start_with(settings(data))
    }

    pub fn start_with(settings: Settings) -> Self {
        let clients = api::checks::Clients::new(None).unwrap();
        let service = web::Data::new(Service::new(settings, clients).unwrap());
        let shared = service.clone();
        let server = HttpServer::new(move || {
            App::new().configure(|config| routes::configure(config, &shared))
        })
        .workers(1)
        .disable_signals()
        .bind("127.0.0.1:0")
        .unwrap();
        let url = format!("http://{}", server.addrs()[0]);
        let server = server.run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Self {
            service,
            url,
            handle,
        }
    }

    pub async fn history(&self, query: &str) -> Value {
        let response = get(format!("{}/api/v1/checks/{query}", self.url)).await;
        assert_eq!(response.status(), StatusCode::OK, "{query}");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        response.json().await.unwrap()
    }

    /// Stops the service and unlocks its directory.
    pub async fn stop(self) {
        self.handle.stop(true).await;
        drop(self.service);
    }
}

/// Records a result of `cache`: a latency in milliseconds, or `None` for a failure.
pub fn record(board: &Board, at: SystemTime, latency: Option<u64>) {
    let took = Duration::from_millis(latency.unwrap_or(0));
    let answer = latency.map_or_else(|| Err(ProbeError("connection lost".into())), |_| Ok(()));
    board.record(board.find("cache").unwrap(), at, took, answer);
}

fn time(text: &Value) -> SystemTime {
    humantime::parse_rfc3339(text.as_str().unwrap()).unwrap()
}

/// Whether a latency differs from `exact` by at most 5 %.
fn near(found: &Value, exact: f64) -> bool {
    (found.as_f64().unwrap() - exact).abs() <= 0.05 * exact
}

#[actix_web::test]
async fn returns_the_summary_the_buckets_and_the_recent_results_of_a_window() {
    let directory = tempdir().unwrap();
    for data in [None, Some(directory.path())] {
        let served = Served::start(data);
        let board = &served.service.board;
        // Ten results at the start of an hour half a day ago, one of them a failure, and three slower ones now.
        let now = SystemTime::now();
        let today = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(today - today % 3600) - 12 * HOUR;
        for minute in 0..10 {
            record(
                board,
                noon + Duration::from_secs(60 * minute),
                (minute != 5).then_some(10),
            );
        }
        for seconds in [3, 2, 1] {
            record(board, now - Duration::from_secs(seconds), Some(200));
        }

        for (window, seconds, resolution, samples, failures) in [
            ("", 86_400, 3600, 13_u32, 1_u32),
            ("?window=24h", 86_400, 3600, 13, 1),
            ("?window=1h", 3600, 60, 3, 0),
            ("?window=6h", 21_600, 60, 3, 0),
            ("?window=7d", 604_800, 3600, 13, 1),
            ("?window=30d", 2_592_000, 86_400, 13, 1),
            ("?window=1y", 31_557_600, 86_400, 13, 1),
            ("?window=366d", 31_622_400, 86_400, 13, 1),
            ("?window=999d", 31_622_400, 86_400, 13, 1),
        ] {
            let history = served.history(&format!("cache/history{window}")).await;
            assert_eq!(history["name"], "cache");
            assert_eq!(history["state"], "up");
            assert_eq!(history["window_seconds"], seconds);
            assert_eq!(history["resolution_seconds"], resolution);
            assert_eq!(history["samples"], samples, "{window}");
            let uptime = history["uptime"].as_f64().unwrap();
            assert!((uptime - f64::from(samples - failures) / f64::from(samples)).abs() < 1e-9);
            assert!(near(&history["latency_ms"]["p99"], 200.0));
            assert!(near(
                &history["latency_ms"]["p50"],
                if samples == 3 { 200.0 } else { 10.0 }
            ));
            let begin = time(&history["to"]) - Duration::from_secs(seconds);
            assert!(time(&history["from"]) <= begin);
            assert!(time(&history["from"]) > begin - Duration::from_secs(resolution));

            let buckets = history["buckets"].as_array().unwrap();
            let sum = |key| {
                buckets
                    .iter()
                    .map(|bucket| bucket[key].as_u64().unwrap())
                    .sum::<u64>()
            };
            assert_eq!(sum("samples"), u64::from(samples));
            assert_eq!(sum("failures"), u64::from(failures));
            assert!(buckets.is_sorted_by_key(|bucket| time(&bucket["start"])));
            assert!(time(&buckets[0]["start"]) >= time(&history["from"]));
            if resolution == 3600 {
                assert_eq!(time(&buckets[0]["start"]), noon);
                assert_eq!(buckets[0]["samples"], 10);
                assert_eq!(buckets[0]["uptime"], 0.9);
            }

            let recent = history["recent"].as_array().unwrap();
            assert_eq!(recent.len(), usize::try_from(samples).unwrap());
            assert_eq!(recent.last().unwrap()["latency_ms"], 200.0);
            if samples == 13 {
                let lost = noon + Duration::from_secs(5 * 60);
                assert_eq!(time(&recent[5]["time"]), lost);
                assert_eq!(recent[5]["latency_ms"], Value::Null);
            }
        }

        let history = served.history("other/history?window=1h").await;
        assert_eq!(history["state"], "pending");
        for (key, nothing) in [
            ("samples", json!(0)),
            ("uptime", Value::Null),
            ("latency_ms", Value::Null),
            ("buckets", json!([])),
            ("recent", json!([])),
        ] {
            assert_eq!(history[key], nothing, "{key}");
        }
        served.stop().await;
    }
}

#[actix_web::test]
async fn rejects_invalid_windows_and_unknown_checks() {
    let served = Served::start(None);
    for (query, part) in [
        (
            "cache/history?window=0s",
            "window=\"0s\": expected a duration",
        ),
        (
            "cache/history?window=yesterday",
            "expected a duration such as 30m",
        ),
        ("cache/history?window=-1h", "expected"),
        ("cache/history?window=", "expected"),
        ("cache/history?window=10ms", "expected"),
        ("cache/history?window=1000d", "expected"),
        ("cache/history?window=01h", "expected"),
        ("cache/history?window=2y", "expected"),
        ("cache/history?window=1day%2012h", "expected"),
        ("cache/history?window=1w", "expected"),
        ("cache/history?window=99999999999999999999y", "expected"),
        ("cache/history?window=1h&window=2h", "duplicate field"),
        ("unknown/history", "there is no check named \"unknown\""),
    ] {
        let response = get(format!("{}/api/v1/checks/{query}", served.url)).await;
        let expected = if query.starts_with("cache") {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::NOT_FOUND
        };
        assert_eq!(response.status(), expected, "{query}");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let problem: Value = response.json().await.unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(part), "{query}: {detail}");
    }
}

#[actix_web::test]
async fn restores_the_history_from_the_data_directory_after_a_restart() {
    let directory = tempdir().unwrap();
    let now = SystemTime::now();
    for round in 1..=3 {
        let served = Served::start(Some(directory.path()));
        for minute in 0..32 {
            let latency = (minute != 0).then_some(20);
            record(
                &served.service.board,
                now - Duration::from_secs(60 * minute),
                latency,
            );
        }
        let history = served.history("cache/history").await;
        assert_eq!(history["samples"], round * 32);
        assert!(near(&history["latency_ms"]["p95"], 20.0));
        // Restored samples are approximate, and so not among the recent results.
        assert_eq!(history["recent"].as_array().unwrap().len(), 32);

        let status = served.history("cache").await;
        assert_eq!(status["day"]["samples"], round * 32);
        assert_eq!(status["day"]["uptime"], 31.0 / 32.0);
        assert!(near(&status["day"]["latency_ms"]["p50"], 20.0));
        served.stop().await;
    }
}

#[actix_web::test]
async fn loses_the_history_on_restart_without_a_data_directory() {
    for _ in 0..2 {
        let served = Served::start(None);
        assert_eq!(served.service.board.store_state(), StoreState::Memory);
        record(&served.service.board, SystemTime::now(), Some(1));
        assert_eq!(served.history("cache/history").await["samples"], 1);
        served.stop().await;
    }
}

#[actix_web::test]
async fn excludes_samples_before_the_window() {
    let served = Served::start(None);
    let board = &served.service.board;
    record(board, SystemTime::now() - 2 * DAY, Some(1));
    record(board, SystemTime::now(), Some(1));
    assert_eq!(served.history("cache/history").await["samples"], 1);
    assert_eq!(
        served.history("cache/history?window=3d").await["samples"],
        2
    );
}

#[actix_web::test]
async fn rejects_a_locked_directory_before_binding_the_port() {
    let directory = tempdir().unwrap();
    let _served = Served::start(Some(directory.path()));
    // The port is in use, too, but the error is about the directory.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = Application::build(Settings {
        address: taken.local_addr().unwrap(),
        ..settings(Some(directory.path()))
    })
    .err()
    .unwrap();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("another replica"), "{error}");
}
