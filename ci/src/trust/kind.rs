//! The kinds of evidence: from the original base images and vulnerability database, or from stand-ins.
//!
//! Each gate returns its own type of evidence, which no other code can create. The lifetimes `'run` and `'img` are unique to one
//! run and one image ([`generativity`]), so that evidence of different runs or images cannot be combined. The parameter `K` is
//! [`Genuine`] for the originals and [`StandIn`] for stand-ins.

use super::authority::Permit;
use crate::model::image_name::{LoopbackRegistry, Registry};
use common::failure::Failure;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Genuine {}
    impl Sealed for super::StandIn {}
}

/// The kind of evidence: [`Genuine`] or [`StandIn`].
pub trait Kind: sealed::Sealed + 'static {
    /// The registries to which an image of this kind can be pushed.
    type Registry: Clone + std::fmt::Debug + Into<Registry>;

    /// Converts the permission to one for images of this kind.
    ///
    /// # Errors
    /// When an image built with stand-ins would be pushed to a registry that is not on loopback (exit code 3).
    fn accept(permit: Permit<Registry>) -> Result<Permit<Self::Registry>, Failure>;
}

/// Built with the base images and the vulnerability database that the pins name.
#[derive(Debug)]
pub enum Genuine {}

/// Built with a stand-in for at least one of them.
#[derive(Debug)]
pub enum StandIn {}

impl Kind for Genuine {
    type Registry = Registry;

    fn accept(permit: Permit<Registry>) -> Result<Permit<Registry>, Failure> {
        Ok(permit)
    }
}

impl Kind for StandIn {
    type Registry = LoopbackRegistry;

    fn accept(permit: Permit<Registry>) -> Result<Permit<LoopbackRegistry>, Failure> {
        let registry = permit.registry().to_string();
        permit.for_loopback().ok_or_else(|| {
            Failure::environment(format!(
                "cannot publish to {registry}: the base images cannot be pulled, and images built with stand-ins stay on this machine"
            ))
            .hint("Give the engine access to docker.io, ghcr.io and gcr.io, then run again.")
        })
    }
}
