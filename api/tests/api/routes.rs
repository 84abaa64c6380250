//! What the service answers.

use api::{Application, Settings};
use reqwest::{Response, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};

/// Starts the service on a free port of this machine and gives its URL.
fn start(app_env: Option<&str>) -> String {
    let mut settings = Settings::load(None, &|name| {
        app_env.filter(|_| name == "APP_ENV").map(Into::into)
    })
    .unwrap();
    settings.address = ([127, 0, 0, 1], 0).into();
    let application = Application::build(settings).unwrap();
    let url = format!("http://{}", application.address());
    actix_web::rt::spawn(application.run_until_stopped());
    url
}

async fn get(url: String) -> Response {
    crate::client().get(url).send().await.unwrap()
}

#[actix_web::test]
async fn health_passes() {
    let response = get(start(None) + "/health").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/health+json");
    assert_eq!(
        response.json::<Value>().await.unwrap(),
        json!({"status": "pass"})
    );
}

#[actix_web::test]
async fn the_greeting_names_the_environment() {
    for (app_env, env) in [(None, "local"), (Some("production"), "production")] {
        let response = get(start(app_env) + "/").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(
            response.json::<Value>().await.unwrap(),
            json!({"message": "Hello from the Infrastructure Lab!", "env": env})
        );
    }
}

#[actix_web::test]
async fn other_methods_and_paths_are_not_there_but_head_is() {
    let url = start(None);
    assert_eq!(
        get(format!("{url}/nothing")).await.status(),
        StatusCode::NOT_FOUND
    );
    let client = crate::client();
    for path in ["/", "/health"] {
        let post = client.post(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(post.status(), StatusCode::METHOD_NOT_ALLOWED);
        let head = client.head(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(head.status(), StatusCode::OK);
        assert_eq!(head.text().await.unwrap(), "");
    }
}

#[actix_web::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = Settings::default();
    settings.address = taken.local_addr().unwrap();
    let address = settings.address;
    let error = Application::build(settings).err().unwrap();
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot listen on {address}: ")),
        "{error}"
    );
    assert_eq!(error.exit_code(), 1);
}
