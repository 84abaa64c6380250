//! What has to be shown before anything is published, as types.
//!
//! Each gate returns its own evidence, which nothing else can make. The lifetime `'run` is one run's alone and `'img` one
//! image's ([`generativity`]): evidence of two runs or images does not fit together. The parameter `K` says whether it was
//! made with the real base images and database ([`Genuine`]) or with stand-ins ([`StandIn`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use generativity::Id;

use crate::authority::Permit;
use crate::failure::Failure;
use crate::paths::{Given, Paths};
use crate::reference::{LoopbackRegistry, Registry};
use crate::referrer::Paper;
use crate::source::{Checkout, Snapshot};
use crate::step::Step;
use crate::steps::build::Image;
use crate::steps::fmt::Formatted;
use crate::steps::lint::Linted;
use crate::steps::scan::Scanned;
use crate::steps::smoke::Smoked;
use crate::steps::test::Tested;

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

/// The sources of one run.
#[derive(Debug)]
pub struct Source<'run> {
    id: Id<'run>,
    checkout: Checkout,
    snapshot: Snapshot,
    given: Mutex<BTreeMap<Option<Step>, Arc<Given>>>,
}

impl<'run> Source<'run> {
    /// The sources of the run that `guard` stands for.
    #[must_use]
    pub fn new(guard: generativity::Guard<'run>, checkout: Checkout, snapshot: Snapshot) -> Self {
        Self {
            id: guard.into(),
            checkout,
            snapshot,
            given: Mutex::default(),
        }
    }

    /// The files that `step` is given: those that `paths` says, or all.
    ///
    /// # Errors
    /// When they cannot be read (exit 3).
    pub fn given(&self, step: Step, paths: &BTreeMap<Step, Paths>) -> Result<Arc<Given>, Failure> {
        let paths = paths.get(&step);
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        // All who are given everything share it.
        let whose = paths.is_some().then_some(step);
        if let Some(there) = given.get(&whose) {
            return Ok(Arc::clone(there));
        }
        let new = Arc::new(Given::new(&self.snapshot, paths)?);
        given.insert(whose, Arc::clone(&new));
        Ok(new)
    }

    /// The run.
    pub(crate) fn run(&self) -> Id<'run> {
        self.id
    }

    /// The commit and its state.
    #[must_use]
    pub fn checkout(&self) -> &Checkout {
        &self.checkout
    }

    /// The files.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// An image that passed every gate of its run: the only thing that can be published.
///
/// `tests/e2e/compile-fail` holds the ways around a gate that do not compile.
#[derive(Debug)]
pub struct Verified<'run, 'img, K> {
    image: Image<'run, 'img, K>,
    sbom: Paper,
}

impl<'run, 'img, K: Kind> Verified<'run, 'img, K> {
    /// All the evidence of one run about one image. Their values are taken: what they prove, they prove once.
    #[must_use]
    pub fn new(
        _tested: Tested<'run, K>,
        _formatted: Formatted<'run, K>,
        _linted: Linted<'run, K>,
        image: Image<'run, 'img, K>,
        scanned: Scanned<'img, K>,
        _smoked: Smoked<'img, K>,
    ) -> Self {
        Self {
            image,
            sbom: scanned.into_sbom(),
        }
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image<'run, 'img, K> {
        &self.image
    }

    /// What goes beside it: the bill of materials of its scan, and how it came to be.
    #[must_use]
    pub fn papers(&self) -> [&Paper; 2] {
        [&self.sbom, self.image.provenance()]
    }
}
