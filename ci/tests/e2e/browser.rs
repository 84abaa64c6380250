//! A real browser, Chromium without its user interface, driven by W3C WebDriver. Screenshots are stored in `screenshots` of the
//! target directory. The tests of `api` use this file, too.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use common::pins;
use common::provision::{Package, Probe};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::installed::{install, npm, write_executable};

/// A Debian package that contains `program`.
const fn package(name: &'static str, program: &'static str) -> Package {
    Package {
        name,
        purpose: "tests pages",
        probe: Probe::Program(program),
    }
}

/// Starts Chromium without its user interface, which saves two thirds of the CPU time. It opens its first tab only if it is given a
/// URL, which chromedriver does not do.
const CHROMIUM: &str = "#!/bin/sh\nexec chromium-headless-shell \"$@\" data:,\n";

/// The timeout of every step.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// A browser with one tab, which is closed when dropped.
pub struct Browser {
    driver: Child,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    session: String,
    _folder: TempDir,
}

/// Starts chromedriver on a free port, which it takes for IPv4 and then for IPv6. `None` if another program has that one.
fn start_driver() -> Option<(Child, u16)> {
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let port = lines.by_ref().map(Result::unwrap).find_map(|line| {
        let (_, port) = line.split_once("started successfully on port ")?;
        port.trim_end_matches('.').parse::<u16>().ok()
    });
    let Some(port) = port else {
        driver.wait().unwrap();
        return None;
    };
    thread::spawn(move || lines.for_each(drop));
    Some((driver, port))
}

impl Browser {
    pub fn start() -> Self {
        install(&[
            package("chromium-headless-shell", "chromium-headless-shell"),
            package("chromium-driver", "chromedriver"),
        ]);
        // Fails if another test has already installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (driver, port) = (0..5)
            .find_map(|_| start_driver())
            .expect("chromedriver starts");
        let folder = tempfile::tempdir().unwrap();
        let [program, profile] = ["chromium", "profile"].map(|name| folder.path().join(name));
        write_executable(&program, CHROMIUM);
        let mut browser = Self {
            driver,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            client: reqwest::Client::builder()
                .no_proxy()
                .timeout(TIMEOUT)
                .build()
                .unwrap(),
            session: String::new(),
            _folder: folder,
        };
        let base = format!("http://127.0.0.1:{port}/session");
        let capabilities = json!({
            "goog:chromeOptions": {"binary": program, "args": [
                "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--no-proxy-server", "--hide-scrollbars", "--host-resolver-rules=MAP status.test 127.0.0.1",
                format!("--user-data-dir={}", profile.display()),
            ]},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        });
        let session = browser.post(
            &base,
            &json!({"capabilities": {"alwaysMatch": capabilities}}),
        );
        let id = session["sessionId"].as_str().unwrap();
        browser.session = format!("{base}/{id}");
        browser.size(1200, 800);
        browser
    }

    fn post(&self, url: &str, body: &Value) -> Value {
        self.request(self.client.post(url).json(body))
    }

    fn request(&self, request: reqwest::RequestBuilder) -> Value {
        self.runtime.block_on(async {
            let response = request.send().await.unwrap();
            let (status, url) = (response.status(), response.url().clone());
            let mut answer = response.json::<Value>().await.unwrap();
            assert!(status.is_success(), "{url}: {answer:#}");
            answer["value"].take()
        })
    }

    pub fn get(&self, name: &str) -> Value {
        self.request(self.client.get(format!("{}/{name}", self.session)))
    }

    pub fn delete(&self, name: &str) -> Value {
        self.request(self.client.delete(format!("{}/{name}", self.session)))
    }

    /// The body of the response to a request of the page.
    pub fn fetch(&self, path: &str) -> String {
        let script = format!(
            "const [done] = arguments; fetch('{path}').then(it => it.text()).then(done, it => done(String(it)))"
        );
        let body = json!({"script": script, "args": []});
        self.command("execute/async", &body)
            .as_str()
            .unwrap()
            .into()
    }

    pub fn command(&self, name: &str, body: &Value) -> Value {
        self.post(&format!("{}/{name}", self.session), body)
    }

