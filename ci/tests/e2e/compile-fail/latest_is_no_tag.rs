//! A tag is what git said of a commit: `latest` cannot be written down.

use common::failure::Failure;
use ci::model::image_name::Tag;

fn made() -> Tag {
    Tag("latest".to_owned())
}

fn called() -> Result<Tag, Failure> {
    Tag::of_commit("latest", "4f2a91c0d3b5e6f7a8b9c0d1e2f3a4b5c6d7e8f9")
}

fn converted() -> Tag {
    "latest"
}

fn main() {}
