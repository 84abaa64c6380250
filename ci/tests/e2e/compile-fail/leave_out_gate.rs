//! No gate can be left out or replaced.

use ci::trust::kind::Genuine;
use ci::steps::verified::{Evidence, Verified};
use ci::steps::build::Image;
use ci::steps::custom::Gated;
use ci::steps::fmt::Formatted;
use ci::steps::lint::Linted;
use ci::steps::scan::Scanned;
use ci::steps::smoke::Smoked;
use ci::steps::test::Tested;

fn leave_out_smoke_test<'run, 'img>(
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    gated: Gated<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    scanned: Scanned<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(Evidence { tested, formatted, linted, gated, image, scanned })
}

fn replace_scan_with_nothing<'run, 'img>(
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    gated: Gated<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    smoked: Smoked<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(Evidence { tested, formatted, linted, gated, image, scanned: (), smoked })
}

fn replace_tests_with_format<'run, 'img>(
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
