//! Tags come from git, so a tag `latest` cannot be constructed.

use common::failure::Failure;
use ci::model::image_name::Tag;

fn construct() -> Tag {
    Tag("latest".to_owned())
}

fn use_constructor() -> Result<Tag, Failure> {
    Tag::of_commit("latest", 6)
}

fn convert() -> Tag {
    "latest"
}

fn main() {}
