//! The state of a check.

use serde::Serialize;
use utoipa::ToSchema;

/// The state of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// There are not enough results yet.
    Pending,
    /// The target responds as expected.
    Up,
    /// The configured number of consecutive probes failed.
    Down,
}
