//! Evidence made with stand-ins cannot be used as genuine evidence.

use ci::trust::kind::{StandIn, Genuine};
use ci::steps::verified::{Evidence, Verified};
use ci::steps::build::Image;
use ci::steps::custom::Gated;
use ci::steps::fmt::Formatted;
use ci::steps::lint::Linted;
use ci::steps::scan::Scanned;
use ci::steps::smoke::Smoked;
use ci::steps::test::Tested;

fn mix_one_stand_in<'run, 'img>(
    tested: Tested<'run, Genuine>,
    formatted: Formatted<'run, Genuine>,
    linted: Linted<'run, Genuine>,
    gated: Gated<'run, Genuine>,
    image: Image<'run, 'img, Genuine>,
    scanned: Scanned<'img, StandIn>,
    smoked: Smoked<'img, Genuine>,
) -> Verified<'run, 'img, Genuine> {
    Verified::new(Evidence { tested, formatted, linted, gated, image, scanned, smoked })
}

fn convert_stand_ins<'run, 'img>(
    verified: Verified<'run, 'img, StandIn>,
) -> Verified<'run, 'img, Genuine> {
    verified
}

fn main() {}
