//! What the service answers, one file for each resource.

mod badge;
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
    hits::Hits,
    problem::Problem,
    service::Service,
    telemetry::{Asked, Observer},
};

/// Adds every route, for one worker.
pub fn configure(config: &mut ServiceConfig, service: &web::Data<Service>) {
    config
        .app_data(service.clone())
        .app_data(web::Data::new(health::Health::default()))
        .app_data(web::Data::new(checks::Checks::default()))
        .app_data(web::Data::new(root::Page::default()))
        .app_data(web::Data::new(Hits::new(
            service.redis.as_ref(),
            &service.clients.tls,
        )));
    let mut routes = Routes { config, service };
    routes.add("/", Asked::ByPeople, root::get);
    routes.add("/health", Asked::ByProbes, health::get);
    routes.add("/hits", Asked::ByPeople, hits::get);
    routes.add("/livez", Asked::ByProbes, probes::live);
    routes.add("/readyz", Asked::ByProbes, probes::ready);
    routes.add("/api/v1/checks", Asked::ByPeople, checks::list);
    routes.add("/api/v1/checks/{name}", Asked::ByPeople, checks::one);
    routes.add(
        "/api/v1/checks/{name}/history",
        Asked::ByPeople,
        history::get,
    );
    routes.add("/badge/{name}.svg", Asked::ByPeople, badge::get);
    routes.add("/events", Asked::ByPeople, events::get);
    routes.add("/metrics", Asked::ByProbes, metrics::get);
    routes.add("/version", Asked::ByPeople, version::get);
    routes.add("/openapi.json", Asked::ByPeople, openapi::get);
    routes.add("/docs", Asked::ByPeople, openapi::get_docs);
    routes.refuse_others();
}

struct Routes<'a> {
    config: &'a mut ServiceConfig,
    service: &'a web::Data<Service>,
}

impl Routes<'_> {
    /// `GET` and `HEAD` of `path`; other methods are refused.
    fn add<H, A>(&mut self, path: &'static str, asked: Asked, handler: H)
    where
        H: Handler<A, Output: Responder<Body: MessageBody + 'static>> + 'static,
        A: FromRequest + 'static,
    {
        let observer = Observer::new(self.service, path, asked);
        let resource = Resource::new(path)
            .get(handler.clone())
            .head(handler)
            .default_service(web::to(refuse_method))
            .wrap(from_fn(move |request, next| {
                observer.clone().observe(request, next)
            }));
        self.config.service(resource);
    }

    /// Says of every other path that it is not there.
    fn refuse_others(&mut self) {
        let observer = Observer::new(self.service, "", Asked::ByPeople);
        self.config
            .default_service(web::to(refuse_path).wrap(from_fn(move |request, next| {
                observer.clone().observe(request, next)
            })));
    }
}

async fn refuse_method(request: HttpRequest) -> HttpResponse {
    let detail = format!("{} takes GET and HEAD only", request.path());
    let mut response = Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).error_response();
    response
        .headers_mut()
        .insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
    response
}

async fn refuse_path(request: HttpRequest) -> HttpResponse {
    let detail = format!("there is nothing at {}; see /docs", request.path());
    Problem::new(StatusCode::NOT_FOUND, detail).error_response()
}
