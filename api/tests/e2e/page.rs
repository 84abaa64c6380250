//! The status page in a real browser.

use std::{
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    browser::{Browser, TIMEOUT},
    harness::{Service, free_port},
};

/// A server that accepts connections until it is dropped. A listener that does not accept them would stop responding when its
/// queue is full.
struct Server {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn on(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = listener.accept();
                }
            }
        });
        Self {
            port,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread up.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The configuration of a check of `server`.
fn check_of(name: &str, server: &Server, critical: bool) -> String {
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
pub const LIVE: &str = "document.querySelector('#connection').textContent === 'Live'";

#[test]
fn page_is_accessible_in_both_colour_schemes_and_all_widths() {
    let (up, other) = (server(), server());
    let service = Service::start(
        &[
            check_of("shop-database", &up, true),
            check_of(
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
            browser.assert_accessible();
            browser.screenshot(&format!("page-{scheme}-{name}"));
        }
    }
    browser.assert_no_errors_or_foreign_requests(&service.url("/"));
}

#[test]
fn page_is_complete_and_reloads_without_javascript() {
    let up = server();
    let service = Service::start(&check_of("shop-database", &up, true), &[]);
    let browser = Browser::start();
    browser.devtools(
        "Emulation.setScriptExecutionDisabled",
        json!({"value": true}),
    );
    let start = Instant::now();
    let source = loop {
        browser.open(&service.url("/"));
        let document = browser.devtools("DOM.getDocument", json!({"depth": 0}));
        let html = browser.devtools(
            "DOM.getOuterHTML",
            json!({"nodeId": document["root"]["nodeId"]}),
        );
        let html = html["outerHTML"].as_str().unwrap().to_owned();
        if html.contains("All systems operational") {
            break html;
        }
        assert!(start.elapsed() < TIMEOUT, "{html}");
    };
    // In the head, where the browser parses the content of `noscript` as elements.
    assert!(source.contains(r#"<noscript><meta http-equiv="refresh" content="60"></noscript>"#));
    assert!(source.contains("since 20"), "{source}");
    assert!(source.contains("<p class=\"connection\">Updated once a minute</p>"));
    browser.screenshot("page-without-javascript");
    browser.assert_no_errors_or_foreign_requests(&service.url("/"));
}

#[test]
fn updates_the_page_without_a_reload_announces_it_and_keeps_the_focus() {
    let (critical, other) = (server(), server());
    let service = Service::start(
        &[
            check_of("shop-database", &critical, true),
            check_of("mail", &other, false),
        ]
        .concat(),
        &[],
    );
    let browser = Browser::start();
    browser.open(&service.url("/"));
    browser.wait(&format!(
        "{HEADLINE} === 'All systems operational' && {LIVE}"
    ));
    browser.run("window.marker = 1; document.getElementById('of-mail').focus()");
    assert_eq!(browser.run("return document.activeElement.id"), "of-mail");

    drop(other);
    browser.wait(&format!("{HEADLINE} === 'Degraded'"));
    let port = critical.port;
    drop(critical);
    browser.wait(&format!("{HEADLINE} === 'Outage'"));
    assert_eq!(browser.run("return window.marker"), 1);
    assert_eq!(browser.run("return document.activeElement.id"), "of-mail");
    browser.wait("document.title.startsWith('Outage · ')");
    assert_eq!(
        browser.run("return document.getElementById('news').textContent"),
        "shop-database is down. Outage."
    );
    browser.assert_accessible();
    browser.screenshot("page-outage");

    let _restarted = Server::on(port);
    browser.wait(&format!("{HEADLINE} === 'Degraded'"));
    assert_eq!(browser.run("return window.marker"), 1);
    browser.assert_no_errors_or_foreign_requests(&service.url("/"));

    drop(service);
    browser.wait("document.getElementById('connection').textContent.startsWith('Connection lost')");
    browser.screenshot("page-connection-lost");
}

#[test]
fn many_tabs_share_one_event_stream() {
    let up = server();
    let port = up.port;
    let service = Service::start(&check_of("mail", &up, false), &[]);
    let browser = Browser::start();
    let mut tabs = vec![browser.get("window")];
    // Not a secure context, as on most internal networks, where some APIs are missing.
    let url = format!("http://status.test:{}/", service.port);
    for tab in 0..8 {
        if tab > 0 {
            let new = browser.command("window/new", &json!({"type": "tab"}));
            browser.command("window", &json!({"handle": new["handle"]}));
            tabs.push(new["handle"].clone());
        }
        browser.open(&url);
        browser.wait(&format!(
            "{HEADLINE} === 'All systems operational' && {LIVE}"
        ));
    }
    assert_eq!(browser.run("return isSecureContext"), false);
    let metrics = browser.fetch("/metrics");
    assert!(
        metrics.lines().any(|line| line == "event_streams 1"),
        "{metrics}"
    );

    drop(up);
    for tab in &tabs {
        browser.command("window", &json!({"handle": tab}));
        browser.wait(&format!("{HEADLINE} === 'Degraded' && {LIVE}"));
    }
    // The stream outlives the tab that opened it.
    browser.command("window", &json!({"handle": tabs[0]}));
    browser.delete("window");
    browser.command("window", &json!({"handle": tabs[7]}));
    let _restarted = Server::on(port);
    browser.wait(&format!(
        "{HEADLINE} === 'All systems operational' && {LIVE}"
    ));
}

#[test]
fn page_is_live_without_shared_workers() {
    let up = server();
    let service = Service::start(&check_of("mail", &up, false), &[]);
    let browser = Browser::start();
    browser.devtools(
        "Page.addScriptToEvaluateOnNewDocument",
        json!({"source": "delete window.SharedWorker"}),
    );
    browser.open(&service.url("/"));
    browser.wait(&format!(
        "{HEADLINE} === 'All systems operational' && {LIVE} && !window.SharedWorker"
    ));
    drop(up);
    browser.wait(&format!("{HEADLINE} === 'Degraded' && {LIVE}"));
    browser.assert_no_errors_or_foreign_requests(&service.url("/"));
}

#[test]
fn every_link_is_reachable_by_keyboard_with_visible_focus() {
    let up = server();
    let service = Service::start(&check_of("mail", &up, false), &[]);
    let browser = Browser::start();
    browser.open(&service.url("/"));
    browser.wait(LIVE);
    // Links, and the bars of the check.
    let stops = "a, [tabindex='0']";
    let links = browser.run(&format!(
        "return document.querySelectorAll(\"{stops}\").length"
    ));
    for place in 0..links.as_u64().unwrap() {
        browser.press("\u{e004}");
        let focused = browser.run(&format!(
            "const it = document.activeElement, style = getComputedStyle(it);
             return [[...document.querySelectorAll(\"{stops}\")].indexOf(it), style.outlineStyle, parseFloat(style.outlineWidth)]",
        ));
        assert_eq!(focused, json!([place, "solid", 2]));
    }
}

/// A configuration of many checks of one server in four groups; two of them are down.
fn many(count: usize, server: &Server) -> String {
    let checks = (0..count).map(|index| {
        let port = if index % 40 == 33 { 1 } else { server.port };
        format!(
            "[[checks]]\nname = \"check-{index}\"\ntcp = \"127.0.0.1:{port}\"\ninterval = \"10s\"\ngroup = \"Group {}\"\n",
            index * 4 / count
        )
    });
    let defaults = "[defaults]\nfailures = 1\n".to_owned();
    defaults + &checks.collect::<String>()
}

#[test]
fn sixty_checks_fit_three_screens_in_groups_that_can_be_closed_and_filtered() {
    let up = server();
    let browser = Browser::start();
    for count in [12, 60] {
        let service = Service::start(&many(count, &up), &[]);
        browser.open(&service.url("/"));
        browser.wait(&format!(
            "{LIVE} && !document.querySelector('[data-state=Pending]')"
        ));
        for scheme in ["light", "dark"] {
            browser.scheme(scheme);
            for (width, name) in [(1200, "wide"), (320, "narrow")] {
                browser.size(width, 800);
                browser.assert_accessible();
                browser.screenshot(&format!("page-{count}-checks-{scheme}-{name}"));
                let height = browser.run("return document.documentElement.scrollHeight");
                assert!(height.as_u64().unwrap() <= 3 * 800, "{width}: {height}");
            }
        }
        browser.size(1200, 800);
        if count == 12 {
            continue;
        }
        // The group of the failing check comes first, and in it the failing check.
        let first = browser.run(
            "return [document.querySelector('summary h3').textContent, document.querySelector('[data-check]').id]",
        );
        assert_eq!(first, json!(["Group 2", "check-check-33"]));

        // A closed group stays closed after an update and a reload, but the filter opens it.
        browser.run("document.querySelector('summary').click()");
        let open = "document.querySelector('details.group').open";
        browser.wait(&format!("!{open}"));
        browser.open(&service.url("/"));
        browser.wait(&format!("!{open} && {LIVE}"));
        let filter = |text: &str| {
            browser.run(&format!(
                "const filter = document.getElementById('filter'); filter.value = '{text}';
                 filter.dispatchEvent(new Event('input', {{ bubbles: true }}))",
            ))
        };
        filter("check-4 group");
        browser.wait(&format!(
            "{open} && document.getElementById('found').textContent === '11 of 60'"
        ));
        filter("");
        browser.wait(&format!("!{open}"));
    }
}

/// The places where a line ends inside a word of a name or a target, and the cut ones without their whole text as title.
const BROKEN_NAMES: &str = r"
const found = [], range = document.createRange(), word = /[\p{L}\p{N}]/u;
for (const element of document.querySelectorAll('.name, .target, .headline h2, .headline a, .group h3, .facts dd')) {
  const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  let last;
  while (texts.nextNode()) {
    const { data } = texts.currentNode;
    for (let at = 0; at < data.length; at++) {
      range.setStart(texts.currentNode, at);
      range.setEnd(texts.currentNode, at + 1);
      const { top, bottom, width } = range.getBoundingClientRect();
      // A space at the end of a line has no width.
      if (!width && data[at].trim()) continue;
      if (last && top > last.bottom - 4 && word.test(data[at]) && word.test(last.letter)) found.push(data.slice(0, at) + '|' + data.slice(at));
      last = { bottom: width ? bottom : last?.bottom ?? bottom, letter: data[at] };
    }
  }
  range.selectNodeContents(element);
  const isCut = range.getBoundingClientRect().width > element.getBoundingClientRect().width + 1;
  if (isCut && element.title !== element.textContent) found.push(`no title: ${element.textContent}`);
}
return found";

#[test]
fn names_and_targets_do_not_break_inside_a_word_and_targets_can_be_hidden() {
    let up = server();
    let long_name = "x".repeat(63);
    let long_word = "donaudampfschifffahrtsgesellschaftskapitaen".repeat(2);
    let checks = [
        ("short", String::new()),
        (
            "a-check-with-a-name-as-long-as-it-can-be-63-letters-0123456789a",
            "critical = true".into(),
        ),
        (
            "a_check_with_a_name_as_long_as_it_can_be_63_letters_0123456789a",
            String::new(),
        ),
        (&*long_name, String::new()),
        (
            "words",
            format!(
                "display-name = \"The portal for customers of the {}\"",
                "northern region ".repeat(4)
            ),
        ),
        (
            "word",
            format!("display-name = \"{long_word}\"\ngroup = \"{long_word}\""),
        ),
        ("hidden", "hide-target = true".into()),
    ];
    let mut configuration =
        "[defaults]\ninterval = \"1s\"\ntimeout = \"1s\"\nfailures = 1\n".to_owned();
    for (name, keys) in &checks {
        let path = format!("of-{name}/{}?{long_word}", "a/path.of/many-words".repeat(4));
        configuration += &format!(
            "[[checks]]\nname = \"{name}\"\nhttp = \"http://localhost:{}/{path}\"\n{keys}\n",
            up.port
        );
    }
    let service = Service::start(&configuration, &[]);
    let browser = Browser::start();
    browser.open(&service.url("/"));
    // The server does not speak HTTP, so that the headline contains the names.
    browser.wait(&format!(
        "{HEADLINE} === 'Outage' && {LIVE} && !document.querySelector('[data-state=Pending]')"
    ));
    let assert_whole = |name: &str| {
        for (width, scheme) in [
            (1200, "light"),
            (700, "dark"),
            (560, "light"),
            (320, "dark"),
        ] {
            browser.scheme(scheme);
            browser.size(width, 800);
            assert_eq!(browser.run(BROKEN_NAMES), json!([]), "{name}, {width}");
            browser.assert_accessible();
            browser.screenshot(&format!("names-{name}-{width}"));
        }
        browser.size(1200, 800);
    };
    assert_whole("all");
    let target = "document.querySelector('#check-short .target').innerText";
    let expected = format!("http://localhost:{}/of-short/", up.port);
    browser.wait(&format!("{target}.startsWith('{expected}')"));
    for (name, _) in &checks {
        browser.open(&service.url(&format!("/checks/{name}")));
        browser.wait(LIVE);
        if ["words", "word"].contains(name) || name.len() == 63 {
            assert_whole(&name[..5.min(name.len())]);
        }
        let shown = browser.run("return document.documentElement.outerHTML.includes('localhost')");
        assert_eq!(shown, *name != "hidden", "{name}");
    }
    browser.open(&service.url("/"));
    let hidden = browser.run("return document.documentElement.outerHTML.includes('of-hidden/')");
    assert_eq!(hidden, false);
    browser.assert_no_errors_or_foreign_requests(&service.url("/"));
}

#[test]
fn bars_can_be_read_with_the_keyboard_and_the_pointer() {
    let up = server();
    let service = Service::start(&check_of("mail", &up, false), &[]);
    let browser = Browser::start();
    // Without a change of state, the page shows new results only after a minute or a reload.
    let has_results = "return document.getElementById('bars-mail')?.ariaValueMax >= 3";
    let start = Instant::now();
    while browser.run(has_results) != true {
        assert!(start.elapsed() < TIMEOUT, "too few results");
        browser.open(&service.url("/"));
    }
    browser.wait(LIVE);
    browser.run("document.getElementById('bars-mail').focus()");
    let value = || browser.run("return document.getElementById('bars-mail').ariaValueText");
    let newest = value();
    let newest = newest.as_str().unwrap();
    assert!(
        newest.starts_with("20") && newest.ends_with(" ms"),
        "{newest}"
    );
    let shown = "document.querySelector('.reading:not([hidden])')?.textContent";
    assert_eq!(browser.run(&format!("return {shown}")), newest);
    let place = || {
        let place = browser.run("return Number(document.getElementById('bars-mail').ariaValueNow)");
        place.as_u64().unwrap()
    };
    let last = place();
    browser.press("\u{e012}");
    assert_eq!(place(), last - 1);
    let earlier = value();
    // Without the latency: two results can be in the same second.
    let time = |text: &str| text.split_once(" UTC").unwrap().0.to_owned();
    assert!(time(earlier.as_str().unwrap()) <= time(newest), "{earlier}");
    browser.press("\u{e010}");
    assert_eq!(value(), newest);
    browser.press("\u{e00c}");
    assert_eq!(browser.run(&format!("return {shown} ?? null")), Value::Null);
    browser.run(
        "const svg = document.querySelector('.bars svg'), box = svg.getBoundingClientRect();
         svg.dispatchEvent(new PointerEvent('pointermove', { bubbles: true, clientX: box.right - 1, clientY: box.top + 5 }))",
    );
    browser.wait(&format!("{shown}?.startsWith('20')"));
    browser.assert_accessible();
    browser.screenshot("page-reading");
}

#[test]
fn page_of_a_check_is_accessible_and_updates_itself() {
    let (up, directory) = (server(), tempfile::tempdir().unwrap());
    let configuration = format!(
        "data-dir = \"{}\"\n{}",
        directory.path().display(),
        check_of("mail", &up, false)
    );
    let service = Service::start(&configuration, &[]);
    let browser = Browser::start();
    browser.open(&service.url("/"));
    browser.wait(LIVE);
    browser.run("document.getElementById('of-mail').click()");
    let state = "document.querySelector('[data-check]')?.dataset.state";
    browser.wait(&format!("{state} === 'Up' && {LIVE}"));
    browser.run("window.marker = 1");
    drop(up);
    browser.wait(&format!("{state} === 'Down'"));
    browser.wait("document.querySelector('.outages')?.textContent.includes('ongoing')");
    assert_eq!(browser.run("return window.marker"), 1);
    browser.run("document.getElementById('window-7d').click()");
    browser.wait(&format!(
        "document.getElementById('window-7d').ariaCurrent && {LIVE}"
    ));
    browser.run("document.querySelector('summary').click()");
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        for (width, name) in [(1200, "wide"), (320, "narrow")] {
            browser.size(width, 800);
            browser.assert_accessible();
            browser.screenshot(&format!("check-{scheme}-{name}"));
        }
    }
    browser.run("document.getElementById('bars-uptime').focus()");
    browser
        .wait("document.querySelector('.reading:not([hidden])')?.textContent.includes('Uptime')");
    browser.assert_no_errors_or_foreign_requests(&service.url("/"));
}

#[test]
fn documentation_and_empty_page_are_accessible_and_self_contained() {
    let service = Service::start("", &[]);
    let browser = Browser::start();
    for (path, name) in [("/", "empty"), ("/docs", "docs")] {
        browser.open(&service.url(path));
        for (width, scheme) in [(1200, "light"), (320, "dark")] {
            browser.scheme(scheme);
            browser.size(width, 800);
            browser.assert_accessible();
            browser.screenshot(&format!("{name}-{scheme}"));
        }
    }
    // Every internal link of the documentation has a target.
    let broken = browser.run(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(link => decodeURIComponent(link.hash.slice(1)))
            .filter(id => !document.getElementById(id))",
    );
    assert_eq!(broken, json!([]));
    browser.assert_no_errors_or_foreign_requests(&service.url("/"));
}

#[test]
fn badge_is_an_image_with_a_text_alternative() {
    let up = server();
    let service = Service::start(
        &[
            check_of("mail", &up, false),
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
        ("mail.svg?uptime", "mail 1 min: 100 %"),
    ] {
        browser.open(&service.url(&format!("/badge/{path}")));
        let badge = browser.run(
            "const image = document.documentElement, box = it => it.getBBox(), short = text => text.replace(/, known since.*/, '');
             return [short(image.getAttribute('aria-label')), short(image.querySelector('title').textContent), image.getAttribute('role'),
                     [...image.querySelectorAll('text')].every((text, place) => {
                        const ground = image.querySelectorAll('g rect')[place];
                        return box(text).x >= box(ground).x && box(text).x + box(text).width <= box(ground).x + box(ground).width;
                     })]",
        );
        assert_eq!(badge, json!([words, words, "img", true]));
    }
    browser.size(320, 40);
    browser.screenshot("badge-uptime");
    browser.assert_no_errors_or_foreign_requests(&service.url("/"));
}
