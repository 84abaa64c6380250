//! Evidence can be constructed only by its step, and `Verified` only from all evidence.

use std::marker::PhantomData;

use ci::trust::kind::Genuine;
use ci::steps::verified::Verified;
use ci::image::attestations::Attestation;
use ci::steps::build::Image;
use ci::steps::custom::Gated;
use ci::steps::fmt::Formatted;
use ci::steps::lint::Linted;
use ci::steps::scan::Scanned;
use ci::steps::smoke::Smoked;
use ci::steps::test::Tested;
use generativity::Id;

fn construct_evidence<'run, 'img>(run: Id<'run>, image: Id<'img>, sbom: Attestation) {
    let _: Tested<'run, Genuine> = Tested { _run: run, _kind: PhantomData };
    let _: Formatted<'run, Genuine> = Formatted { _run: run, _kind: PhantomData };
    let _: Linted<'run, Genuine> = Linted { _run: run, _kind: PhantomData };
    let _: Gated<'run, Genuine> = Gated { _run: run, _kind: PhantomData };
    let _: Scanned<'img, Genuine> = Scanned { _image: image, sbom, _kind: PhantomData };
    let _: Smoked<'img, Genuine> = Smoked { _image: image, _kind: PhantomData };
}

fn construct_verified<'run, 'img>(image: Image<'run, 'img, Genuine>, sbom: Attestation) {
    let _: Verified<'run, 'img, Genuine> = Verified { image, sbom };
}

fn main() {}
