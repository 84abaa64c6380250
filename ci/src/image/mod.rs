//! The image as OCI has it: its archive, its labels, what refers to it, and the registry that it is in.

pub mod archive;
pub mod attestations;
pub mod labels;
pub mod provenance;
pub mod registry;