    /// Sends a command of the Chrome DevTools Protocol.
    pub fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.command(
            "goog/cdp/execute",
            &json!({"cmd": command, "params": parameters}),
        )
    }

    pub fn open(&self, url: &str) {
        self.command("url", &json!({"url": url}));
    }

    /// Runs the body of a function in the page, and returns its result.
    pub fn run(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until an expression is true in the page.
    pub fn wait(&self, expression: &str) {
        let start = Instant::now();
        while self.run(&format!("return Boolean({expression})")) != true {
            assert!(
                start.elapsed() < TIMEOUT,
                "{expression} is still false:\n{}",
                self.run("return document.body.innerText")
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses a key, given as in W3C WebDriver.
    pub fn press(&self, key: &str) {
        self.command(
            "actions",
            &json!({"actions": [{"type": "key", "id": "keyboard", "actions": [
                {"type": "keyDown", "value": key},
                {"type": "keyUp", "value": key},
            ]}]}),
        );
    }

    pub fn size(&self, width: u32, height: u32) {
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}),
        );
    }

    /// Sets the preferred colour scheme, `light` or `dark`.
    pub fn scheme(&self, scheme: &str) {
        self.devtools(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        );
    }

    /// Saves a screenshot of the whole page.
    pub fn screenshot(&self, name: &str) {
        let image = self.devtools(
            "Page.captureScreenshot",
            json!({"captureBeyondViewport": true, "format": "png", "optimizeForSpeed": true}),
        );
        let image = BASE64_STANDARD
            .decode(image["data"].as_str().unwrap())
            .unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../screenshots");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{name}.png")), image).unwrap();
    }

    pub fn log(&self, kind: &str) -> Vec<Value> {
        let log = self.command("se/log", &json!({"type": kind}));
        log.as_array().unwrap().clone()
    }

    /// Asserts that the browser logged no errors and sent no requests to other servers.
    pub fn assert_no_errors_or_foreign_requests(&self, origin: &str) {
        let errors = self.log("browser");
        assert!(errors.is_empty(), "{errors:#?}");
        let requested: Vec<String> = self
            .log("performance")
            .iter()
            .filter_map(|entry| {
                let entry: Value = serde_json::from_str(entry["message"].as_str()?).unwrap();
                let message = &entry["message"];
                (message["method"] == "Network.requestWillBeSent")
                    .then(|| message["params"]["request"]["url"].as_str())
                    .flatten()
                    .map(Into::into)
            })
            .collect();
        assert!(
            requested.iter().any(|url| url.starts_with(origin)),
            "{requested:?}"
        );
        for url in requested {
            // The initial tab of the browser loads `chrome:` pages.
            let expected = [origin, "data:", "chrome:"]
                .iter()
                .any(|it| url.starts_with(it));
            assert!(expected, "the page requested {url}");
        }
    }

    /// Asserts that axe-core reports no violations, and that the page is not wider than the screen.
    pub fn assert_accessible(&self) {
        // Of rules that pass, one element each: to describe all of them takes most of the time.
        const RUN: &str = "axe.run({ resultTypes: ['violations'] })
            .then(arguments[0], error => arguments[0](String(error)))";
        if self.run("return window.axe === undefined") == true {
            self.run(axe());
        }
        let found = self.command("execute/async", &json!({"script": RUN, "args": []}));
        let violations = found["violations"].as_array().expect("axe-core ran");
        assert!(violations.is_empty(), "{violations:#?}");
        assert!(found["passes"].as_array().unwrap().len() > 15);
        let [content, screen] = ["document.documentElement.scrollWidth", "innerWidth"]
            .map(|it| self.run(&format!("return {it}")).as_u64().unwrap());
        assert!(content <= screen, "{content} > {screen}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // Closes Chromium, on a separate runtime, because a failing test may be inside the other one.
            let end = || {
                let runtime = tokio::runtime::Runtime::new().ok()?;
                let client = reqwest::Client::builder().no_proxy().build().ok()?;
                runtime.block_on(client.delete(&self.session).send()).ok()
            };
            let _ = thread::scope(|scope| scope.spawn(end).join());
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The source of axe-core, installed from npm.
fn axe() -> &'static str {
    static SCRIPT: OnceLock<String> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        let script = npm("axe-core", pins::AXE_CORE).join("axe.min.js");
        fs::read_to_string(script).unwrap()
    })
}
