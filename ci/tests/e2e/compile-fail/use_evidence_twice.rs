//! Evidence cannot be used for a second `Verified`.

use ci::trust::kind::Genuine;
use ci::steps::verified::{Evidence, Verified};
use ci::steps::build::Image;
use ci::steps::custom::Gated;
use ci::steps::fmt::Formatted;
use ci::steps::lint::Linted;
use ci::steps::scan::Scanned;
use ci::steps::smoke::Smoked;
use ci::steps::test::Tested;

fn use_twice<'run, 'img>(
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    gated: Gated<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    scanned: Scanned<'img, Genuine>,
    smoked: Smoked<'img, Genuine>,
) -> [Verified<'run, 'img, Genuine>; 2] {
    let one = Verified::new(Evidence { tested, formatted, linted, gated, image, scanned, smoked });
    let two = Verified::new(Evidence { tested, formatted, linted, gated, image, scanned, smoked });
    [one, two]
}

fn main() {}
