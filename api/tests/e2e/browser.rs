//! The page in a real browser, by W3C WebDriver. What it looked like is kept in `screenshots` of the target folder.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use common::pins;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Service, free_port, install, package};

/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(30);

/// A browser with one tab; ended where a test ends.
struct Browser {
    driver: Child,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    session: String,
    _profile: TempDir,
}

impl Browser {
    fn start() -> Self {
        install(&[
            package("chromium", "chromium"),
            package("chromium-driver", "chromedriver"),
        ]);
        // Another test may have named it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Self {
            driver,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            client: reqwest::Client::builder()
                .no_proxy()
                .timeout(LIMIT)
                .build()
                .unwrap(),
            session: String::new(),
            _profile: profile,
        };
        let port = lines
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| {
                let (_, port) = line.split_once("started successfully on port ")?;
                port.trim_end_matches('.').parse::<u16>().ok()
            })
            .expect("chromedriver names its port");
        thread::spawn(move || lines.for_each(drop));
        let base = format!("http://127.0.0.1:{port}/session");
        let capabilities = json!({
            "goog:chromeOptions": {"args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--no-proxy-server", "--hide-scrollbars",
                format!("--user-data-dir={}", browser._profile.path().display()),
            ]},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        });
        let session = browser.ask(
            &base,
            &json!({"capabilities": {"alwaysMatch": capabilities}}),
        );
        let id = session["sessionId"].as_str().unwrap();
        browser.session = format!("{base}/{id}");
        browser.size(1200, 800);
        browser
    }

    fn ask(&self, url: &str, body: &Value) -> Value {
        self.runtime.block_on(async {
            let response = self.client.post(url).json(body).send().await.unwrap();
            let (status, mut answer) = (response.status(), response.json::<Value>().await.unwrap());
            assert!(status.is_success(), "{url}: {answer:#}");
            answer["value"].take()
        })
    }

    fn command(&self, name: &str, body: &Value) -> Value {
        self.ask(&format!("{}/{name}", self.session), body)
    }

    /// A command of the browser's own protocol.
    fn tell(&self, command: &str, parameters: Value) -> Value {
        self.command(
            "goog/cdp/execute",
            &json!({"cmd": command, "params": parameters}),
        )
    }

    fn open(&self, url: &str) {
        self.command("url", &json!({"url": url}));
    }

    /// What the body of a function gives in the page.
    fn run(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until an expression is true in the page.
    fn wait(&self, expression: &str) {
        let start = Instant::now();
        while self.run(&format!("return Boolean({expression})")) != true {
            assert!(
                start.elapsed() < LIMIT,
                "{expression} is not so:\n{}",
                self.run("return document.body.innerText")
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn size(&self, width: u32, height: u32) {
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": height, "deviceScaleFactor": 2, "mobile": false}),
        );
    }

    /// `light` or `dark`.
    fn scheme(&self, scheme: &str) {
        self.tell(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        );
    }

    /// Keeps what the whole page looks like.
    fn screenshot(&self, name: &str) {
        let image = self.tell(
            "Page.captureScreenshot",
            json!({"captureBeyondViewport": true, "format": "png"}),
        );
        let image = BASE64_STANDARD
            .decode(image["data"].as_str().unwrap())
            .unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../screenshots");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{name}.png")), image).unwrap();
    }

    fn log(&self, kind: &str) -> Vec<Value> {
        let log = self.command("se/log", &json!({"type": kind}));
        log.as_array().unwrap().clone()
    }

    /// Nothing was complained of, and nobody else was asked for anything.
    fn was_quiet(&self, origin: &str) {
        let complaints = self.log("browser");
        assert!(complaints.is_empty(), "{complaints:#?}");
        let asked: Vec<String> = self
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
        assert!(asked.iter().any(|url| url.starts_with(origin)), "{asked:?}");
        for url in asked {
            // The browser's own first tab is of `chrome:`.
            let here = [origin, "data:", "chrome:"]
                .iter()
                .any(|it| url.starts_with(it));
            assert!(here, "the page asked for {url}");
        }
    }

    /// axe-core finds nothing, and the page is no wider than the screen.
    fn is_accessible(&self) {
        self.run(axe());
        let found = self.command(
            "execute/async",
            &json!({"script": "axe.run().then(arguments[0], error => arguments[0](String(error)))", "args": []}),
        );
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
            // Ends Chromium with all its processes; on a runtime of its own, since a test that fails may be on the other one.
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

/// axe-core, from npm.
fn axe() -> &'static str {
    static SCRIPT: OnceLock<String> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        install(&[package("npm", "npm")]);
        let package = format!("axe-core@{}", pins::AXE_CORE);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(&package);
        let script = folder.join("node_modules/axe-core/axe.min.js");
        if !script.exists() {
            let output = Command::new("npm")
                .args([
                    "install",
                    "--no-save",
                    "--ignore-scripts",
                    "--no-audit",
                    "--prefix",
                ])
                .arg(&folder)
                .arg(package)
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        fs::read_to_string(script).unwrap()
    })
}

