//! The stand-ins for the images of Trivy and crane: the same versions, built from their Go modules, and nothing else.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::made::{StandIn, blocking, ca_bundle, is_kept, keep, key_of, write_bundle};
use common::failure::Failure;
use common::file_tree;
use common::pins;
use common::progress::Progress;
use common::provision::{self, GoModule};

/// Where Trivy is in its stand-in; in the real image, too.
pub const TRIVY_PATH: &str = "/usr/local/bin/trivy";
/// Where crane is in its stand-in; the real image has it as its entrypoint, `/ko-app/crane`.
pub const CRANE_PATH: &str = "/usr/local/bin/crane";

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
    ],
    ldflags: "-s -w -X github.com/aquasecurity/trivy/pkg/version/app.ver=VERSION",
    env: &[("GOEXPERIMENT", "jsonv2")],
    usually: "about five minutes",
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
    usually: "less than a minute",
};

/// The stand-in for [`pins::TRIVY_IMAGE`], with Trivy at [`TRIVY_PATH`].
///
/// # Errors
/// When Trivy cannot be built here.
pub async fn trivy(narrator: &dyn Progress) -> Result<StandIn, Failure> {
    tool("trivy", TRIVY, TRIVY_PATH, narrator).await
}

/// The stand-in for [`pins::CRANE_IMAGE`], with crane at [`CRANE_PATH`].
///
/// # Errors
/// When crane cannot be built here.
pub async fn crane(narrator: &dyn Progress) -> Result<StandIn, Failure> {
    tool("crane", CRANE, CRANE_PATH, narrator).await
}

async fn tool(
    name: &'static str,
    module: GoModule,
    path: &'static str,
    narrator: &dyn Progress,
) -> Result<StandIn, Failure> {
    let certificates = ca_bundle()?;
    let key = key_of(&[
        include_bytes!("tools.rs"),
        file_tree::SOURCE,
        state(&module)?.as_bytes(),
        &certificates,
    ]);
    let folder = format!("{name}-{}-{key}", module.version);
    let what = format!("the {name} stand-in image (a few seconds)");
    // Built before and not within: the narrator hears of one preparation at a time.
    if !is_kept(&folder)? {
        provision::go_tools(&module, narrator).await?;
    }
    keep(
        name,
        &folder,
        &what,
        vec![("PATH", "/usr/local/bin")],
        narrator,
        |root| async move {
            let program = provision::go_tools(&module, narrator).await?.join(name);
            blocking(move || complete(&root, path, &program, &certificates)).await
        },
    )
    .await
}

/// What the programs of a module are made of, as a string.
pub(super) fn state(module: &GoModule) -> Result<String, Failure> {
    let bin = module.bin()?;
    // The name of the folder above `bin` has the digest of all inputs; the folders above that are this machine's.
    let folder = bin.parent().and_then(|folder| folder.file_name());
    Ok(folder.unwrap_or_default().to_string_lossy().into_owned())
}

fn complete(root: &Path, path: &str, program: &Path, certificates: &[u8]) -> io::Result<()> {
    for folder in ["root", "tmp", "usr/local/bin"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    write_bundle(root, certificates)?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/sbin/nologin\n",
    )?;
    fs::copy(program, root.join(path.trim_start_matches('/')))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_build_the_pinned_versions() {
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
