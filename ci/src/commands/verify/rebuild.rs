//! Checks out the commit of a published image and builds it with its own `ci`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;

use super::published::Image;
use crate::image::archive;
use crate::image::provenance::Statement;
use crate::model::rust;
use crate::report::Reporter;
use crate::settings::Invocation;
use crate::source::checkout::Checkout;
use crate::source::project::{self, Project};
use common::failure::{Failure, OrFail};
use common::progress::Progress as _;
use common::provision;
use common::scratch;

/// Environment variables that would change the build or redirect its output.
const REMOVED_ENV: [&str; 13] = [
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
pub(super) struct Rebuilt {
    /// The path of the OCI archive.
    pub archive: PathBuf,
    /// The provenance, if the commit's `ci` writes one.
    pub provenance: Option<Statement>,
    _folder: TempDir,
}

impl Rebuilt {
    /// The configuration's JSON.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub(super) fn config(&self) -> Result<Vec<u8>, Failure> {
        archive::read_config_digest(&self.archive)
            .and_then(|digest| archive::read_entry(&self.archive, &archive::blob_path(&digest)))
            .or_environment("cannot read the rebuilt image")
    }
}

/// Builds the commit of `image` for its platform. `directory` is the caller's directory in `checkout`.
///
/// # Errors
/// When git, cargo or the build fails, with the output (exit code 3).
pub(super) async fn run(
    checkout: &Checkout,
    directory: &Path,
    image: &Image,
    invocation: &Invocation,
    reporter: &Reporter,
) -> Result<Rebuilt, Failure> {
    let folder = scratch::folder().or_environment("cannot create a directory for the commit")?;
    let worktree = checkout.worktree(&image.revision, &folder.path().join("source"))?;
    let below = project::path_below_root(&checkout.root, directory)?;
    let workspace = match worktree.path().join(&below) {
        there if there.is_dir() => there,
        _ => worktree.path().to_owned(),
    };
    let project = Project::find(
        worktree.path(),
        &project::path_below_root(worktree.path(), &workspace)?,
    )?;
    let archive = folder.path().join("image.tar");
    let report_dir = folder.path().join("report");

    let has_ci = |package: &&project::Package| package.programs.iter().any(|name| name == "ci");
    let mut build = match project.packages.iter().find(has_ci) {
        Some(package) => {
            reporter.header(&format!(
                "building the image with the ci of commit {}",
                image.revision
            ));
            let mut cargo = provision::command("cargo");
            cargo
                .args(["run", "--locked", "--package", &package.name, "--bin", "ci"])
                // Not in target/, which may contain the running program.
                .env("CARGO_TARGET_DIR", checkout.root.join("target/verify"))
                .arg("--");
            cargo
        }
        // Other services are built with an installed ci.
        None => {
            reporter.header(&format!(
                "building the image with this ci, {}, because the commit does not contain ci",
                env!("CARGO_PKG_VERSION")
            ));
            provision::command(
                std::env::current_exe().or_environment("cannot find the running program")?,
            )
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
    if let Some(config) = &invocation.options.config {
        build.arg("--config").arg(config);
    }
    // A channel such as `stable` may have moved on.
    let provenance = image.provenance.as_ref().map(|it| &it.predicate);
    if let Some(toolchain) =
        provenance.and_then(|it| it.build_definition.internal_parameters.get(rust::INTERNAL))
    {
        build.env(rust::VARIABLE, toolchain);
    }
    for name in REMOVED_ENV {
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
