//! The stand-in for the Rust image: a small Debian of the same release, with the host's own toolchain.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{StandIn, blocking, ca_bundle, keep, key_of, tree, write_bundle};
use crate::failure::Failure;
use crate::narrator::Narrator;
use crate::pins;
use crate::provision::{self, Consent, DEBOOTSTRAP, Package, Probe, UTIL_LINUX};

/// The Debian release of [`pins::RUST_IMAGE`].
const RELEASE: &str = "bookworm";
/// What a build and its tests use of that image: certificates, a compiler and linker, git, pkg-config, make.
const PACKAGES: &str = "ca-certificates,gcc,libc6-dev,git,make,pkg-config";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEBIAN_KEYRING: Package = Package {
    name: "debian-archive-keyring",
    purpose: "proves that Debian's packages are Debian's",
    probe: Probe::File(&[KEYRING]),
};
const PROGRAMS: [&str; 7] = [
    "cargo",
    "rustc",
    "rustdoc",
    "cargo-clippy",
    "clippy-driver",
    "cargo-fmt",
    "rustfmt",
];
/// Of these folders only themselves are kept, not what is in them.
const EMPTIED: [&str; 14] = [
    "boot",
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
    "var/tmp",
];
/// What debootstrap copies from the host, and what would be another one in each build.
const REMOVED: [&str; 3] = ["etc/hostname", "etc/machine-id", "etc/resolv.conf"];

