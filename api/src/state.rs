//! The state of a check.

use serde::Serialize;
use utoipa::ToSchema;

/// What a check's answers say of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nobody knows yet.
    Pending,
    /// It answers as expected.
    Up,
    /// It failed as often in a row as its threshold says.
    Down,
}