/// A server that takes connections until it is dropped. One that leaves them in its queue answers until that is full, which on a busy
/// machine is before the browser is there.
struct Server {
    port: u16,
    ends: Arc<AtomicBool>,
    takes: Option<JoinHandle<()>>,
}

impl Server {
    fn on(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ends = Arc::new(AtomicBool::new(false));
        let takes = thread::spawn({
            let ends = Arc::clone(&ends);
            move || {
                while !ends.load(Ordering::Relaxed) {
                    let _ = listener.accept();
                }
            }
        });
        Self {
            port,
            ends,
            takes: Some(takes),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.takes.take().map(JoinHandle::join);
    }
}

/// What checks a server.
fn checked(name: &str, server: &Server, critical: bool) -> String {
    check(name, server.port, critical)
}

fn check(name: &str, port: u16, critical: bool) -> String {
    format!(
        r#"
[[checks]]
name = "{name}"
tcp = "127.0.0.1:{port}"
critical = {critical}
interval = "500ms"
timeout = "500ms"
failures = 2
"#
    )
}

fn server() -> Server {
    Server::on(0)
}

const HEADLINE: &str = "document.querySelector('h2').textContent";
const LIVE: &str = "document.querySelector('#connection').textContent === 'Live'";

#[test]
fn the_page_is_accessible_in_light_and_dark_wide_and_narrow() {
    let (up, other) = (server(), server());
    let service = Service::start(
        &[
            checked("shop-database", &up, true),
            checked(
                "a-check-with-a-name-as-long-as-it-can-be-63-letters-0123456789a",
                &other,
                false,
            ),
            check("gone", free_port(), false),
        ]
        .concat(),
        &[("APP_ENV", "staging")],
    );
    let browser = Browser::start();
    browser.open(&service.url("/"));
    browser.wait(&format!("{HEADLINE} === 'Degraded' && {LIVE}"));
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        for (width, name) in [(1200, "wide"), (700, "middle"), (320, "narrow")] {
            browser.size(width, 800);
            browser.is_accessible();
            browser.screenshot(&format!("page-{scheme}-{name}"));
        }
    }
    browser.was_quiet(&service.url("/"));
}

