//! How reports write a point in time, and the date.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// The schema of a point in time, as RFC 3339 writes it.
pub(crate) enum Time {}

impl JsonSchema for Time {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// The date in UTC.
#[must_use]
pub(crate) fn today() -> jiff::civil::Date {
    let now = jiff::Timestamp::now();
    jiff::tz::Offset::UTC.to_datetime(now).date()
}
