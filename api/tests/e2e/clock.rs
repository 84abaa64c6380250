//! The program with a clock that jumps, by libfaketime.

use std::{fs, path::Path, thread, time::Duration};

use common::provision::{Package, Probe};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir, tempdir};

use crate::harness::{Service, install};

/// The places of the library on Debian.
const LIBRARY: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// The clock of a program, which this test sets.
struct Clock {
    offset: NamedTempFile,
    data: TempDir,
}

impl Clock {
    fn new() -> Self {
        install(&[Package {
            name: "libfaketime",
            purpose: "tests the service",
            probe: Probe::File(LIBRARY),
        }]);
        let clock = Self {
            offset: NamedTempFile::new().unwrap(),
            data: tempdir().unwrap(),
        };
        clock.set("+0");
        clock
    }

    /// Sets the clock to the right time plus `offset`. The monotonic clock does not jump.
    fn set(&self, offset: &str) {
        fs::write(self.offset.path(), format!("{offset}\n")).unwrap();
    }

    /// Starts the program with a check that fails every 100 ms.
    fn start(&self) -> Service {
        let library = LIBRARY.iter().find(|path| Path::new(path).exists());
        let configuration = format!(
            "data-dir = {:?}\n[[checks]]\nname = \"cache\"\ntcp = \"127.0.0.1:1\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\n",
            self.data.path().display().to_string()
        );
        let environment = [
            ("LD_PRELOAD", *library.unwrap()),
            (
                "FAKETIME_TIMESTAMP_FILE",
                self.offset.path().to_str().unwrap(),
            ),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        Service::start(&configuration, &environment)
    }
}

fn get(service: &Service, path: &str) -> String {
    // Fails if another test has already installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let text = async { reqwest::get(service.url(path)).await?.text().await };
    runtime.block_on(text).unwrap()
}

/// The number of probes since the start.
fn probes(service: &Service) -> u64 {
    let metrics = get(service, "/metrics");
    let line = metrics.lines().find(|it| it.starts_with("probes_total{"));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// The number of results in a window.
fn samples(service: &Service, window: &str) -> u64 {
    let path = format!("/api/v1/checks/cache/history?window={window}");
    let history: Value = serde_json::from_str(&get(service, &path)).unwrap();
    history["samples"].as_u64().unwrap()
}

/// Waits for some more probes, and returns how many there are.
fn more_probes(service: &Service) -> u64 {
    let before = probes(service);
    loop {
        let now = probes(service);
        if now >= before + 10 {
            return now;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn stop(mut service: Service) {
    service.signal(Signal::SIGINT);
    assert!(service.child.wait().unwrap().success());
}

#[test]
fn clock_jumps_delete_nothing_and_count_nothing_twice() {
    let clock = Clock::new();
    let service = clock.start();
    more_probes(&service);
    // The number of results that need not be in the last year: those from while the clock was ahead, which are shown only when
    // their time comes, and older ones.
    let mut hidden = 0;
    for offset in ["+2h", "-2h", "+400d", "-400d"] {
        clock.set(offset);
        let before = probes(&service);
        let after = more_probes(&service);
        clock.set("+0");
        if offset != "-2h" {
            // Probes happen between the jumps and the requests, too.
            hidden += after - before + 5;
        }
        more_probes(&service);
    }
    let assert_complete = |service: &Service, earlier: u64| {
        let before = earlier + probes(service);
        let found = samples(service, "1y");
        let after = earlier + probes(service);
        let expected = before.saturating_sub(hidden)..=after;
        assert!(expected.contains(&found), "{expected:?} {found}");
    };
    assert_complete(&service, 0);
    let all = probes(&service);
    stop(service);
    let service = clock.start();
    more_probes(&service);
    assert_complete(&service, all);
}

#[test]
fn a_start_with_a_clock_that_is_400_days_ahead_deletes_nothing() {
    let clock = Clock::new();
    let service = clock.start();
    more_probes(&service);
    stop(service);
    let service = clock.start();
    let before = samples(&service, "1y");
    assert!(before >= 10);
    stop(service);

    clock.set("+400d");
    let service = clock.start();
    // The history is written every 10 s.
    for _ in 0..12 {
        more_probes(&service);
    }
    stop(service);

    clock.set("+0");
    let service = clock.start();
    for window in ["1h", "24h", "1y"] {
        let found = samples(&service, window);
        assert!(
            (before..before + 100).contains(&found),
            "{window}: {before} {found}"
        );
    }
}
