//! OCI images: archives, labels, attestations and the registry client.

pub mod archive;
pub mod attestations;
pub mod labels;
pub mod provenance;
pub mod registry;
