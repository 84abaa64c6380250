//! Only the rule gives permission.

use ci::trust::authority::{Credential, Permit};
use ci::model::image_name::{Registry, Tag};

fn forged(registry: Registry, tag: Tag, credential: Option<Credential>) -> Permit<Registry> {
    Permit { registry, tag, credential }
}

fn main() {}
