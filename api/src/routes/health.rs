//! `GET /health`: the state of the service and of what it checks, for probes.

use std::{collections::BTreeMap, time::SystemTime};

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    board::Status, history::StoreState, problem::Problem, rendered::Rendered, service::Service,
    state::State, time::rfc3339,
};

/// The media type of draft-inadarei-api-health-check.
pub(super) const HEALTH_JSON: &str = "application/health+json";

/// What this worker rendered last.
#[derive(Default)]
pub(super) struct Health(Rendered);

/// A health document of draft-inadarei-api-health-check, revision 6.
#[derive(Serialize, ToSchema)]
pub(super) struct HealthDocument {
    /// `warn` where a check is down: the service itself lives, and a restart would mend nothing.
    status: HealthStatus,
    /// The version of the service.
    #[schema(value_type = String)]
    version: &'static str,
    /// The commit that was built.
    #[serde(rename = "releaseId", skip_serializing_if = "Option::is_none")]
    release_id: Option<String>,
    /// The name of the service.
    #[serde(rename = "serviceId")]
    #[schema(value_type = String)]
    service_id: &'static str,
    /// The checks, each under its name and what is measured of it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    checks: BTreeMap<String, [Component; 1]>,
}

/// The words of the draft.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum HealthStatus {
    /// All is well, or nobody knows yet.
    Pass,
    /// Something that is checked is down.
    Warn,
    /// Something critical is down. The service as a whole never says so of itself.
    Fail,
}

/// A check, as a component of the draft.
#[derive(Serialize, ToSchema)]
pub(super) struct Component {
    /// `datastore` or `component`.
    #[serde(rename = "componentType")]
    #[schema(value_type = String)]
    component_type: &'static str,
    /// How long the newest answer took.
    #[serde(rename = "observedValue", skip_serializing_if = "Option::is_none")]
    observed_value: Option<f64>,
    /// Always `ms`.
    #[serde(rename = "observedUnit", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    observed_unit: Option<&'static str>,
    /// `fail` where a critical check is down, `warn` where another one is.
    status: HealthStatus,
    /// When it was asked last; when the service started, where it was not asked yet.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    time: SystemTime,
    /// Why it is not as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
}

/// The state of the service and of what it checks
///
/// Always 200 as long as the service lives: a lost dependency is `warn`, and no reason to restart the container.
#[utoipa::path(get, operation_id = "health", path = "/health", tag = "health", responses(
    (status = 200, description = "The service lives", body = HealthDocument, content_type = HEALTH_JSON),
))]
pub(super) async fn get(
    service: web::Data<Service>,
    health: web::Data<Health>,
) -> Result<HttpResponse, Problem> {
    let body = health.0.get(service.board.generation(), || {
        serde_json::to_string(&document(&service))
    })?;
    Ok(HttpResponse::Ok().content_type(HEALTH_JSON).body(body))
}

fn document(service: &Service) -> HealthDocument {
    let statuses = service.board.statuses();
    let lost = statuses.iter().any(|status| status.state == State::Down);
    let history = history(&service.board.store_state());
    HealthDocument {
        status: if lost || history.is_some() {
            HealthStatus::Warn
        } else {
            HealthStatus::Pass
        },
        version: env!("CARGO_PKG_VERSION"),
        release_id: service.build.commit.clone(),
        service_id: env!("CARGO_PKG_NAME"),
        checks: statuses
            .into_iter()
            .map(|status| (format!("{}:responseTime", status.name), [component(status)]))
            // No check is called so: names have no colon.
            .chain(history.map(|history| ("history:state".to_owned(), [history])))
            .collect(),
    }
}

/// The store of the history, where it does not do what it should.
fn history(state: &StoreState) -> Option<Component> {
    let StoreState::Failing { since, reason } = state else {
        return None;
    };
    Some(Component {
        component_type: "datastore",
        observed_value: None,
        observed_unit: None,
        status: HealthStatus::Warn,
        time: *since,
        output: Some(reason.clone()),
    })
}

fn component(status: Status) -> Component {
    let last = status.last;
    Component {
        component_type: status.component_type,
        observed_value: last.as_ref().map(|last| last.latency_ms),
        observed_unit: last.as_ref().map(|_| "ms"),
        status: match (status.state, status.critical) {
            (State::Down, true) => HealthStatus::Fail,
            (State::Down, false) => HealthStatus::Warn,
            (State::Up | State::Pending, _) => HealthStatus::Pass,
        },
        time: last.as_ref().map_or(status.since, |last| last.time),
        output: last.and_then(|last| last.error),
    }
}
