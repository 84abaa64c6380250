//! The stand-ins for the images of Trivy and crane: the pinned versions, built from their Go modules.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::made::{StandIn, blocking, ca_bundle, is_kept, keep, key_of, write_bundle};
use common::failure::Failure;
use common::file_tree;
use common::pins;
use common::progress::Progress;
use common::provision::{self, GoModule};

/// The path of Trivy in its stand-in, and also in the real image.
const TRIVY_PATH: &str = "/usr/local/bin/trivy";
/// The path of the shell in Trivy's stand-in.
const SHELL_PATH: &str = "/usr/local/bin/sh";
/// The path of crane in its stand-in. In the real image it is the entrypoint, `/ko-app/crane`.
pub(crate) const CRANE_PATH: &str = "/usr/local/bin/crane";

pub(super) const TRIVY: GoModule = GoModule {
    name: "trivy",
    version: pins::TRIVY,
    files: &[
        ("go.mod", include_str!("gomod/trivy/go.mod")),
        ("go.sum", include_str!("gomod/trivy/go.sum")),
    ],
    packages: &[
        "github.com/aquasecurity/trivy/cmd/trivy",
        "github.com/aquasecurity/trivy-db/cmd/trivy-db",
        // The real image has a shell, too.
        "mvdan.cc/sh/v3/cmd/gosh",
    ],
    ldflags: "-s -w -X github.com/aquasecurity/trivy/pkg/version/app.ver=VERSION",
    env: &[("GOEXPERIMENT", "jsonv2")],
    build_time: "about five minutes",
};

const CRANE: GoModule = GoModule {
    name: "crane",
    version: pins::CRANE,
    files: &[
        ("go.mod", include_str!("gomod/crane/go.mod")),
        ("go.sum", include_str!("gomod/crane/go.sum")),
    ],
    packages: &["github.com/google/go-containerregistry/cmd/crane"],
    ldflags: "-s -w -X github.com/google/go-containerregistry/cmd/crane/cmd.Version=VERSION",
    env: &[],
    build_time: "less than a minute",
};

/// Builds the stand-in for [`pins::TRIVY_IMAGE`]: Trivy and a shell.
///
/// # Errors
/// When Trivy cannot be built (exit code 3).
pub(super) async fn trivy(progress: &dyn Progress) -> Result<StandIn, Failure> {
    let programs = [("trivy", TRIVY_PATH), ("gosh", SHELL_PATH)];
    tool("trivy", TRIVY, &programs, progress).await
}

/// Builds the stand-in for [`pins::CRANE_IMAGE`].
///
/// # Errors
/// When crane cannot be built (exit code 3).
pub(super) async fn crane(progress: &dyn Progress) -> Result<StandIn, Failure> {
    tool("crane", CRANE, &[("crane", CRANE_PATH)], progress).await
}

async fn tool(
    name: &'static str,
    module: GoModule,
    programs: &[(&'static str, &'static str)],
    progress: &dyn Progress,
) -> Result<StandIn, Failure> {
    let certificates = ca_bundle()?;
    let key = key_of(&[
        include_bytes!("tools.rs"),
        file_tree::SOURCE,
        build_key(&module)?.as_bytes(),
        &certificates,
    ]);
    let folder = format!("{name}-{}-{key}", module.version);
    let what = format!("the {name} stand-in image (a few seconds)");
    // Builds the programs first, because progress output does not nest.
    if !is_kept(&folder)? {
        provision::build_go_tools(&module, progress).await?;
    }
    keep(
        name,
        &folder,
        &what,
        &[("PATH", "/usr/local/bin")],
        progress,
        |root| async move {
            let built = provision::build_go_tools(&module, progress).await?;
            let programs = programs.iter().map(|(name, to)| (built.join(name), *to));
            let programs: Vec<_> = programs.collect();
            blocking(move || complete(&root, &programs, &certificates)).await
        },
    )
    .await
}

/// A string that changes with the inputs of a module's build.
pub(super) fn build_key(module: &GoModule) -> Result<String, Failure> {
    let bin = module.bin()?;
    // The name of the directory above `bin` contains the digest of all inputs; the rest of the path depends on the machine.
    let folder = bin.parent().and_then(|folder| folder.file_name());
    Ok(folder.unwrap_or_default().to_string_lossy().into_owned())
}

/// Completes an image with these programs, each with its path in the image.
fn complete(root: &Path, programs: &[(PathBuf, &str)], certificates: &[u8]) -> io::Result<()> {
    for folder in ["root", "tmp", "usr/local/bin"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    write_bundle(root, certificates)?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/sbin/nologin\n",
    )?;
    for (program, to) in programs {
        fs::copy(program, root.join(to.trim_start_matches('/')))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_modules_have_the_pinned_versions() {
        for (module, path) in [
            (TRIVY, "github.com/aquasecurity/trivy"),
            (CRANE, "github.com/google/go-containerregistry"),
        ] {
            let line = format!("{path} v{} ", module.version);
            let go_mod = module.files[0].1;
            assert!(
                go_mod.lines().any(|l| l.trim_start().starts_with(&line)),
                "{line}"
            );
        }
    }
}
