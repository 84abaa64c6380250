//! Installs programs for tests, system-wide or into a directory for tests. The tests of `api` use this file, too.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use common::progress::Silent;
use common::provision::{PYTHON_VENV, Package, Probe, install_packages};

/// The Debian package of npm.
const NPM: Package = Package {
    name: "npm",
    purpose: "installs tools for tests",
    probe: Probe::Program("npm"),
};

pub fn write_executable(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Installs the missing packages on this machine.
pub fn install(needed: &[Package]) {
    let install = || {
        tokio::runtime::Runtime::new()
            .unwrap()
            .block_on(install_packages(needed, &|_| true, &Silent))
            .unwrap();
    };
    // The caller may be on a Tokio runtime, which cannot block on another one.
    thread::scope(|scope| scope.spawn(install).join().unwrap());
}

/// A virtual environment with a tool from PyPI. It is created once, and again if an earlier test was interrupted.
pub fn venv(tool: &str, version: &str, more: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{tool}-{version}"));
    let lock = std::fs::File::create(folder.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let stamp = folder.join("complete");
    let contents = more.join(" ");
    if std::fs::read_to_string(&stamp).ok().as_ref() != Some(&contents) {
        // Debian's python3 lacks these modules.
        let complete = Command::new("python3")
            .args(["-c", "import ensurepip, venv"])
            .status();
        if !complete.is_ok_and(|status| status.success()) {
            install(&[PYTHON_VENV]);
        }
        let _ = std::fs::remove_dir_all(&folder);
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        run(Command::new(folder.join("bin/pip"))
            .args(["install", "--quiet", &format!("{tool}=={version}")])
            .args(more));
        std::fs::write(stamp, contents).unwrap();
    }
    folder
}

/// The folder of a package from npm, whose scripts are not run. It is installed once.
pub fn npm(package: &str, version: &str) -> PathBuf {
    install(&[NPM]);
    let name = format!("{}-{version}", package.replace(['@', '/'], ""));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Each test is a process, and npm does not tolerate another one in the same folder.
    let lock = std::fs::File::create(folder.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let stamp = folder.join("complete");
    if !stamp.exists() {
        run(Command::new("npm")
            .args(["install", "--no-save", "--ignore-scripts", "--no-audit"])
            .arg("--prefix")
            .arg(&folder)
            .arg(format!("{package}@{version}")));
        std::fs::write(stamp, "").unwrap();
    }
    folder.join("node_modules").join(package)
}

/// Runs a command and asserts that it succeeds.
pub fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
