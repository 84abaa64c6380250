//! The state `degraded`: a check that is up, but slow or with a certificate that expires soon.

use std::{
    cell::Cell,
    ffi::OsString,
    rc::Rc,
    time::{Duration, Instant},
};

use api::Settings;
use reqwest::header::ACCEPT;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};

use crate::{
    probes::listen,
    routes::{get, start},
};

/// Keys of checks that are probed often and change their state at once.
pub const QUICK: &str = r#"
[defaults]
interval = "1s"
jitter = "0s"
timeout = "1s"
failures = 1
successes = 1
"#;

/// Starts the service with a configuration file of this content.
pub fn start_with(configuration: &str) -> String {
    let none = |_: &str| None::<OsString>;
    start(Settings::parse("api.toml", configuration, &none).unwrap())
}

/// Waits until the check `name` is in `state`, and returns its status.
pub async fn wait_for(url: &str, name: &str, state: &str) -> Value {
    let (start, client) = (Instant::now(), crate::client());
    loop {
        let request = client.get(format!("{url}/api/v1/checks/{name}"));
        let status: Value = request.send().await.unwrap().json().await.unwrap();
        if status["state"] == state {
            return status;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{status:#}");
        sleep(Duration::from_millis(20)).await;
    }
}

pub async fn text(url: String, accept: &str) -> String {
    let request = crate::client().get(url).header(ACCEPT, accept);
    request.send().await.unwrap().text().await.unwrap()
}

/// The value of a metric of the check `name`.
pub async fn metric(url: &str, metric: &str, name: &str) -> Option<f64> {
    let metrics = text(format!("{url}/metrics"), "*/*").await;
    let start = format!("{metric}{{check=\"{name}\"");
    let line = metrics.lines().find(|line| line.starts_with(&start))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[actix_web::test]
async fn slow_response_makes_a_check_degraded_which_counts_as_up() {
    let slow = Rc::new(Cell::new(false));
    let is_slow = slow.clone();
    let port = listen(move |mut stream| {
        let slow = is_slow.clone();
        async move {
            let _ = stream.read(&mut [0; 1024]).await;
            if slow.get() {
                sleep(Duration::from_millis(100)).await;
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            let _ = stream.write_all(answer).await;
        }
    })
    .await;
    let check = |name: &str, more: &str| {
        format!("[[checks]]\nname = \"{name}\"\nhttp = \"http://127.0.0.1:{port}/\"\n{more}\n")
    };
    let url = start_with(&format!(
        "{QUICK}{}{}",
        check(
            "slow",
            "critical = true\ninterval = \"2s\"\ntimeout = \"2s\"\ndegraded-above = \"90ms\""
        ),
        check(
            "fast",
            "interval = \"10s\"\ntimeout = \"10s\"\ndegraded-above = \"9s\""
        ),
    ));
    let mut events = get(format!("{url}/events")).await;
    wait_for(&url, "slow", "up").await;
    slow.set(true);
    let status = wait_for(&url, "slow", "degraded").await;
    assert_eq!(status["last"]["error"], Value::Null);
    let warning = status["last"]["warning"].as_str().unwrap();
    assert!(warning.starts_with("slow response: "), "{warning}");
    assert!(warning.ends_with("ms, more than 90ms"), "{warning}");
    assert_eq!(status["day"]["uptime"], 1.0);
    let fast = wait_for(&url, "fast", "up").await;
    assert_eq!(fast["last"]["warning"], Value::Null);

    for (name, degraded) in [("slow", 1.0), ("fast", 0.0)] {
        assert_eq!(metric(&url, "check_up", name).await, Some(1.0));
        assert_eq!(metric(&url, "check_degraded", name).await, Some(degraded));
    }
    let health: Value = get(format!("{url}/health")).await.json().await.unwrap();
    assert_eq!(health["status"], "warn");
    let component = &health["checks"]["slow:responseTime"][0];
    assert_eq!(component["status"], "warn");
    let output = component["output"].as_str().unwrap();
    assert!(output.starts_with("slow response: "), "{output}");
    assert_eq!(health["checks"]["fast:responseTime"][0]["status"], "pass");

    let page = text(url.clone(), "text/html").await;
    for expected in [
        "<h2>Degraded</h2>",
        "</a> is degraded. 2 of 2 checks are up.",
        "data-state=\"Degraded\"",
        "slow response: ",
    ] {
        assert!(page.contains(expected), "{expected}\n{page}");
    }
    let badge = text(format!("{url}/badge/slow.svg"), "*/*").await;
    assert!(badge.contains("slow: degraded"), "{badge}");
    assert!(badge.contains("#8a5a00"), "{badge}");

    let mut received = String::new();
    while !(received.contains("\"to\":\"degraded\"") && received.contains("\"warning\":\"slow r")) {
        let chunk = events.chunk().await.unwrap().unwrap();
        received.push_str(str::from_utf8(&chunk).unwrap());
    }
}
