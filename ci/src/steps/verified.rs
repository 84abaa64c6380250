//! What has to be shown before anything is published, as one type.

use super::build::Image;
use super::custom::Gated;
use super::fmt::Formatted;
use super::lint::Linted;
use super::scan::Scanned;
use super::smoke::Smoked;
use super::test::Tested;
use crate::image::attestations::Paper;
use crate::model::step::Step;
use crate::trust::kind::Kind;

/// The struct of all the evidence, and the list of the gates that it is of: neither has a field more than the other.
macro_rules! evidence {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $step:ident,)*) => {
        /// What the gates of one run have shown about its sources and one image; none can be left out.
        #[derive(Debug)]
        pub struct Evidence<'run, 'img, K> {
            $($(#[$doc])* pub $field: $type,)*
        }

        /// The gates whose evidence it takes.
        pub const PROVEN: &[Step] = &[$(Step::$step),*];
    };
}

evidence! {
    /// The tests.
    tested: Tested<'run, K> = Test,
    /// The format.
    formatted: Formatted<'run, K> = Fmt,
    /// clippy.
    linted: Linted<'run, K> = Lint,
    /// All gates of the project's own.
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
/// `tests/e2e/compile-fail` holds the ways around a gate that do not compile.
#[derive(Debug)]
pub struct Verified<'run, 'img, K> {
    image: Image<'run, 'img, K>,
    sbom: Paper,
}

impl<'run, 'img, K: Kind> Verified<'run, 'img, K> {
    /// Takes the evidence: what it proves, it proves once.
    #[must_use]
    pub fn new(evidence: Evidence<'run, 'img, K>) -> Self {
        Self {
            image: evidence.image,
            sbom: evidence.scanned.into_sbom(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_evidence_of_every_gate() {
        assert!(Step::gates().eq(PROVEN.iter().copied()), "{PROVEN:?}");
    }
}
