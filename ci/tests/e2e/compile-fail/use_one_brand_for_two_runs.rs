//! A brand cannot be used for the sources of two runs.

use ci::source::sources::Source;
use ci::source::{checkout::Checkout, snapshot::Snapshot};
use generativity::make_guard;

fn use_brand_twice(checkout: Checkout, first: Snapshot, second: Snapshot) {
    make_guard!(this_run);
    let one = Source::new(this_run, checkout.clone(), first);
    let two = Source::new(this_run, checkout, second);
    drop((one, two));
}

fn main() {}
