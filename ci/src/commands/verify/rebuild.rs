//! The commit of a published image, checked out afresh and built by its own `ci`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;

use super::published::Image;
use crate::image::archive;
use crate::image::provenance::Statement;
use crate::report::Reporter;
use crate::settings::Invocation;
use crate::source::checkout::Checkout;
use crate::source::project::{self, Project};
use common::failure::{Failure, OrFail};
use common::progress::Progress as _;
use common::provision;

/// What would make the build another one, or write where this run does.
const NOT_HANDED_ON: [&str; 13] = [
    "GITHUB_ACTIONS",
    "GITHUB_OUTPUT",
    "GITHUB_STEP_SUMMARY",
    "LAB_CI_EVENT",
    "LAB_CI_FAIL_FAST",
    "LAB_CI_FORMAT",
    "LAB_CI_LOG",
    "LAB_CI_PLATFORM",
    "LAB_CI_REGISTRY",
    "LAB_CI_REPORT_DIR",
    "LAB_CI_TIMEOUT",
    "LAB_CI_WORKSPACE",
    "RUSTFLAGS",
];

/// The rebuilt image.
pub struct Rebuilt {
    /// Its OCI archive.
    pub archive: PathBuf,
    /// How it came to be, where its `ci` says so.
    pub provenance: Option<Statement>,
    _folder: TempDir,
}

impl Rebuilt {
    /// Its configuration.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn config(&self) -> Result<Vec<u8>, Failure> {
        archive::read_config_digest(&self.archive)
            .and_then(|digest| archive::read_entry(&self.archive, &archive::blob_path(&digest)))
            .or_environment("the rebuilt image is damaged")
    }
}

/// Builds the commit of `image` for its platform. `directory` is where the caller works in `checkout`.
///
/// # Errors
/// Those of git, of cargo and of the build, with their output (exit 3).
pub async fn run(
    checkout: &Checkout,
    directory: &Path,
    image: &Image,
    invocation: &Invocation,
    reporter: &Reporter,
) -> Result<Rebuilt, Failure> {
    let folder = tempfile::Builder::new()
        .prefix("ci-verify-")
        .tempdir()
        .or_environment("cannot make a folder for the commit")?;
    let worktree = checkout.worktree(&image.revision, &folder.path().join("source"))?;
    let below = project::below(&checkout.root, directory)?;
    let workspace = match worktree.path().join(&below) {
        there if there.is_dir() => there,
        _ => worktree.path().to_owned(),
    };
    let project = Project::find(
        worktree.path(),
        &project::below(worktree.path(), &workspace)?,
    )?;
    let archive = folder.path().join("image.tar");
    let report_dir = folder.path().join("report");

    let has_ci = |package: &&project::Package| package.programs.iter().any(|name| name == "ci");
    let mut build = match project.packages.iter().find(has_ci) {
        Some(package) => {
            reporter.header(&format!(
                "building it with the ci of commit {}",
                image.revision
            ));
            let mut cargo = provision::command("cargo");
            cargo
                .args(["run", "--locked", "--package", &package.name, "--bin", "ci"])
                // Not in the folder that may be running this very program.
                .env("CARGO_TARGET_DIR", checkout.root.join("target/verify"))
                .arg("--");
            cargo
        }
        // Somebody else's service, which is built with an installed ci.
        None => {
            reporter.header(&format!(
                "building it with this ci, {}, as the commit has none of its own",
                env!("CARGO_PKG_VERSION")
            ));
            provision::command(std::env::current_exe().or_environment("cannot find this program")?)
        }
    };
    build
        .current_dir(&workspace)
        .args(["build", "--event", "local", "--format", "human"])
        .args(["--platform", &image.platform.to_string()])
        .arg("--output")
        .arg(&archive)
        .arg("--report-dir")
        .arg(&report_dir);
    if let Some(engine) = &invocation.options.engine {
        build.args(["--engine", engine]);
    }
    for name in NOT_HANDED_ON {
        build.env_remove(name);
    }
    let begun = Instant::now();
    let what = format!("building commit {} for {}", image.revision, image.platform);
    reporter.begin(&what);
    provision::run(build, &what, reporter).await?;
    reporter.done(&what, begun.elapsed());
    Ok(Rebuilt {
        archive,
        provenance: Statement::read(&report_dir).ok(),
        _folder: folder,
    })
}
