//! The status page, the badges and the API documentation.

use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use actix_web::{App, HttpServer, web};
use api::{
    Settings,
    checks::{Check, Clients, ProbeError, Target, TlsOptions, tcp},
    routes,
    service::Service,
};
use reqwest::{
    Method, Response, StatusCode,
    header::{
        ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY,
    },
};

use crate::routes::get;

/// A name that is full of markup.
const HOSTILE: &str = "\"'><script>alert(1)</script><!--&amp;{{7*7}}/../";

fn check(name: &str, critical: bool) -> Check {
    Check {
        name: name.into(),
        display_name: None,
        target: Target::Tcp(tcp::Target {
            host: format!("host-of-{name}"),
            port: 1,
        }),
        critical,
        interval: Duration::from_secs(60),
        jitter: Duration::ZERO,
        timeout: Duration::from_secs(1),
        failures: NonZeroU32::MIN,
        successes: NonZeroU32::MIN,
        degraded_above: None,
        tls: TlsOptions::default(),
        group: None,
        hide_target: false,
    }
}

/// Serves the routes on a free port, without probes.
fn start(settings: Settings) -> (String, web::Data<Service>) {
    let service = web::Data::new(Service::new(settings, Clients::new(None).unwrap()).unwrap());
    let shared = service.clone();
    let server =
        HttpServer::new(move || App::new().configure(|config| routes::configure(config, &shared)))
            .workers(1)
            .bind("127.0.0.1:0")
            .unwrap();
    let url = format!("http://{}", server.addrs()[0]);
    actix_web::rt::spawn(server.run());
    (url, service)
}

fn with(checks: Vec<Check>) -> (String, web::Data<Service>) {
    start(Settings {
        checks,
        ..Settings::default()
    })
}

fn record(service: &Service, index: usize, result: Result<(), &str>) {
    service.board.record(
        index,
        SystemTime::now(),
        Duration::from_millis(5),
        result.map_err(|reason| ProbeError(reason.into())),
    );
}

async fn page(url: &str) -> Response {
    crate::client()
        .get(url)
        .header(ACCEPT, "text/html")
        .send()
        .await
        .unwrap()
}

async fn html(url: &str) -> String {
    page(url).await.text().await.unwrap()
}

#[actix_web::test]
async fn headline_shows_the_overall_state() {
    let (url, service) = with(vec![check("shop", true), check("mail", false)]);
    let headline = async || {
        let page = html(&url).await;
        let (_, rest) = page.split_once("<h2>").unwrap();
        rest.split_once("</h2>").unwrap().0.to_owned()
    };
    assert_eq!(headline().await, "Waiting for first results");
    record(&service, 0, Ok(()));
    assert_eq!(headline().await, "Waiting for first results");
    record(&service, 1, Ok(()));
    assert_eq!(headline().await, "All systems operational");
    record(&service, 1, Err("lost"));
    assert_eq!(headline().await, "Degraded");
    record(&service, 0, Err("lost"));
    assert_eq!(headline().await, "Outage");
}

#[actix_web::test]
async fn page_shows_all_details_of_a_check() {
    let (url, service) = with(vec![check("shop", true)]);
    for _ in 0..3 {
        record(&service, 0, Ok(()));
    }
    record(&service, 0, Err("connection refused"));
    let page = html(&url).await;
    for expected in [
        "<title>Outage · Infrastructure Lab</title>",
        "data-state=\"Down\"",
        "<strong>Down</strong>",
        "since 20",
        "host-of-shop:1",
        ">critical<",
        "75.00 % <span class=\"known\"",
        "5.00 ms",
        "Last 4 results: 1 failed; 5.00 ms to 5.00 ms",
        "connection refused",
        "href=\"/checks/shop\"",
        "href=\"/docs\"",
    ] {
        assert!(page.contains(expected), "{expected}\n{page}");
    }
}