#[test]
fn without_javascript_the_page_is_complete_and_comes_again() {
    let up = server();
    let service = Service::start(&checked("shop-database", &up, true), &[]);
    let browser = Browser::start();
    browser.tell(
        "Emulation.setScriptExecutionDisabled",
        json!({"value": true}),
    );
    let start = Instant::now();
    let source = loop {
        browser.open(&service.url("/"));
        let document = browser.tell("DOM.getDocument", json!({"depth": 0}));
        let html = browser.tell(
            "DOM.getOuterHTML",
            json!({"nodeId": document["root"]["nodeId"]}),
        );
        let html = html["outerHTML"].as_str().unwrap().to_owned();
        if html.contains("All is well") {
            break html;
        }
        assert!(start.elapsed() < LIMIT, "{html}");
    };
    // In the head, so the browser takes what is in `noscript` for elements.
    assert!(source.contains(r#"<noscript><meta http-equiv="refresh" content="60"></noscript>"#));
    assert!(source.contains("since 20"), "{source}");
    assert!(source.contains("<p class=\"connection\">Updated once a minute</p>"));
    browser.screenshot("page-without-javascript");
    browser.was_quiet(&service.url("/"));
}

#[test]
fn a_change_arrives_without_a_reload_is_announced_and_leaves_the_focus() {
    let (critical, other) = (server(), server());
    let service = Service::start(
        &[
            checked("shop-database", &critical, true),
            checked("mail", &other, false),
        ]
        .concat(),
        &[],
    );
    let browser = Browser::start();
    browser.open(&service.url("/"));
    browser.wait(&format!("{HEADLINE} === 'All is well' && {LIVE}"));
    browser.run("window.marker = 1; document.getElementById('json-mail').focus()");
    assert_eq!(browser.run("return document.activeElement.id"), "json-mail");

    drop(other);
    browser.wait(&format!("{HEADLINE} === 'Degraded'"));
    let port = critical.port;
    drop(critical);
    browser.wait(&format!("{HEADLINE} === 'Outage'"));
    assert_eq!(browser.run("return window.marker"), 1);
    assert_eq!(browser.run("return document.activeElement.id"), "json-mail");
    browser.wait("document.title.startsWith('Outage · ')");
    assert_eq!(
        browser.run("return document.getElementById('news').textContent"),
        "shop-database is down. Outage."
    );
    browser.is_accessible();
    browser.screenshot("page-outage");

    let _back = Server::on(port);
    browser.wait(&format!("{HEADLINE} === 'Degraded'"));
    assert_eq!(browser.run("return window.marker"), 1);
    browser.was_quiet(&service.url("/"));

    drop(service);
    browser.wait("document.getElementById('connection').textContent.startsWith('Connection lost')");
    browser.screenshot("page-connection-lost");
}

#[test]
fn the_keyboard_reaches_every_link_and_shows_where_it_is() {
    let up = server();
    let service = Service::start(&checked("mail", &up, false), &[]);
    let browser = Browser::start();
    browser.open(&service.url("/"));
    browser.wait(LIVE);
    let links = browser.run("return document.querySelectorAll('a').length");
    for place in 0..links.as_u64().unwrap() {
        browser.command(
            "actions",
            &json!({"actions": [{"type": "key", "id": "keyboard", "actions": [
                {"type": "keyDown", "value": "\u{e004}"},
                {"type": "keyUp", "value": "\u{e004}"},
            ]}]}),
        );
        let focused = browser.run(
            "const it = document.activeElement, style = getComputedStyle(it);
             return [[...document.querySelectorAll('a')].indexOf(it), style.outlineStyle, parseFloat(style.outlineWidth)]",
        );
        assert_eq!(focused, json!([place, "solid", 2]));
    }
}

#[test]
fn the_documentation_and_a_page_without_checks_are_accessible_and_ask_nobody() {
    let service = Service::start("", &[]);
    let browser = Browser::start();
    for (path, name) in [("/", "empty"), ("/docs", "docs")] {
        browser.open(&service.url(path));
        for (width, scheme) in [(1200, "light"), (320, "dark")] {
            browser.scheme(scheme);
            browser.size(width, 800);
            browser.is_accessible();
            browser.screenshot(&format!("{name}-{scheme}"));
        }
    }
    // Every link within the documentation leads somewhere.
    let lost = browser.run(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(link => decodeURIComponent(link.hash.slice(1)))
            .filter(id => !document.getElementById(id))",
    );
    assert_eq!(lost, json!([]));
    browser.was_quiet(&service.url("/"));
}

#[test]
fn a_badge_is_an_image_that_says_in_words_what_it_shows() {
    let up = server();
    let service = Service::start(
        &[
            checked("mail", &up, false),
            check("gone", free_port(), false),
        ]
        .concat(),
        &[],
    );
    let browser = Browser::start();
    browser.open(&service.url("/"));
    browser.wait(&format!("{HEADLINE} === 'Degraded'"));
    for (path, words) in [
        ("mail.svg", "mail: up"),
        ("gone.svg", "gone: down"),
        ("mail.svg?uptime", "mail 24 h: 100 %"),
    ] {
        browser.open(&service.url(&format!("/badge/{path}")));
        let badge = browser.run(
            "const image = document.documentElement, box = it => it.getBBox();
             return [image.getAttribute('aria-label'), image.querySelector('title').textContent, image.getAttribute('role'),
                     [...image.querySelectorAll('text')].every((text, place) => {
                        const ground = image.querySelectorAll('g rect')[place];
                        return box(text).x >= box(ground).x && box(text).x + box(text).width <= box(ground).x + box(ground).width;
                     })]",
        );
        assert_eq!(badge, json!([words, words, "img", true]));
    }
    browser.size(320, 40);
    browser.screenshot("badge-uptime");
    browser.was_quiet(&service.url("/"));
}