/// The stand-in for [`pins::RUST_IMAGE`].
///
/// # Errors
/// When this machine does not have the pinned toolchain, debootstrap cannot run, or Debian cannot be reached.
pub async fn toolchain(consent: Consent<'_>, narrator: &dyn Narrator) -> Result<StandIn, Failure> {
    let toolchain = Toolchain::find().await?;
    let certificates = ca_bundle()?;
    let key = key_of(&[
        include_bytes!("toolchain.rs"),
        include_bytes!("tree.rs"),
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
    keep(
        "rust",
        &folder,
        what,
        env.to_vec(),
        narrator,
        |root| async move {
            let sysroot = toolchain.sysroot().await?;
            provision::packages(
                &[DEBOOTSTRAP, DEBIAN_KEYRING, UTIL_LINUX],
                consent,
                narrator,
            )
            .await?;
            debootstrap(&root, narrator).await?;
            blocking(move || complete(&root, &toolchain, &sysroot, &certificates)).await
        },
    )
    .await
}

/// Makes of a fresh Debian what [`pins::RUST_IMAGE`] is.
fn complete(
    root: &Path,
    toolchain: &Toolchain,
    sysroot: &Path,
    certificates: &[u8],
) -> io::Result<()> {
    for folder in EMPTIED {
        tree::empty(&root.join(folder))?;
    }
    for file in REMOVED {
        match fs::remove_file(root.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    write_bundle(root, certificates)?;
    let place = format!(
        "usr/local/rustup/toolchains/{}-{}",
        pins::RUST,
        toolchain.host
    );
    tree::copy(sysroot, &root.join(&place), |path| {
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
    // As in the real image: whoever runs a build may fill cargo's home.
    for folder in ["usr/local/cargo", "usr/local/cargo/bin"] {
        fs::set_permissions(root.join(folder), fs::Permissions::from_mode(0o777))?;
    }
    Ok(())
}

/// The pinned toolchain on this host.
struct Toolchain {
    rustc: PathBuf,
    /// The target triple that it runs on.
    host: String,
    /// All that `rustc -vV` says, with the compiler's commit in it.
    version: String,
}

impl Toolchain {
    async fn find() -> Result<Self, Failure> {
        let rustc = provision::find_program("rustc")
            .ok_or_else(|| Failure::environment("there is no rustc on PATH").hint(remedy()))?;
        let version = ask(&rustc, &["-vV"]).await?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .unwrap_or_default()
        };
        if field("release") != pins::RUST {
            return Err(Failure::environment(format!(
                "the stand-in image needs Rust {}, and {} is {}",
                pins::RUST,
                rustc.display(),
                field("release")
            ))
            .hint(remedy()));
        }
        Ok(Self {
            host: field("host").to_owned(),
            version,
            rustc,
        })
    }

    /// The folder it is in, which has all that is needed of it.
    async fn sysroot(&self) -> Result<PathBuf, Failure> {
        let path = PathBuf::from(ask(&self.rustc, &["--print", "sysroot"]).await?.trim());
        let lacking: Vec<&str> = PROGRAMS
            .into_iter()
            .filter(|program| !path.join("bin").join(program).is_file())
            .collect();
        if lacking.is_empty() {
            return Ok(path);
        }
        let list = lacking.join(", ");
        Err(
            Failure::environment(format!("the toolchain in {} lacks {list}", path.display()))
                .hint(remedy()),
        )
    }

    /// Programs and libraries for the host; no other target, no sources, no documentation.
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

/// What `rustc` says, as the pinned version where rustup manages it.
async fn ask(rustc: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let mut command = provision::command(rustc);
    command.env("RUSTUP_TOOLCHAIN", pins::RUST).args(arguments);
    provision::output(command, "asking rustc what it is")
        .await
        .map_err(|failure| failure.hint(remedy()))
}

fn remedy() -> String {
    format!(
        "Run: rustup toolchain install {} --component clippy --component rustfmt",
        pins::RUST
    )
}

async fn debootstrap(root: &Path, narrator: &dyn Narrator) -> Result<(), Failure> {
    let need = |name| {
        provision::find_program(name)
            .ok_or_else(|| Failure::environment(format!("there is no {name} on PATH")))
    };
    let mirror = mirror().await?;
    // In namespaces of its own: whatever ends it leaves neither a mount nor a process behind.
    let mut command = provision::command(need("unshare")?);
    command
        .args([
            "--mount",
            "--propagation=private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(need("debootstrap")?)
        .args(["--variant=minbase", "--merged-usr"])
        .arg(format!("--keyring={KEYRING}"))
        .arg(format!("--include={PACKAGES}"))
        .arg(RELEASE)
        .arg(root)
        .arg(&mirror);
    provision::run(command, "debootstrap", narrator).await.map_err(|failure| {
        failure.hint(format!(
            "debootstrap needs root and Debian's archive at {mirror}; a base image from a registry needs neither."
        ))
    })
}

/// Debian's archive as the host's apt knows it.
async fn mirror() -> Result<String, Failure> {
    let none = || {
        Failure::environment("apt on this machine knows no archive of Debian's").hint(format!(
            "Add one that has {RELEASE} to /etc/apt/sources.list."
        ))
    };
    let mut command = provision::command(provision::find_program("apt-get").ok_or_else(none)?);
    command.args([
        "indextargets",
        "--format",
        "$(RELEASE) $(ORIGIN) $(REPO_URI)",
        "Created-By: Packages",
        "Component: main",
    ]);
    let targets = provision::output(command, "asking apt for its sources").await?;
    choose(&targets).ok_or_else(none)
}

/// The archive that has [`RELEASE`] itself; else any of Debian's, as each has all current releases.
fn choose(targets: &str) -> Option<String> {
    let targets: Vec<[&str; 3]> = targets
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let release = words.next()?;
            let address = words.next_back()?;
            // Before the first `apt-get update` the origin is not known.
            Some([release, words.next().unwrap_or_default(), address])
        })
        .filter(|[_, _, address]| address.starts_with("http://") || address.starts_with("https://"))
        .collect();
    targets
        .iter()
        .find(|[release, ..]| *release == RELEASE)
        .or_else(|| {
            targets.iter().find(|[release, origin, address]| {
                *origin == "Debian"
                    && !release.contains("security")
                    && !address.contains("security")
            })
        })
        .map(|[_, _, address]| (*address).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_the_hosts() {
        let same = "bookworm-security Debian http://a.example/debian-security/\nbookworm Debian http://a.example/debian/\n";
        assert_eq!(choose(same).as_deref(), Some("http://a.example/debian/"));
        assert_eq!(
            choose("bookworm  http://new.example/debian/").as_deref(),
            Some("http://new.example/debian/")
        );
        let newer = "trixie-security Debian http://a.example/debian-security/\ntrixie Debian https://b.example/debian/";
        assert_eq!(choose(newer).as_deref(), Some("https://b.example/debian/"));
        assert_eq!(choose("noble Ubuntu http://u.example/ubuntu/\n"), None);
        assert_eq!(
            choose("bookworm Debian mirror+file:/etc/apt/mirrors\n"),
            None
        );
        assert_eq!(choose(""), None);
    }

    #[test]
    fn only_the_hosts_target_is_taken() {
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