#[actix_web::test]
async fn people_see_the_display_name_and_programs_the_name() {
    let (url, service) = with(vec![Check {
        display_name: Some("The <Shop> \"A\"".into()),
        ..check("shop", true)
    }]);
    let (_, mut changes) = service.board.changes().listen(None);
    record(&service, 0, Err("lost"));
    let page = html(&url).await;
    for expected in [
        "href=\"/checks/shop\" id=\"of-shop\">The &#60;Shop&#62; &#34;A&#34;</a>",
        "data-check=\"shop\" data-name=\"The &#60;Shop&#62; &#34;A&#34;\"",
        "<a href=\"#check-shop\" id=\"to-shop\">The &#60;Shop&#62; &#34;A&#34;</a> is down.",
    ] {
        assert!(page.contains(expected), "{expected}\n{page}");
    }
    let page = html(&format!("{url}/checks/shop")).await;
    for expected in [
        "<title>The &#60;Shop&#62; &#34;A&#34;: Down ",
        "<h2>The &#60;Shop&#62; &#34;A&#34;</h2>",
        "<dt>Name</dt><dd>shop</dd>",
        "href=\"/api/v1/checks/shop\"",
    ] {
        assert!(page.contains(expected), "{expected}\n{page}");
    }
    let badge = get(format!("{url}/badge/shop.svg")).await;
    let badge = badge.text().await.unwrap();
    assert!(badge.contains("The &#60;Shop&#62; &#34;A&#34;: down"));
    let expected = serde_json::json!("The <Shop> \"A\"");
    for path in ["/api/v1/checks/shop", "/api/v1/checks/shop/history"] {
        let document = get(format!("{url}{path}")).await;
        let document: serde_json::Value = document.json().await.unwrap();
        assert_eq!(document["name"], "shop");
        assert_eq!(document["display_name"], expected);
    }
    let change: serde_json::Value =
        serde_json::from_str(&changes.recv().await.unwrap().data).unwrap();
    assert_eq!(
        (&change["check"], &change["display_name"]),
        (&"shop".into(), &expected)
    );
    let metrics = get(format!("{url}/metrics")).await.text().await.unwrap();
    let line =
        r#"check_info{display_name="The <Shop> \"A\"",check="shop",kind="tcp",critical="true"} 1"#;
    assert!(metrics.lines().any(|it| it == line), "{metrics}");
}

