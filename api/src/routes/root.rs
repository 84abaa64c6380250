//! `GET /`: the greeting.

use actix_web::web;
use serde::Serialize;

/// What `GET /` answers.
#[derive(Clone, Debug, Serialize)]
pub struct Greeting {
    message: &'static str,
    env: String,
}

impl Greeting {
    /// The greeting of a service in this environment.
    #[must_use]
    pub const fn new(environment: String) -> Self {
        Self {
            message: "Hello from the Infrastructure Lab!",
            env: environment,
        }
    }
}

/// The same for everybody.
pub(super) async fn get(greeting: web::Data<Greeting>) -> web::Json<web::Data<Greeting>> {
    web::Json(greeting)
}
