//! No gate can be left out, and nothing else takes its place.

use ci::evidence::{Genuine, Verified};
use ci::steps::{build::Image, fmt::Formatted, lint::Linted, scan::Scanned, smoke::Smoked, test::Tested};

fn without_the_smoke_test<'run, 'img>(
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    scanned: Scanned<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(tested, formatted, linted, image, scanned)
}

fn nothing_in_place_of_the_scan<'run, 'img>(
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    smoked: Smoked<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(tested, formatted, linted, image, (), smoked)
}

fn the_format_in_place_of_the_tests<'run, 'img>(
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    scanned: Scanned<'img, Genuine>,
    smoked: Smoked<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(formatted, formatted, linted, image, scanned, smoked)
}

fn main() {}
