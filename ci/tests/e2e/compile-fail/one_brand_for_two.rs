//! A run's brand makes the sources of one run only.

use ci::source::sources::Source;
use ci::source::checkout::{Checkout, Snapshot};
use generativity::make_guard;

fn one_brand_for_two_runs(checkout: Checkout, first: Snapshot, second: Snapshot) {
    make_guard!(this_run);
    let one = Source::new(this_run, checkout.clone(), first);
    let two = Source::new(this_run, checkout, second);
    drop((one, two));
}

fn main() {}
