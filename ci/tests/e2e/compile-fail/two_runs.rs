//! The evidence of two runs does not fit together.

use ci::evidence::{Genuine, Verified};
use ci::steps::{build::Image, fmt::Formatted, lint::Linted, scan::Scanned, smoke::Smoked, test::Tested};

fn tests_of_another_run<'run, 'other, 'img>(
    tested: Tested<'other, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    scanned: Scanned<'img, Genuine>,
    smoked: Smoked<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(tested, formatted, linted, image, scanned, smoked)
}

fn an_image_of_another_run<'run, 'other, 'img>(
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    image: Image<'other, 'img, Genuine>,
    scanned: Scanned<'img, Genuine>,
    smoked: Smoked<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(tested, formatted, linted, image, scanned, smoked)
}

fn main() {}