#[actix_web::test]
async fn pages_load_no_external_resources() {
    let (url, _) = with(vec![check("shop", true)]);
    for url in [
        url.clone(),
        format!("{url}/docs"),
        format!("{url}/checks/shop"),
    ] {
        let response = page(&url).await;
        assert_eq!(response.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(response.headers()[VARY], "Accept");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.headers()["referrer-policy"], "no-referrer");
        let policy = response.headers()[CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
        assert!(policy.contains("; worker-src 'self'; "));
        assert!(!policy.contains("unsafe"));
        let page = response.text().await.unwrap();
        for loads in [" src=", "@import", "url(", "rel=\"stylesheet\"", "style=\""] {
            assert!(!page.contains(loads), "{loads}\n{page}");
        }
    }
    assert_eq!(get(&url).await.headers()[VARY], "Accept");
}

#[actix_web::test]
async fn escapes_markup_in_names_and_errors() {
    let (url, service) = start(Settings {
        title: HOSTILE.into(),
        environment: HOSTILE.into(),
        checks: vec![check(HOSTILE, true)],
        ..Settings::default()
    });
    record(&service, 0, Err(HOSTILE));
    let page = html(&url).await;
    // Only the script of the page itself, and no comments.
    assert_eq!(page.matches("<script").count(), 1, "{page}");
    assert!(!page.contains("<!--"));
    assert!(!page.contains(HOSTILE));
    let encoded = "%22%27%3E%3Cscript%3Ealert%281%29%3C%2Fscript%3E";
    assert!(page.contains(&format!("href=\"/checks/{encoded}")));
}

#[actix_web::test]
async fn failing_rows_and_groups_come_first() {
    let mut checks: Vec<_> = ["a", "b", "c", "d", "e", "f"]
        .map(|name| check(name, name == "e"))
        .into();
    for (index, group) in [(0, "One"), (1, "One"), (3, "Two"), (4, "Two")] {
        checks[index].group = Some(group.into());
    }
    let (url, service) = with(checks);
    for index in 0..6 {
        let failed = [1, 3, 4].contains(&index);
        record(&service, index, if failed { Err("lost") } else { Ok(()) });
    }
    let page = html(&url).await;
    let places = |start: &str| -> Vec<String> {
        page.split(start)
            .skip(1)
            .map(|rest| rest.split(['"', '<']).next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(places("data-check=\""), ["e", "d", "b", "a", "c", "f"]);
    assert_eq!(places("<summary><h3>"), ["Two", "One", "Other checks"]);
    assert!(page.contains(">2 checks, 2 down<"), "{page}");
    assert!(page.contains(">2 checks<"), "{page}");
}

#[actix_web::test]
async fn hidden_target_is_neither_on_the_page_nor_in_the_api() {
    let mut hidden = check("shop", true);
    hidden.hide_target = true;
    let (url, _) = with(vec![hidden, check("mail", true)]);
    let status: serde_json::Value = get(format!("{url}/api/v1/checks/shop"))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(status["target"], serde_json::Value::Null);
    for path in ["/", "/checks/shop", "/api/v1/checks", "/health", "/metrics"] {
        let text = html(&format!("{url}{path}")).await;
        assert!(!text.contains("host-of-shop"), "{path}");
    }
    assert!(html(&url).await.contains("host-of-mail:1"));
    assert!(
        html(&format!("{url}/checks/mail"))
            .await
            .contains("host-<wbr>of-<wbr>mail")
    );
}

#[actix_web::test]
async fn update_contains_only_what_has_changed() {
    let names: Vec<_> = (0..60).map(|index| format!("check-{index}")).collect();
    let (url, service) = with(names.iter().map(|name| check(name, false)).collect());
    for index in 0..60 {
        for _ in 0..60 {
            record(&service, index, Ok(()));
        }
    }
    let rows = |page: &str| -> Vec<String> {
        page.split("data-check=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().to_owned())
            .collect()
    };
    let token = |page: &str| {
        let (_, rest) = page.split_once("data-token=\"").unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    let whole = html(&url).await;
    assert_eq!(rows(&whole), names);
    let update = html(&format!("{url}/?since={}", token(&whole))).await;
    assert_eq!(rows(&update), [""; 0]);
    record(&service, 7, Err("lost"));
    record(&service, 8, Ok(()));
    let changed = ["check-7", "check-8"];
    let update = html(&format!("{url}/?since={}", token(&whole))).await;
    assert_eq!(rows(&update), changed);
    assert!(update.contains("<h2>Degraded</h2>"));
    let again = html(&format!("{url}/?since={}", token(&update))).await;
    assert_eq!(rows(&again), [""; 0]);
    // A reload that changes a check.
    let mut checks: Vec<_> = names.iter().map(|name| check(name, false)).collect();
    checks[9].critical = true;
    service.board.configure(checks);
    let reloaded = html(&format!("{url}/?since={}", token(&update))).await;
    assert_eq!(rows(&reloaded), ["check-9"]);
    assert!(reloaded.contains(">critical<"), "{reloaded}");
    // After a state change, an open page fetches the row of the check.
    let only = html(&format!("{url}/?only=check-7")).await;
    assert_eq!(rows(&only), ["check-7"]);
    assert!(only.len() < 6 * 1024, "{}", only.len());
    for other in ["since=1-1", "since=x", "since=&only=", "since=1&since=2"] {
        let page = html(&format!("{url}/?{other}")).await;
        let count = rows(&page).len();
        assert_eq!(
            count,
            if other.contains("only") { 0 } else { 60 },
            "{other}"
        );
    }
}

#[actix_web::test]
async fn page_of_a_check_shows_every_window_and_the_outages() {
    let directory = tempfile::tempdir().unwrap();
    for data in [None, Some(directory.path().to_owned())] {
        let (url, service) = start(Settings {
            checks: vec![check("shop", true), check("mail", true)],
            data: data.clone(),
            ..Settings::default()
        });
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 60 * 60);
        let record = |ago: Duration, result: Result<(), &str>| {
            let result = result.map_err(|reason| ProbeError(reason.into()));
            (service.board).record(0, now - ago, Duration::from_millis(5), result);
        };
        // One of four probes failed in the last year, one of three in the last month, one of two in the last week.
        record(day * 300, Ok(()));
        record(day * 20, Ok(()));
        record(day * 3, Err("connection refused"));
        record(day * 3 - Duration::from_secs(7200), Ok(()));
        record(Duration::from_secs(60), Ok(()));
        let page = html(&format!("{url}/checks/shop")).await;
        for expected in [
            "<h2>shop</h2>",
            "<strong>Up</strong>",
            "id=\"window-24h\" aria-current=\"true\">24 hours</a>",
            ">100 %</td>",
            ">66.66 %</td>",
            ">75.00 %</td>",
            ">80.00 %</td>",
            ">2 h</td>",
            "connection refused",
            "href=\"/api/v1/checks/shop\"",
            "href=\"/badge/shop.svg\"",
            "data-slots=\"25\"",
        ] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
        let year = html(&format!("{url}/checks/shop?window=1y")).await;
        assert!(year.contains("data-slots=\"367\""), "{year}");
        assert!(year.contains("id=\"window-1y\" aria-current=\"true\""));
        let none = html(&format!("{url}/checks/mail")).await;
        assert!(none.contains("No outage is known"), "{none}");

        record(Duration::ZERO, Err("lost"));
        let page = html(&format!("{url}/checks/shop")).await;
        assert!(page.contains(">ongoing</td>"), "{page}");
        for (path, status) in [
            ("shop?window=2d", StatusCode::BAD_REQUEST),
            ("gone", StatusCode::NOT_FOUND),
        ] {
            let response = get(format!("{url}/checks/{path}")).await;
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        }
    }
}

#[actix_web::test]
async fn page_without_checks_explains_how_to_add_them() {
    let (url, _) = with(Vec::new());
    let page = html(&url).await;
    assert!(page.contains("No checks are configured."));
    assert!(page.contains("config.example.toml"));
}

#[actix_web::test]
async fn badge_shows_the_state_or_the_uptime() {
    let (url, service) = with(vec![check("shop", true)]);
    let badge = async |path: &str| get(format!("{url}/badge/{path}")).await;
    for (path, words) in [
        ("shop.svg", "shop: pending"),
        ("shop.svg?uptime", "shop 24 h: pending"),
    ] {
        let response = badge(path).await;
        assert_eq!(response.headers()[CONTENT_TYPE], "image/svg+xml");
        let image = response.text().await.unwrap();
        assert!(
            image.contains(&format!("<title>{words}</title>")),
            "{image}"
        );
    }
    for result in [Ok(()), Ok(()), Err("lost")] {
        record(&service, 0, result);
    }
    for (path, words) in [
        ("shop.svg", "shop: down"),
        ("shop.svg?uptime=1", "shop 1 min: 66.66 %, known since 20"),
    ] {
        let image = badge(path).await.text().await.unwrap();
        assert!(image.contains(&format!("aria-label=\"{words}")), "{image}");
    }
    // The first result was a day ago.
    let day_ago = SystemTime::now() - Duration::from_secs(24 * 60 * 60);
    service
        .board
        .record(0, day_ago, Duration::from_millis(5), Ok(()));
    let image = badge("shop.svg?uptime").await.text().await.unwrap();
    let words = "aria-label=\"shop 24 h: 75.00 %\"";
    assert!(image.contains(words), "{image}");
    for path in ["mail.svg", "shop.png", "shop"] {
        let response = badge(path).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    }
}

#[actix_web::test]
async fn badge_may_be_cached_for_a_minute_and_is_sent_again_only_if_it_has_changed() {
    let (url, service) = with(vec![check("shop", true)]);
    let url = format!("{url}/badge/shop.svg");
    let first = get(&url).await;
    assert_eq!(first.headers()[CACHE_CONTROL], "public, max-age=60");
    let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    let conditional = async |method, url: &str, tags: &str| {
        let request = crate::client().request(method, url);
        request.header(IF_NONE_MATCH, tags).send().await.unwrap()
    };
    for tags in [
        tag.clone(),
        // As a proxy sends it that compresses.
        format!("W/{tag}"),
        format!("\"other\", {tag}"),
        "*".into(),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let response = conditional(method, &url, &tags).await;
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{tags}");
            assert_eq!(response.headers()[ETAG], tag);
            assert_eq!(response.headers()[CACHE_CONTROL], "public, max-age=60");
            assert_eq!(response.text().await.unwrap(), "");
        }
    }
    // Another image of the same check has another tag, and so has a changed one.
    let uptime = conditional(Method::GET, &format!("{url}?uptime"), &tag).await;
    assert_eq!(uptime.status(), StatusCode::OK);
    record(&service, 0, Ok(()));
    let changed = conditional(Method::GET, &url, &tag).await;
    assert_eq!(changed.status(), StatusCode::OK);
    assert_ne!(changed.headers()[ETAG], tag);
}

#[actix_web::test]
async fn every_link_stays_below_the_base_path() {
    let (url, _) = start(Settings {
        base_path: "/status".into(),
        checks: vec![check("shop", true)],
        ..Settings::default()
    });
    // One reverse proxy removes the base path from the request, the other one does not. Container probes send no base path.
    for prefix in ["", "/status"] {
        let mut links = BTreeSet::new();
        for path in ["/", "/checks/shop", "/docs"] {
            let page = html(&format!("{url}{prefix}{path}")).await;
            let hrefs = page.split("href=\"").skip(1);
            links.extend(
                hrefs
                    .map(|rest| rest.split('"').next().unwrap().to_owned())
                    .filter(|link| link.starts_with('/')),
            );
        }
        for link in [
            "/status/",
            "/status/docs",
            "/status/openapi.json",
            "/status/metrics",
            "/status/checks/shop",
            "/status/api/v1/checks/shop",
            "/status/badge/shop.svg",
        ] {
            assert!(links.contains(link), "{link}: {links:?}");
        }
        for link in links {
            let path = link.strip_prefix("/status").expect(&link);
            let response = get(format!("{url}{prefix}{path}")).await;
            assert_eq!(response.status(), StatusCode::OK, "{link}");
        }
        let page = html(&format!("{url}{prefix}/")).await;
        assert!(page.contains("<script data-base=\"/status\">"));
        let script = get(format!("{url}{prefix}/stream.js")).await;
        assert_eq!(
            script.headers()[CONTENT_TYPE],
            "text/javascript; charset=utf-8"
        );
        assert_eq!(
            script.headers()[CONTENT_SECURITY_POLICY],
            "default-src 'none'; connect-src 'self'"
        );
        let stream = get(format!("{url}{prefix}/events")).await;
        assert_eq!(stream.headers()[CONTENT_TYPE], "text/event-stream");
        let document: serde_json::Value = get(format!("{url}{prefix}/openapi.json"))
            .await
            .json()
            .await
            .unwrap();
        assert_eq!(document["servers"], serde_json::json!([{"url": "/status"}]));
        let unknown = get(format!("{url}{prefix}/nothing")).await;
        assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
        let problem = unknown.text().await.unwrap();
        assert!(problem.contains("see /status/docs"), "{problem}");
    }
    let page = html(&format!("{url}/status")).await;
    assert!(page.contains("href=\"/status/docs\""));
    let outside = get(format!("{url}/statuspage")).await;
    assert_eq!(outside.status(), StatusCode::NOT_FOUND);
}

#[actix_web::test]
async fn documentation_lists_every_operation() {
    let (url, _) = with(Vec::new());
    let page = html(&format!("{url}/docs")).await;
    let document: serde_json::Value = get(format!("{url}/openapi.json"))
        .await
        .json()
        .await
        .unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 10);
    for path in paths.keys() {
        assert!(
            page.contains(&format!("id=\"get-{path}\"")),
            "{path}\n{page}"
        );
    }
}
