//! What the service answers.

use std::time::Duration;

use api::{Application, Settings};
use reqwest::{
    Method, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use serde_json::{Value, json};

/// Starts the service on a free port of this machine and gives its URL.
pub fn start(settings: Settings) -> String {
    let application = Application::build(Settings {
        address: ([127, 0, 0, 1], 0).into(),
        ..settings
    })
    .unwrap();
    let url = format!("http://{}", application.address());
    actix_web::rt::spawn(application.run_until_stopped());
    url
}

pub async fn get(url: impl AsRef<str>) -> Response {
    crate::client().get(url.as_ref()).send().await.unwrap()
}

#[actix_web::test]
async fn the_greeting_names_the_environment() {
    for env in ["local", "production"] {
        let url = start(Settings {
            environment: env.into(),
            ..Settings::default()
        });
        let response = get(url).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(
            response.json::<Value>().await.unwrap(),
            json!({"message": "Hello from the Infrastructure Lab!", "env": env})
        );
    }
}

#[actix_web::test]
async fn other_methods_are_refused_with_those_that_are_not_and_head_is_one() {
    let url = start(Settings::default());
    let client = crate::client();
    for path in ["/", "/health", "/livez", "/metrics", "/api/v1/checks"] {
        for method in [
            Method::POST,
            Method::DELETE,
            Method::from_bytes(b"BREW").unwrap(),
        ] {
            let refused = client
                .request(method, format!("{url}{path}"))
                .send()
                .await
                .unwrap();
            assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(refused.headers()[ALLOW], "GET, HEAD");
            assert_eq!(refused.headers()[CONTENT_TYPE], "application/problem+json");
            assert_eq!(refused.json::<Value>().await.unwrap()["status"], 405);
        }
        let head = client.head(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(head.status(), StatusCode::OK);
        assert_eq!(head.text().await.unwrap(), "");
    }
}

#[actix_web::test]
async fn what_is_not_there_is_a_problem_that_says_so() {
    let url = start(Settings::default());
    for (path, detail) in [
        ("/nothing", "there is nothing at /nothing; see /docs"),
        ("/api/v1/checks/cache", "there is no check \"cache\""),
    ] {
        let response = get(format!("{url}{path}")).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(
            response.json::<Value>().await.unwrap(),
            json!({"status": 404, "title": "Not Found", "detail": detail})
        );
    }
}

#[actix_web::test]
async fn the_version_is_that_of_the_image() {
    let mut settings = Settings::default();
    settings.build.commit = Some("a".repeat(40));
    settings.build.time = Some("2026-01-02T03:04:05Z".into());
    assert_eq!(
        get(start(settings) + "/version")
            .await
            .json::<Value>()
            .await
            .unwrap(),
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": "a".repeat(40),
            "build_time": "2026-01-02T03:04:05Z",
            "toolchain": env!("CARGO_PKG_RUST_VERSION"),
        })
    );
}

#[actix_web::test]
async fn the_callers_trace_goes_on_in_the_answer_and_others_begin() {
    let url = start(Settings::default());
    let trace = "0af7651916cd43dd8448eb211c80319c";
    for (path, header, same) in [
        ("/health", format!("00-{trace}-b7ad6b7169203331-01"), true),
        ("/nothing", format!("00-{trace}-b7ad6b7169203331-01"), true),
        ("/health", "00-nonsense".into(), false),
    ] {
        let response = crate::client()
            .get(format!("{url}{path}"))
            .header("traceparent", header)
            .send()
            .await
            .unwrap();
        let answered = response.headers()["traceparent"].to_str().unwrap();
        assert_eq!(answered.contains(trace), same, "{answered}");
        assert_eq!(answered.len(), 55);
        assert!(!answered.contains("b7ad6b7169203331"));
    }
}

#[actix_web::test]
async fn probes_are_answered_as_kubernetes_answers_them() {
    let url = start(Settings::default());
    for path in ["/livez", "/readyz"] {
        let short = get(format!("{url}{path}")).await;
        assert_eq!(short.status(), StatusCode::OK);
        assert_eq!(short.text().await.unwrap(), "ok");
    }
    assert_eq!(
        get(format!("{url}/readyz?verbose"))
            .await
            .text()
            .await
            .unwrap(),
        "[+]shutdown ok\nreadyz check passed\n"
    );
}

#[actix_web::test]
async fn requests_are_counted_by_route_and_not_by_path() {
    let url = start(Settings::default());
    for path in [
        "/health",
        "/health?a",
        "/api/v1/checks/a",
        "/api/v1/checks/b",
        "/c",
        "/d",
    ] {
        get(format!("{url}{path}")).await;
    }
    // They are counted when the answer is on its way.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let response = get(format!("{url}/metrics")).await;
    assert_eq!(
        response.headers()[CONTENT_TYPE],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let text = response.text().await.unwrap();
    for (route, status) in [("/health", 200), ("/api/v1/checks/{name}", 404), ("", 404)] {
        let line = format!(
            "http_server_request_duration_seconds_count{{http_request_method=\"GET\",http_route=\"{route}\",http_response_status_code=\"{status}\"}} 2"
        );
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[actix_web::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Application::build(Settings {
        address,
        ..Settings::default()
    })
    .err()
    .unwrap();
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot listen on {address}: ")),
        "{error}"
    );
    assert_eq!(error.exit_code(), 1);
}

#[actix_web::test]
async fn the_health_document_calls_databases_datastores_and_other_targets_components() {
    let targets = [
        ("http", "http://127.0.0.1:1", "component"),
        ("tcp", "127.0.0.1:1", "component"),
        ("dns", "example.org", "component"),
        ("redis", "redis://127.0.0.1:1", "datastore"),
        ("postgres", "postgresql://app@127.0.0.1:1/app", "datastore"),
        ("tls", "127.0.0.1:1", "component"),
    ];
    let checks = targets.map(|(kind, target, _)| {
        let server = if kind == "dns" {
            "server = \"127.0.0.1:1\""
        } else {
            ""
        };
        format!("[[checks]]\nname = \"{kind}\"\n{kind} = \"{target}\"\n{server}\n")
    });
    let url = start(Settings::parse("api.toml", &checks.concat(), &|_| None).unwrap());
    let document: Value = get(format!("{url}/health")).await.json().await.unwrap();
    for (kind, _, component) in targets {
        assert_eq!(
            document["checks"][format!("{kind}:responseTime")][0]["componentType"],
            component
        );
    }
}
