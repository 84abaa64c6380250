//! The results of the checks: the newest samples in memory and, with a data directory, roll-ups of a year on the disk.

mod clocks;
mod disk;
mod fault;
mod minutes;
mod outage;
mod recent;
mod ring;
mod rollup;
mod sample;
mod schema;
mod store;
mod waiting;

pub use clocks::Clocks;
pub use outage::Outage;
pub(crate) use recent::day_before;
pub use recent::{DAY, Recent};
pub use ring::{Percentiles, Ring, Summary, milliseconds};
pub use rollup::{Resolution, Rollup};
pub use sample::Sample;
pub use store::{OpenError, Store, StoreState};
