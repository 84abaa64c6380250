//! Only the rule gives permission.

use ci::authority::{Credential, Permit};
use ci::reference::{Registry, Tag};

fn forged(registry: Registry, tag: Tag, credential: Option<Credential>) -> Permit<Registry> {
    Permit { registry, tag, credential }
}

fn main() {}
