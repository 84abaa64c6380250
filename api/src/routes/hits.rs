//! `GET /hits`: a counter in Redis.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use actix_web::{http::StatusCode, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    hits::{Hits, Missing},
    problem::{PROBLEM_JSON, Problem},
    service::{Live, Service},
};

/// The counter of one worker, with the settings that it is made of.
#[derive(Default)]
pub(super) struct Counter(RefCell<Option<(Arc<Live>, Rc<Hits>)>>);

impl Counter {
    /// The counter of the current settings.
    fn of(&self, service: &Service) -> Rc<Hits> {
        let live = service.live();
        let mut made = self.0.borrow_mut();
        match &*made {
            Some((of, hits)) if Arc::ptr_eq(of, &live) => hits.clone(),
            _ => {
                let hits = Rc::new(Hits::new(live.redis.as_ref(), &service.clients.tls));
                *made = Some((live, hits.clone()));
                hits
            }
        }
    }
}

/// The response of `GET /hits`.
#[derive(Serialize, ToSchema)]
pub(super) struct Count {
    /// A fixed message.
    #[schema(value_type = String, example = "Redis is working")]
    message: &'static str,
    /// The number of hits on all replicas.
    #[schema(example = 42)]
    hits: i64,
}

/// Count the request in Redis
#[utoipa::path(get, operation_id = "hits", path = "/hits", tag = "status", responses(
    (status = 200, description = "The count", body = Count),
    (status = 503, description = "Redis does not respond within 250 ms, or is not configured", body = Problem, content_type = PROBLEM_JSON),
))]
pub(super) async fn get(
    service: web::Data<Service>,
    counter: web::Data<Counter>,
) -> Result<web::Json<Count>, Problem> {
    let hits = counter.of(&service);
    let lost = Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        // Clients rely on this text.
        "Redis connection failed",
    );
    match hits.count().await {
        Ok(hits) => Ok(web::Json(Count {
            message: "Redis is working",
            hits,
        })),
        Err(Missing::Unconfigured) => Err(lost.titled("No Redis is configured")),
        Err(Missing::Lost(error)) => {
            tracing::warn!(%error, "cannot count a hit");
            Err(lost)
        }
    }
}
