//! Stand-ins for images if no container registry can be reached: images that this host builds, and a small, dated advisory
//! database. They are uploaded to the engine by content, so that they never appear under the name of a real image and
//! the engine can run on another machine.

mod advisories;
mod all;
mod base;
mod debian;
mod made;
mod servers;
mod toolchain;
mod tools;

pub(crate) use advisories::AdvisoryDb;
pub(crate) use all::StandIns;
pub(crate) use made::StandIn;
pub(crate) use servers::Server;
pub(crate) use tools::CRANE_PATH;
