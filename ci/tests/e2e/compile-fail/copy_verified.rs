//! `Verified` cannot be created by a copy, a default value, or deserialization.

use ci::trust::kind::Genuine;
use ci::steps::verified::Verified;
use serde::Deserialize;

fn copy(verified: &Verified<'_, '_, Genuine>) {
    let _ = Verified::clone(verified);
}

fn use_default() {
    let _ = Verified::<'_, '_, Genuine>::default();
}

fn deserialize(text: &mut serde_json::Deserializer<serde_json::de::StrRead<'_>>) {
    let _ = Verified::<'_, '_, Genuine>::deserialize(text);
}

fn main() {}
