//! What the pipeline uses where no container registry can be reached: root file systems of this host's own making, and
//! a small, dated advisory database. The engine takes them by their content, so that none is ever found under a real
//! image's name, and it need not be on this machine.

mod advisories;
mod all;
mod base;
mod debian;
mod made;
mod servers;
mod toolchain;
mod tools;

pub use advisories::{ADVISORIES_DATED, AdvisoryDb};
pub use all::StandIns;
pub use base::BaseLayout;
pub use made::StandIn;
pub use servers::Server;
pub use tools::{CRANE_PATH, TRIVY_PATH};
