//! The evidence of all gates, which is required to publish an image.

use super::build::Image;
use super::custom::Gated;
use super::fmt::Formatted;
use super::lint::Linted;
use super::scan::Scanned;
use super::smoke::Smoked;
use super::test::Tested;
use crate::image::attestations::Attestation;
use crate::model::step::Step;
use crate::trust::kind::Kind;

/// Defines the struct of all evidence and the list of its gates, so that the two cannot differ.
macro_rules! evidence {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $step:ident,)*) => {
        /// The evidence of every gate of one run, for its sources and one image.
        #[derive(Debug)]
        pub struct Evidence<'run, 'img, K> {
            $($(#[$doc])* pub $field: $type,)*
        }

        /// The gates whose evidence is required.
        pub const PROVEN: &[Step] = &[$(Step::$step),*];
    };
}

evidence! {
    /// The tests passed.
    tested: Tested<'run, K> = Test,
    /// The sources are formatted.
    formatted: Formatted<'run, K> = Fmt,
    /// clippy reports no warnings.
    linted: Linted<'run, K> = Lint,
    /// The project's own gates passed.
    gated: Gated<'run, K> = Custom,
    /// The image, built from the same sources.
    image: Image<'run, 'img, K> = Build,
    /// The scan of that image.
    scanned: Scanned<'img, K> = Scan,
    /// The smoke test of that image.
    smoked: Smoked<'img, K> = Smoke,
}

/// An image that passed every gate of its run: the only thing that can be published.
///
/// `tests/e2e/compile-fail` has attempts to bypass a gate; none of them compiles.
#[derive(Debug)]
pub struct Verified<'run, 'img, K> {
    image: Image<'run, 'img, K>,
    sbom: Attestation,
}

impl<'run, 'img, K: Kind> Verified<'run, 'img, K> {
    /// Consumes the evidence of every gate.
    #[must_use]
    pub fn new(evidence: Evidence<'run, 'img, K>) -> Self {
        Self {
            image: evidence.image,
            sbom: evidence.scanned.into_sbom(),
        }
    }

    /// The verified image.
    #[must_use]
    pub fn image(&self) -> &Image<'run, 'img, K> {
        &self.image
    }

    /// The image's attestations: the SBOM of its scan, and the provenance.
    #[must_use]
    pub fn attestations(&self) -> [&Attestation; 2] {
        [&self.sbom, self.image.provenance()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requires_the_evidence_of_every_gate() {
        assert!(Step::gates().eq(PROVEN.iter().copied()), "{PROVEN:?}");
    }
}
