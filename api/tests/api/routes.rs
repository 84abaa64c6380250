//! The HTTP resources.

use std::time::Duration;

use api::{Application, Settings};
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, ALLOW, CONTENT_TYPE, VARY},
};
use serde_json::{Value, json};

/// Starts the service on a free local port and returns its URL.
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
async fn greeting_contains_the_environment() {
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
async fn allows_only_get_and_head() {
    let url = start(Settings::default());
    let client = crate::client();
    for path in ["/", "/health", "/livez", "/metrics", "/api/v1/checks"] {
        for method in [
            Method::POST,
            Method::DELETE,
            Method::from_bytes(b"BREW").unwrap(),
        ] {
            let response = client
                .request(method, format!("{url}{path}"))
                .send()
                .await
                .unwrap();
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(response.headers()[ALLOW], "GET, HEAD");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            assert_eq!(response.json::<Value>().await.unwrap()["status"], 405);
        }
        let head = client.head(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(head.status(), StatusCode::OK);
        assert_eq!(head.text().await.unwrap(), "");
    }
}

#[actix_web::test]
async fn head_has_the_status_and_the_headers_of_get() {
    let check = "[[checks]]\nname = \"cache\"\ntcp = \"127.0.0.1:1\"\ninterval = \"1h\"\n";
    let url = start(Settings::parse("api.toml", check, &|_| None).unwrap());
    let client = crate::client();
    let documented = serde_json::to_value(api::routes::document("")).unwrap();
    let mut paths: Vec<_> = documented["paths"]
        .as_object()
        .unwrap()
        .keys()
        .map(|path| path.replace("{name}", "cache"))
        .collect();
    paths.extend(["/nothing", "/badge/none.svg", "/api/v1/checks/none"].map(String::from));
    for path in paths {
        let answer = async |method| {
            let request = client
                .request(method, format!("{url}{path}"))
                .timeout(Duration::from_secs(10));
            // Only the head arrives: an event stream does not end.
            let response = request.send().await.unwrap();
            let mut headers = response.headers().clone();
            headers.remove("date");
            headers.remove("traceparent");
            if ["/metrics", "/health"].contains(&path.as_str()) || path.contains("checks") {
                // The length of the body depends on the time.
                let length = headers.insert("content-length", "1".parse().unwrap());
                assert!(length.is_some(), "{path}");
            }
            (response.status(), headers)
        };
        assert_eq!(
            answer(Method::GET).await,
            answer(Method::HEAD).await,
            "{path}"
        );
    }
}

#[actix_web::test]
async fn unknown_paths_and_checks_are_problem_documents() {
    let url = start(Settings::default());
    for (path, detail) in [
        ("/nothing", "no resource at /nothing; see /docs"),
        ("/api/v1/checks/cache", "there is no check named \"cache\""),
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
async fn version_describes_the_build() {
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
async fn responses_continue_the_trace_of_the_caller_or_start_a_new_one() {
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
async fn probes_use_the_format_of_kubernetes() {
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
async fn counts_requests_by_route() {
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
    // Requests are counted when the response is sent.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let text = get(format!("{url}/metrics")).await.text().await.unwrap();
    for (route, status) in [("/health", 200), ("/api/v1/checks/{name}", 404), ("", 404)] {
        let line = format!(
            "http_server_request_duration_seconds_count{{http_request_method=\"GET\",http_route=\"{route}\",http_response_status_code=\"{status}\"}} 2"
        );
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
}

#[actix_web::test]
async fn metrics_have_the_format_that_the_client_accepts() {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    let url = start(Settings::default());
    for (accept, format) in [
        // Clients that know only the text format.
        (None, TEXT),
        (Some("*/*"), TEXT),
        (Some("text/plain"), TEXT),
        (Some("text/plain;version=0.0.4"), TEXT),
        (
            Some(
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,text/plain;version=0.0.4;q=0.3",
            ),
            TEXT,
        ),
        (Some("application/openmetrics-text;version=0.0.1"), TEXT),
        (Some("application/openmetrics-text;q=0, */*"), TEXT),
        (
            Some("application/openmetrics-text;q=0.2, text/plain;q=0.3"),
            TEXT,
        ),
        (Some("application/json"), TEXT),
        (Some("nonsense"), TEXT),
        // Prometheus 2 and 3.
        (
            Some(
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ),
            OPENMETRICS,
        ),
        (
            Some(
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            ),
            OPENMETRICS,
        ),
        (Some("application/openmetrics-text"), OPENMETRICS),
        (
            Some("application/openmetrics-text, text/plain"),
            OPENMETRICS,
        ),
    ] {
        let mut request = crate::client().get(format!("{url}/metrics"));
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()[CONTENT_TYPE], format, "{accept:?}");
        assert_eq!(response.headers()[VARY], "Accept");
        let text = response.text().await.unwrap();
        let openmetrics = format == OPENMETRICS;
        assert_eq!(text.ends_with("# EOF\n"), openmetrics, "{text}");
        for (line, expected) in [
            ("# TYPE probes counter", openmetrics),
            ("# TYPE probes_total counter", !openmetrics),
            ("# TYPE build info", openmetrics),
            ("# TYPE build_info gauge", !openmetrics),
            (
                "# HELP process_cpu_seconds_total User and system CPU time",
                !openmetrics,
            ),
            ("# UNIT process_cpu_seconds seconds", openmetrics),
            ("event_streams 0", true),
        ] {
            assert_eq!(
                text.lines().any(|it| it == line),
                expected,
                "{line}\n{text}"
            );
        }
    }
}

#[actix_web::test]
async fn port_in_use_is_an_error_with_the_address() {
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
async fn health_document_has_the_component_type_of_each_kind() {
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
