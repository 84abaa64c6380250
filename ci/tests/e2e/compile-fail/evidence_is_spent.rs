//! Evidence is spent on one `Verified`.

use ci::evidence::{Genuine, Verified};
use ci::steps::{build::Image, fmt::Formatted, lint::Linted, scan::Scanned, smoke::Smoked, test::Tested};

fn twice<'run, 'img>(
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    scanned: Scanned<'img, Genuine>,
    smoked: Smoked<'img, Genuine>,
) -> [Verified<'run, 'img, Genuine>; 2] {
    let one = Verified::new(tested, formatted, linted, image, scanned, smoked);
    let two = Verified::new(tested, formatted, linted, image, scanned, smoked);
    [one, two]
}

fn main() {}
