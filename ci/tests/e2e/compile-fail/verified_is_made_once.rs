//! `Verified` comes from its evidence, once: not from a copy, a default or a file.

use ci::trust::kind::Genuine;
use ci::steps::verified::Verified;
use serde::Deserialize;

fn copied(verified: &Verified<'_, '_, Genuine>) {
    let _ = Verified::clone(verified);
}

fn by_default() {
    let _ = Verified::<'_, '_, Genuine>::default();
}

fn from_a_file(text: &mut serde_json::Deserializer<serde_json::de::StrRead<'_>>) {
    let _ = Verified::<'_, '_, Genuine>::deserialize(text);
}

fn main() {}
