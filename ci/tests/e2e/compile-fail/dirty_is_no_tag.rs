//! The tag of uncommitted changes is not a tag that can be published.

use ci::model::image_name::{DirtyTag, Reference, Registry, Repository, Tag};
use ci::source::checkout::State;

fn named(registry: Registry, repository: Repository, tag: DirtyTag) -> Reference {
    Reference { registry, repository, tag }
}

fn laundered(tag: &Tag) -> State {
    State::Clean(tag.dirty())
}

fn main() {}
