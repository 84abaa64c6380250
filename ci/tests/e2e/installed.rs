//! What the tests install on the machine, or for themselves: for those of `api`, too.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use common::progress::Silent;
use common::provision::{PYTHON_VENV, Package, packages};

/// Installs what is missing on this machine.
pub fn install(needed: &[Package]) {
    let install = || {
        tokio::runtime::Runtime::new()
            .unwrap()
            .block_on(packages(needed, &|_| true, &Silent))
            .unwrap();
    };
    // The caller may be on a runtime, which cannot wait for another.
    thread::scope(|scope| scope.spawn(install).join().unwrap());
}

/// A tool of PyPI's in a folder of its own, made once; a test that is interrupted leaves nothing that looks whole.
pub fn venv(tool: &str, version: &str, more: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{tool}-{version}"));
    let turn = std::fs::File::create(folder.with_extension("lock")).unwrap();
    turn.lock().unwrap();
    let whole = folder.join("whole");
    let has = more.join(" ");
    if std::fs::read_to_string(&whole).ok().as_ref() != Some(&has) {
        // Debian's python3 comes without them, others with.
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
        std::fs::write(whole, has).unwrap();
    }
    folder
}

/// Runs a command that has to end well.
pub fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
