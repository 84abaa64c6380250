//! What the tests share: one engine, and everything that a run on an empty machine would make first. It lies in the cache directory of
//! this machine's user, so it is made once, whichever process needs it first.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::embedded::copy;
use crate::harness::{Ci, Project, turn};
use crate::registry::Registry;

/// The cache directory of this machine's user, with an engine that runs.
pub struct Provisioned {
    /// The engine that all tests share which do not damage it.
    pub engine: String,
    /// The folder of the engine's programs and state.
    folder: PathBuf,
}

/// Provisions this machine, where that has not been done.
pub fn provisioned() -> Provisioned {
    let _turn = turn("provisioned");
    let up = Ci::new(Path::new("/"), &["engine", "up"]).run().exits(0);
    let engine = up.stdout.trim().to_owned();
    let socket = Path::new(engine.strip_prefix("unix://").expect("a socket"));
    let folder = socket.ancestors().nth(2).unwrap().to_owned();
    // It is the engine's name that changes with the pins.
    let name = folder.file_name().unwrap().to_str().unwrap();
    let stamp = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("provisioned-{name}"));
    let stand_ins = folder.parent().unwrap().join("stand-ins");
    let is_provisioned = stamp.exists() && stand_ins.exists();
    needs(&folder, if is_provisioned { 4 } else { 20 });
    if !is_provisioned {
        let project = Project::new("provisioned");
        let registry = Registry::open();
        project
            .ci(&[
                "publish",
                "--engine",
                &engine,
                "--registry",
                &registry.address(),
            ])
            .run()
            .exits(0);
        // There are none where the real images can be pulled.
        std::fs::create_dir_all(&stand_ins).unwrap();
        std::fs::write(stamp, "").unwrap();
    }
    Provisioned { engine, folder }
}

/// Says so where there is too little room, instead of failing somewhere on the way.
fn needs(folder: &Path, gigabytes: u64) {
    let disk = statvfs(folder).unwrap();
    let free = disk.blocks_available() * disk.fragment_size() / 1_000_000_000;
    assert!(
        free >= gigabytes,
        "the tests of the engine need {gigabytes} GB of free disk at {}, and there are {free} GB: `ci engine prune` frees some",
        folder.display()
    );
}

impl Provisioned {
    /// The programs of the engine.
    pub fn programs(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// Gives `cache`, another cache directory, what has been built, but no engine that runs. Returns the engine's folder in it.
    pub fn copied_to(&self, cache: &Path) -> PathBuf {
        let from = self.folder.parent().unwrap();
        let programs = cache.join(self.folder.file_name().unwrap());
        std::fs::create_dir(&programs).unwrap();
        copy(&["-a"], &self.folder.join("bin"), &programs);
        std::os::unix::fs::symlink(from.join("stand-ins"), cache.join("stand-ins")).unwrap();
        self.copy_auditable_to(cache);
        programs
    }

    /// Gives `cache`, another cache directory, the compiled cargo-auditable.
    pub fn copy_auditable_to(&self, cache: &Path) {
        let entries = std::fs::read_dir(self.folder.parent().unwrap()).unwrap();
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("cargo-auditable-") {
                std::fs::copy(entry.path(), cache.join(name)).unwrap();
            }
        }
    }
}

#[test]
fn this_machine_is_provisioned() {
    let shared = provisioned();
    assert!(shared.folder.join("bin/engine").is_file());
}
