//! The main file of a service with about 300 dependencies. The benchmark adds the tests.

use axum::{Json, Router, routing::get};
use clap::Parser;
use serde::{Deserialize, Serialize};
use tower_http::trace::TraceLayer;
use uuid::Uuid;

#[derive(Parser)]
struct Arguments {
    #[arg(long, env = "PORT", default_value_t = 8000)]
    port: u16,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Order {
    id: Uuid,
    name: String,
    count: u32,
    placed: chrono::DateTime<chrono::Utc>,
}

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().json().init();
    let port = Arguments::parse().port;
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await;
    let listener = listener.expect("the port is free");
    axum::serve(listener, router()).await.expect("it serves");
}

fn router() -> Router {
    Router::new()
        .route("/health", get(async || "ok"))
        .route("/order", get(async || Json(order(1))))
        .layer(TraceLayer::new_for_http())
}

fn order(count: u32) -> Order {
    Order {
        id: Uuid::new_v4(),
        name: title(&format!("order {count}")),
        count,
        placed: chrono::Utc::now(),
    }
}

fn title(name: &str) -> String {
    let word = regex::Regex::new(r"\b[a-z]").expect("a pattern");
    word.replace_all(name, |found: &regex::Captures<'_>| found[0].to_uppercase())
        .into_owned()
}
