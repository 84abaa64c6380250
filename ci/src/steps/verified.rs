//! What has to be shown before anything is published, as one type.

use super::build::Image;
use super::fmt::Formatted;
use super::lint::Linted;
use super::scan::Scanned;
use super::smoke::Smoked;
use super::test::Tested;
use crate::image::attestations::Paper;
use crate::trust::kind::Kind;

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
