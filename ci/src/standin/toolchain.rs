//! The stand-in for the Rust image: a small Debian of the same release, with the host's own toolchain.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::debian;
use super::made::{StandIn, blocking, ca_bundle, keep, key_of};
use common::failure::Failure;
use common::file_tree;
use common::pins;
use common::progress::Progress;
use common::provision::{self, Consent};

/// The packages of that image that builds and tests use, and Zstandard, which `ci` would install otherwise.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "g++",
    "gcc",
    "git",
    "libc6-dev",
    "libssl-dev",
    "make",
    "pkg-config",
    "zstd",
];
const PROGRAMS: [&str; 7] = [
    "cargo",
    "rustc",
    "rustdoc",
    "cargo-clippy",
    "clippy-driver",
    "cargo-fmt",
    "rustfmt",
];
/// Builds the stand-in for [`pins::RUST_IMAGE`].
///
/// # Errors
/// When the pinned toolchain is not installed, debootstrap fails, or Debian's archive cannot be reached (exit code 3).
pub(super) async fn toolchain(
    consent: Consent<'_>,
    progress: &dyn Progress,
) -> Result<StandIn, Failure> {
    let toolchain = Toolchain::find().await?;
    let certificates = ca_bundle()?;
    let key = key_of(&[
        include_bytes!("toolchain.rs"),
        include_bytes!("debian.rs"),
        file_tree::SOURCE,
        toolchain.version.as_bytes(),
        &certificates,
    ]);
    let folder = format!("rust-{}-{key}", pins::RUST);
    let what = "the Rust stand-in image (about a minute)";
    let env = [
        ("RUSTUP_HOME", "/usr/local/rustup"),
        ("CARGO_HOME", "/usr/local/cargo"),
        (
            "PATH",
            "/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        ("RUST_VERSION", pins::RUST),
    ];
    keep("rust", &folder, what, &env, progress, |root| async move {
        let sysroot = toolchain.sysroot().await?;
        debian::build(&root, PACKAGES, &certificates, consent, progress).await?;
        blocking(move || complete(&root, &toolchain, &sysroot)).await
    })
    .await
}

/// Adds the toolchain to a new Debian, in the same places as in [`pins::RUST_IMAGE`].
fn complete(root: &Path, toolchain: &Toolchain, sysroot: &Path) -> io::Result<()> {
    let place = format!(
        "usr/local/rustup/toolchains/{}-{}",
        pins::RUST,
        toolchain.host
    );
    file_tree::copy(sysroot, &root.join(&place), |path| {
        toolchain.is_needed(path)
    })?;
    let programs = root.join("usr/local/cargo/bin");
    fs::create_dir_all(&programs)?;
    for program in PROGRAMS {
        symlink(
            Path::new("/").join(&place).join("bin").join(program),
            programs.join(program),
        )?;
    }
    // Only needed for other toolchains than the pinned one.
    if let Some(rustup) = provision::find_program("rustup") {
        fs::copy(fs::canonicalize(rustup)?, programs.join("rustup"))?;
    }
    // As in the real image, any user may write to cargo's home.
    for folder in ["usr/local/cargo", "usr/local/cargo/bin"] {
        fs::set_permissions(root.join(folder), fs::Permissions::from_mode(0o777))?;
    }
    Ok(())
}

/// The pinned toolchain, installed on this host.
struct Toolchain {
    rustc: PathBuf,
    /// The host's target triple.
    host: String,
    /// The output of `rustc -vV`, which contains the compiler's commit.
    version: String,
}

impl Toolchain {
    async fn find() -> Result<Self, Failure> {
        let rustc = provision::find_program("rustc")
            .ok_or_else(|| Failure::environment("no rustc on PATH").hint(fix()))?;
        let version = run_rustc(&rustc, &["-vV"]).await?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .unwrap_or_default()
        };
        if field("release") != pins::RUST {
            return Err(Failure::environment(format!(
                "the stand-in image needs Rust {}, but {} is version {}",
                pins::RUST,
                rustc.display(),
                field("release")
            ))
            .hint(fix()));
        }
        Ok(Self {
            host: field("host").to_owned(),
            version,
            rustc,
        })
    }

    /// Returns the toolchain's directory, after checking that all programs exist.
    async fn sysroot(&self) -> Result<PathBuf, Failure> {
        let path = PathBuf::from(
            run_rustc(&self.rustc, &["--print", "sysroot"])
                .await?
                .trim(),
        );
        let missing: Vec<&str> = PROGRAMS
            .into_iter()
            .filter(|program| !path.join("bin").join(program).is_file())
            .collect();
        if missing.is_empty() {
            return Ok(path);
        }
        let list = missing.join(", ");
        Err(
            Failure::environment(format!("the toolchain in {} lacks {list}", path.display()))
                .hint(fix()),
        )
    }

    /// Selects programs and libraries for the host, but no other targets, sources or documentation.
    fn is_needed(&self, path: &Path) -> bool {
        let names: Vec<&str> = path.iter().filter_map(|name| name.to_str()).collect();
        match names.as_slice() {
            ["bin" | "lib"] | ["lib", "rustlib"] => true,
            ["bin", program, ..] => PROGRAMS.contains(program),
            ["lib", "rustlib", target, ..] => *target == self.host,
            ["lib", ..] => true,
            _ => false,
        }
    }
}

/// Runs `rustc`, in the pinned version if rustup manages it.
async fn run_rustc(rustc: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let mut command = provision::command(rustc);
    command.env("RUSTUP_TOOLCHAIN", pins::RUST).args(arguments);
    provision::output(command, "rustc")
        .await
        .map_err(|failure| failure.hint(fix()))
}

fn fix() -> String {
    format!(
        "Run `rustup toolchain install {} --component clippy --component rustfmt`.",
        pins::RUST
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_only_the_hosts_target() {
        let toolchain = Toolchain {
            rustc: PathBuf::new(),
            host: "x86_64-unknown-linux-gnu".into(),
            version: String::new(),
        };
        for needed in [
            "bin",
            "bin/cargo",
            "lib/librustc_driver-1.so",
            "lib/rustlib",
            "lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld/ld.lld",
        ] {
            assert!(toolchain.is_needed(Path::new(needed)), "{needed}");
        }
        for other in [
            "bin/rust-analyzer",
            "share",
            "libexec",
            "lib/rustlib/src",
            "lib/rustlib/wasm32-unknown-unknown/lib/libstd.rlib",
        ] {
            assert!(!toolchain.is_needed(Path::new(other)), "{other}");
        }
    }
}
