//! No gate can be left out, and nothing else takes its place.

use ci::trust::kind::Genuine;
use ci::steps::verified::{Evidence, Verified};
use ci::steps::build::Image;
use ci::steps::custom::Gated;
use ci::steps::fmt::Formatted;
use ci::steps::lint::Linted;
use ci::steps::scan::Scanned;
use ci::steps::smoke::Smoked;
use ci::steps::test::Tested;

fn without_the_smoke_test<'run, 'img>(
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    gated: Gated<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    scanned: Scanned<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(Evidence { tested, formatted, linted, gated, image, scanned })
}

fn nothing_in_place_of_the_scan<'run, 'img>(
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    gated: Gated<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    smoked: Smoked<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(Evidence { tested, formatted, linted, gated, image, scanned: (), smoked })
}

fn the_format_in_place_of_the_tests<'run, 'img>(
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    gated: Gated<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    scanned: Scanned<'img, Genuine>,
    smoked: Smoked<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(Evidence { tested: formatted, formatted, linted, gated, image, scanned, smoked })
}

fn main() {}
