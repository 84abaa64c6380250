//! The HTTP resources, one file each.

mod badge;
mod check_page;
mod checks;
mod docs;
mod events;
mod health;
mod history;
mod hits;
mod metrics;
mod openapi;
mod probes;
mod root;
mod stream;
mod version;

use actix_web::{
    FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder, ResponseError,
    body::MessageBody,
    http::{StatusCode, header},
    middleware::from_fn,
    web::{self, ServiceConfig},
};

pub use history::{Bucket, History, Taken};
pub use openapi::document;

use crate::{
    problem::Problem,
    service::Service,
    telemetry::{Audience, Observer},
};

/// Adds every route to the application of one worker.
pub fn configure(config: &mut ServiceConfig, service: &web::Data<Service>) {
    config
        .app_data(service.clone())
        .app_data(web::Data::new(health::Health::default()))
        .app_data(web::Data::new(checks::Checks::default()))
        .app_data(web::Data::new(root::Page::default()))
        .app_data(web::Data::new(hits::Counter::default()));
    add_resources(config, service);
    // Also below the base path, because some reverse proxies remove it and others do not; container probes never send it.
    if !service.base_path.is_empty() {
        let below = web::scope(&service.base_path);
        config.service(below.configure(|config| add_resources(config, service)));
    }
    Routes { config, service }.reject_unknown_paths();
}

/// Adds every resource, with its path relative to `config`.
fn add_resources(config: &mut ServiceConfig, service: &web::Data<Service>) {
    let mut routes = Routes { config, service };
    routes.add("/", Audience::People, root::get);
    routes.add("/health", Audience::Probes, health::get);
    routes.add("/hits", Audience::People, hits::get);
    routes.add("/livez", Audience::Probes, probes::live);
    routes.add("/readyz", Audience::Probes, probes::ready);
    routes.add("/api/v1/checks", Audience::People, checks::list);
    routes.add("/api/v1/checks/{name}", Audience::People, checks::one);
    routes.add(
        "/api/v1/checks/{name}/history",
        Audience::People,
        history::get,
    );
    routes.add("/checks/{name}", Audience::People, check_page::get);
    routes.add("/badge/{name}.svg", Audience::People, badge::get);
    routes.add("/events", Audience::People, events::get);
    routes.add("/stream.js", Audience::People, stream::get);
    routes.add("/metrics", Audience::Probes, metrics::get);
    routes.add("/version", Audience::People, version::get);
    routes.add("/openapi.json", Audience::People, openapi::get);
    routes.add("/docs", Audience::People, openapi::get_docs);
}

struct Routes<'a> {
    config: &'a mut ServiceConfig,
    service: &'a web::Data<Service>,
}

impl Routes<'_> {
    /// Adds `path` with the methods `GET` and `HEAD`; other methods are rejected.
    fn add<H, A>(&mut self, path: &'static str, audience: Audience, handler: H)
    where
        H: Handler<A, Output: Responder<Body: MessageBody + 'static>> + 'static,
        A: FromRequest + 'static,
    {
        let observer = Observer::new(self.service, path, audience);
        let mut paths = vec![path];
        if path == "/" && !self.service.base_path.is_empty() {
            // The base path itself, without a slash at its end.
            paths.push("");
        }
        let resource = Resource::new(paths)
            .get(handler.clone())
            .head(handler)
            .default_service(web::to(reject_method))
            .wrap(from_fn(move |request, next| {
                observer.clone().observe(request, next)
            }));
        self.config.service(resource);
    }

    /// Responds with 404 to every other path.
    fn reject_unknown_paths(&mut self) {
        let observer = Observer::new(self.service, "", Audience::People);
        self.config
            .default_service(web::to(reject_path).wrap(from_fn(move |request, next| {
                observer.clone().observe(request, next)
            })));
    }
}

async fn reject_method(request: HttpRequest) -> HttpResponse {
    let detail = format!("{} supports only GET and HEAD", request.path());
    let mut response = Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).error_response();
    response
        .headers_mut()
        .insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
    response
}

async fn reject_path(service: web::Data<Service>, request: HttpRequest) -> HttpResponse {
    let (path, base) = (request.path(), &service.base_path);
    let detail = format!("no resource at {path}; see {base}/docs");
    Problem::new(StatusCode::NOT_FOUND, detail).error_response()
}
