//! Reloading the configuration of the running program.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{process::api, routes::get};

/// Longer than everything that the tests wait for.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The program with a configuration file, which is killed when dropped.
struct Service {
    child: Child,
    log: Receiver<Value>,
    port: u64,
}

impl Service {
    /// Starts the program with the file at `path`.
    fn start(path: &Path) -> Self {
        let mut child = api(&[])
            .env("PORT", "0")
            .arg("--config")
            .arg(path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, log) = mpsc::channel();
        thread::spawn(move || {
            for line in lines {
                let _ = sender.send(serde_json::from_str(&line.unwrap()).unwrap());
            }
        });
        let mut service = Self {
            child,
            log,
            port: 0,
        };
        let listening = service.log_until("listening").pop().unwrap();
        service.port = listening["port"].as_u64().unwrap();
        service
    }

    /// The next log lines, up to the one with this message.
    fn log_until(&self, message: &str) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            let line = self.log.recv_timeout(TIMEOUT);
            assert!(line.is_ok(), "no line {message:?} after {lines:?}");
            lines.push(line.unwrap());
            if lines.last().unwrap()["message"] == message {
                return lines;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Sends SIGHUP, and waits until the new configuration is applied.
    fn reload(&self) -> Vec<Value> {
        self.signal(Signal::SIGHUP);
        self.log_until("reloaded the configuration")
    }

    /// Stops the program, which must be running.
    fn stop(mut self) {
        self.signal(Signal::SIGINT);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    async fn json(&self, path: &str) -> Value {
        get(self.url(path)).await.json().await.unwrap()
    }

    /// The checks, once each one has a result.
    async fn checks(&self) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let list = self.json("/api/v1/checks").await;
            let checks = list["checks"].as_array().unwrap().clone();
            if checks.iter().all(|check| check["state"] != "pending") {
                return checks;
            }
            assert!(start.elapsed() < TIMEOUT, "{checks:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The name of each check on the page, and how many results its chart shows.
    async fn results(&self) -> Vec<String> {
        let page = crate::client()
            .get(self.url("/"))
            .header("accept", "text/html");
        let page = page.send().await.unwrap().text().await.unwrap();
        let rows = page.split("data-check=\"").skip(1);
        rows.map(|row| {
            let (name, row) = row.split_once('"').unwrap();
            let (_, row) = row.split_once("Last ").unwrap();
            let (count, _) = row.split_once(" results").unwrap();
            format!("{name}: {count}")
        })
        .collect()
    }

    async fn samples(&self, name: &str) -> Value {
        self.json(&format!("/api/v1/checks/{name}/history?window=1h"))
            .await["samples"]
            .take()
    }

    /// Waits until there are `count` results of the check `name`, because its state may be that of before a restart.
    async fn wait_for_samples(&self, name: &str, count: u64) {
        let start = Instant::now();
        while self.samples(name).await != count {
            assert!(start.elapsed() < TIMEOUT, "{name}: {count}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A configuration file in its own directory, and a server that its checks can probe.
struct Setup {
    folder: TempDir,
    server: TcpListener,
}

impl Setup {
    fn new(text: &str) -> Self {
        let setup = Self {
            folder: tempfile::tempdir().unwrap(),
            server: TcpListener::bind("127.0.0.1:0").unwrap(),
        };
        setup.write(text);
        setup
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("api.toml")
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    /// A check of the server that is probed once in the test.
    fn check(&self, name: &str) -> String {
        check(name, self.server.local_addr().unwrap().port())
    }
}

fn check(name: &str, port: u16) -> String {
    format!(
        "[[checks]]\nname = \"{name}\"\ntcp = \"127.0.0.1:{port}\"\ninterval = \"1h\"\nfailures = 1\n"
    )
}

fn names(checks: &[Value]) -> Vec<&str> {
    checks
        .iter()
        .map(|check| check["name"].as_str().unwrap())
        .collect()
}

#[actix_web::test]
async fn sighup_applies_the_file_and_keeps_the_state_and_the_schedule_of_unchanged_checks() {
    let setup = Setup::new("");
    let [same, removed, new] = ["same", "removed", "new"].map(|name| setup.check(name));
    setup.write(&format!("title = \"Before\"\n{removed}{same}"));
    let service = Service::start(&setup.path());
    let before = service.checks().await;
    assert_eq!(names(&before), ["removed", "same"]);

    setup.write(&format!(
        "title = \"After\"\nenvironment = \"changed\"\nevent-streams = 1\n{new}{same}"
    ));
    let log = service.reload();
    let counts = (
        &log.last().unwrap()["started"],
        &log.last().unwrap()["stopped"],
    );
    assert_eq!(counts, (&1.into(), &1.into()));
    let after = service.checks().await;
    assert_eq!(names(&after), ["new", "same"]);
    // Not only the state: it was not probed again.
    assert_eq!(after[1], before[1]);
    assert_eq!(service.results().await, ["new: 1", "same: 1"]);
    assert_eq!(service.samples("same").await, 1);
    let gone = get(service.url("/api/v1/checks/removed")).await;
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
    let page = crate::client()
        .get(service.url("/"))
        .header("accept", "text/html");
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(page.contains("· After</title>"), "{page}");
    assert_eq!(service.json("/").await["env"], "changed");
    let _stream = get(service.url("/events")).await;
    let refused = get(service.url("/events")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);

    // A check that returns continues with its results.
    setup.write(&format!("{removed}{same}{new}"));
    service.reload();
    let again = service.checks().await;
    assert_eq!(names(&again), ["removed", "same", "new"]);
    assert_eq!(again[0]["since"], before[0]["since"]);
    assert_eq!(again[1], before[1]);
    service.wait_for_samples("removed", 2).await;
    assert_eq!(service.results().await, ["removed: 2", "same: 1", "new: 1"]);
    service.stop();
}

#[actix_web::test]
async fn sighup_reports_all_problems_and_keeps_the_old_configuration_if_the_new_one_is_invalid() {
    let setup = Setup::new("");
    let same = setup.check("same");
    setup.write(&same);
    let service = Service::start(&setup.path());
    let before = service.checks().await;
    let valid = async || {
        let metrics = get(service.url("/metrics")).await.text().await.unwrap();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("config_last_reload_successful "));
        line.unwrap().ends_with(" 1")
    };
    assert!(valid().await);

    setup.write("titel = 1\n[[checks]]\nname = \"No\"\ntcp = \"h:1\"\ntimeout = \"s3cret\"\n");
    service.signal(Signal::SIGHUP);
    let log = service.log_until("cannot reload the configuration, keeping the current one");
    let problems: Vec<_> = log
        .iter()
        .filter_map(|line| line["problem"].as_str())
        .collect();
    let path = setup.path().display().to_string();
    let positions = [
        "1:1: unknown key titel",
        "3:9: name is not valid",
        "5:12: timeout is not valid",
    ];
    assert_eq!(problems.len(), positions.len(), "{problems:?}");
    for (problem, position) in problems.iter().zip(positions) {
        assert!(
            problem.starts_with(&format!("{path}:{position}")),
            "{problem}"
        );
    }
    assert!(!format!("{log:?}").contains("s3cret"));
    assert_eq!(service.checks().await, before);
    assert!(!valid().await);

    fs::remove_file(setup.path()).unwrap();
    service.signal(Signal::SIGHUP);
    let log = service.log_until("cannot reload the configuration, keeping the current one");
    assert!(
        format!("{log:?}").contains("cannot read the file"),
        "{log:?}"
    );

    setup.write(&same);
    service.reload();
    assert_eq!(service.checks().await, before);
    assert!(valid().await);
    service.stop();
}

#[actix_web::test]
async fn changed_check_is_probed_at_once_and_keeps_its_history() {
    let setup = Setup::new("");
    setup.write(&setup.check("one"));
    let service = Service::start(&setup.path());
    let before = service.checks().await;
    assert_eq!(before[0]["state"], "up");
    setup.write(&check("one", 1));
    service.reload();
    let start = Instant::now();
    while service.checks().await[0]["state"] != "down" {
        assert!(start.elapsed() < TIMEOUT);
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(service.checks().await[0]["target"], "127.0.0.1:1");
    assert_eq!(service.samples("one").await, 2);
    service.stop();
}

#[actix_web::test]
async fn reload_names_settings_that_take_effect_after_a_restart() {
    let setup = Setup::new("connections = 100\nbase-path = \"/one\"\n");
    let service = Service::start(&setup.path());
    let data = setup.folder.path().join("data");
    setup.write(&format!(
        "listen = \"127.0.0.1:1\"\nconnections = 200\nbase-path = \"/two\"\ndata-dir = {data:?}\n"
    ));
    let log = service.reload();
    let keys: Vec<_> = log.iter().filter_map(|line| line["key"].as_str()).collect();
    assert_eq!(keys, ["listen", "base-path", "data-dir", "connections"]);
    assert_eq!(
        get(service.url("/one/livez")).await.status(),
        StatusCode::OK
    );
    service.stop();
}

#[actix_web::test]
async fn watch_reloads_after_the_symbolic_link_of_a_config_map_is_replaced() {
    let setup = Setup::new("");
    fs::remove_file(setup.path()).unwrap();
    let path = |name: &str| setup.folder.path().join(name);
    // As the kubelet does it: api.toml -> ..data/api.toml, and ..data -> a directory for each version.
    let publish = |version: &str, text: &str| {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("api.toml"), text).unwrap();
        symlink(version, path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
    };
    let text = |watch, title| {
        format!(
            "watch = {watch}\ntitle = \"{title}\"\n{}",
            setup.check("same")
        )
    };
    publish("..1", &text(false, "One"));
    symlink("..data/api.toml", setup.path()).unwrap();
    let service = Service::start(&setup.path());
    let before = service.checks().await;
    let has_title = async |title: &str| {
        let page = crate::client()
            .get(service.url("/"))
            .header("accept", "text/html");
        let page = page.send().await.unwrap().text().await.unwrap();
        assert!(page.contains(&format!("· {title}</title>")), "{page}");
    };

    // Without the setting, only SIGHUP reloads.
    publish("..2", &text(true, "Two"));
    service.reload();
    has_title("Two").await;
    publish("..3", &text(true, "Three"));
    fs::remove_dir_all(path("..2")).unwrap();
    service.log_until("reloaded the configuration");
    has_title("Three").await;
    publish("..4", "titel = 1");
    service.log_until("cannot reload the configuration, keeping the current one");
    publish("..5", &text(false, "Five"));
    service.log_until("reloaded the configuration");
    has_title("Five").await;
    assert_eq!(service.checks().await, before);
    service.stop();
}

#[actix_web::test]
async fn reload_keeps_the_history_on_disk() {
    let setup = Setup::new("");
    let data = format!("data-dir = {:?}\n", setup.folder.path().join("data"));
    let [one, two, three] = ["one", "two", "three"].map(|name| setup.check(name));
    setup.write(&format!("{data}{one}{two}"));
    let service = Service::start(&setup.path());
    service.checks().await;
    setup.write(&format!("{data}{three}{two}"));
    service.reload();
    service.checks().await;
    service.stop();

    // Each result belongs to the name of its check, whatever its place in the file was.
    setup.write(&format!("{data}{}", check("one", 1)));
    let service = Service::start(&setup.path());
    service.wait_for_samples("one", 2).await;
    setup.write(&format!("{data}{}{}", check("three", 1), check("two", 1)));
    service.reload();
    for name in ["three", "two"] {
        service.wait_for_samples(name, 2).await;
    }
    service.stop();
}
