//! `ci --version`: the version of `ci` and the commit of its sources.

use std::path::Path;

use crate::report::Program;
use crate::source::checkout;

/// The directory of the sources that this program was built from. Cargo checks out the sources of `cargo install --git` to a
/// directory of its own, where they stay.
const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// The version, with the commit if the sources are still there: `ci 0.1.0 (commit 4f2a91c…)`. It is looked up when it is asked for,
/// because a commit that is compiled into the program would make each commit compile it again.
#[must_use]
pub(crate) fn version() -> String {
    let Program { version, commit } = program();
    match commit {
        Some(commit) => format!("ci {version} (commit {commit})"),
        None => format!("ci {version}"),
    }
}

/// The version and the commit, for reports.
#[must_use]
pub(super) fn program() -> Program {
    Program {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: checkout::commit_of(Path::new(SOURCES)),
    }
}
