//! A `Permit` can be constructed only by the publish rule.

use ci::trust::authority::{Credential, Permit};
use ci::model::image_name::{Registry, Tag};

fn construct(registry: Registry, tag: Tag, credential: Option<Credential>) -> Permit<Registry> {
    Permit { registry, tag, credential }
}

fn main() {}
