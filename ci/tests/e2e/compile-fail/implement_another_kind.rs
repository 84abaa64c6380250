//! `Kind` is sealed, so no other kind can be published to any registry.

use ci::trust::authority::Permit;
use ci::trust::kind::Kind;
use common::failure::Failure;
use ci::model::image_name::Registry;

enum AnotherKind {}

impl Kind for AnotherKind {
    type Registry = Registry;

    fn accept(permit: Permit<Registry>) -> Result<Permit<Registry>, Failure> {
        Ok(permit)
    }
}

fn main() {}
