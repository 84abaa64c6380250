//! Tags come from git, so a tag `latest` cannot be constructed.

use common::failure::Failure;
use ci::model::image_name::Tag;

fn construct() -> Tag {
    Tag("latest".to_owned())
}

fn use_constructor() -> Result<Tag, Failure> {
    Tag::of_commit("latest", "4f2a91c0d3b5e6f7a8b9c0d1e2f3a4b5c6d7e8f9")
}

fn convert() -> Tag {
    "latest"
}

fn main() {}
