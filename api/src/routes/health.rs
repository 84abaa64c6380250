//! `GET /health`: the state of the service and its checks.
//!
//! The format is `application/health+json`, an expired draft; its few fields are serialized here.

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

/// The cached response of one worker.
#[derive(Default)]
pub(super) struct Health(Rendered);

/// A health document of draft-inadarei-api-health-check, revision 6.
#[derive(Serialize, ToSchema)]
pub(super) struct HealthDocument {
    /// `warn` if a check is down or degraded, or the history cannot be written, otherwise `pass`. Never `fail`: restarting the service would
    /// not help.
    status: HealthStatus,
    /// The version of the service.
    #[schema(value_type = String)]
    version: &'static str,
    /// The commit of the running build.
    #[serde(rename = "releaseId", skip_serializing_if = "Option::is_none")]
    release_id: Option<String>,
    /// The name of the service.
    #[serde(rename = "serviceId")]
    #[schema(value_type = String)]
    service_id: &'static str,
    /// The checks, with keys of the form `NAME:responseTime`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    checks: BTreeMap<String, [Component; 1]>,
}

/// A status of the draft.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum HealthStatus {
    /// Up, or no result yet.
    Pass,
    /// A check is down or degraded.
    Warn,
    /// A critical check is down. Never the status of the whole service.
    Fail,
}

/// A check as a component of the draft.
#[derive(Serialize, ToSchema)]
pub(super) struct Component {
    /// `datastore` or `component`.
    #[serde(rename = "componentType")]
    #[schema(value_type = String)]
    component_type: &'static str,
    /// The duration of the last probe.
    #[serde(rename = "observedValue", skip_serializing_if = "Option::is_none")]
    observed_value: Option<f64>,
    /// Always `ms`.
    #[serde(rename = "observedUnit", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    observed_unit: Option<&'static str>,
    /// `fail` if the check is down and critical, `warn` if it is degraded, or down and not critical.
    status: HealthStatus,
    /// When the last probe started; before the first probe, when the service started.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    time: SystemTime,
    /// Why the last probe failed, or why the check is degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
}

/// Health of the service and its checks
///
/// The status code is 200 while the service runs. A check that is down or degraded sets the status `warn`, because restarting the service
/// would not help.
#[utoipa::path(get, operation_id = "health", path = "/health", tag = "health", responses(
    (status = 200, description = "The service is running", body = HealthDocument, content_type = HEALTH_JSON),
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
    let any_trouble =
        (statuses.iter()).any(|status| matches!(status.state, State::Down | State::Degraded));
    let history = history(&service.board.store_state());
    HealthDocument {
        status: if any_trouble || history.is_some() {
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
            // Does not collide with a check, because their names contain no colon.
            .chain(history.map(|history| ("history:state".to_owned(), [history])))
            .collect(),
    }
}

/// The component for the store of the history, if it is failing.
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
            (State::Down, false) | (State::Degraded, _) => HealthStatus::Warn,
            (State::Up | State::Pending, _) => HealthStatus::Pass,
        },
        time: last.as_ref().map_or(status.since, |last| last.time),
        output: last.and_then(|last| last.error.or(last.warning)),
    }
}
