//! With what evidence was made: the real base images and database, or stand-ins.
//!
//! Each gate returns its own evidence, which nothing else can make. The lifetime `'run` is one run's alone and `'img` one
//! image's ([`generativity`]): evidence of two runs or images does not fit together. The parameter `K` says whether it was
//! made with the real base images and database ([`Genuine`]) or with stand-ins ([`StandIn`]).

use super::authority::Permit;
use crate::model::image_name::{LoopbackRegistry, Registry};
use common::failure::Failure;

mod sealed {
    pub trait OneOfTheTwo {}
    impl OneOfTheTwo for super::Genuine {}
    impl OneOfTheTwo for super::StandIn {}
}

/// With what evidence was made: [`Genuine`] or [`StandIn`].
pub trait Kind: sealed::OneOfTheTwo + 'static {
    /// The registries that may get an image of this kind.
    type Registry: Clone + std::fmt::Debug + Into<Registry>;

    /// The permission, as far as it holds for an image of this kind.
    ///
    /// # Errors
    /// When an image made with stand-ins was to go to a registry that is not on loopback (exit 3: the real base images
    /// have to be reachable).
    fn accept(permit: Permit<Registry>) -> Result<Permit<Self::Registry>, Failure>;
}

/// Made with the base images and the vulnerability database that the pins name.
#[derive(Debug)]
pub enum Genuine {}

/// Made with stand-ins for at least one of them.
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
                "the base images cannot be reached, and what is made with stand-ins is not published to {registry}"
            ))
            .hint("Let the engine reach docker.io, ghcr.io and gcr.io, and run again.")
        })
    }
}
