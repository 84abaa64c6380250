//! The tag of uncommitted changes cannot be published.

use ci::model::image_name::{DirtyTag, Reference, Registry, Repository, Tag};
use ci::source::checkout::State;

fn reference_with_dirty_tag(registry: Registry, repository: Repository, tag: DirtyTag) -> Reference {
    Reference { registry, repository, tag }
}

fn dirty_tag_as_clean(tag: &Tag) -> State {
    State::Clean(tag.dirty())
}

fn main() {}
