//! What the tests share: one engine, and everything that a run on an empty machine would make first. It lies in the cache directory of
//! this machine's user, so it is made once, whichever process needs it first.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ci::engine::session::{Endpoint, Session};
use ci::engine::telemetry::Telemetry;
use nix::sys::statvfs::statvfs;

use crate::embedded::{copy, short_folder};
use crate::harness::{Ci, Project, turn};
use crate::registry::{Registry, block_on};

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

    /// The state of an engine that has pulled the toolchain's image, and has neither a volume nor anything else.
    pub fn pulled(&self) -> PathBuf {
        let _turn = turn("pulled");
        let name = self.folder.file_name().unwrap().to_str().unwrap();
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pulled-{name}"));
        let stand_ins = self.folder.parent().unwrap().join("stand-ins");
        if toolchain_in(&stand_ins).is_none() {
            // The real image can be pulled, and the engine does so by itself.
            std::fs::create_dir_all(&kept).unwrap();
        } else if !kept.exists() {
            let cache = short_folder();
            let programs = self.copied_to(cache.path());
            let ci = |command: &str| {
                Ci::new(Path::new("/"), &["engine", command])
                    .env("LAB_CI_CACHE_DIR", cache.path().to_str().unwrap())
                    .run()
                    .exits(0)
            };
            let up = ci("up");
            Toolchain {
                cli: &programs.join("bin/dagger"),
                engine: up.stdout.trim(),
                stand_ins: &stand_ins,
            }
            .runs("true", None);
            ci("down");
            let unfinished = kept.with_extension("unfinished");
            let _ = std::fs::remove_dir_all(&unfinished);
            copy(&["-a"], &programs.join("state"), &unfinished);
            std::fs::rename(unfinished, &kept).unwrap();
        }
        kept
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

/// The root file system of the toolchain's stand-in, where there is one.
fn toolchain_in(stand_ins: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(stand_ins).unwrap();
    let root = entries
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("rust-"))?;
    Some(root.path().join("root").canonicalize().unwrap())
}

/// A container of the toolchain's stand-in, on some engine.
pub struct Toolchain<'a> {
    /// Dagger's client.
    pub cli: &'a Path,
    /// The engine's address.
    pub engine: &'a str,
    /// Where the stand-ins are.
    pub stand_ins: &'a Path,
}

impl Toolchain<'_> {
    /// Runs a script in it, with the volume of this name in `/volume`; returns what it said.
    pub fn runs(&self, script: &str, volume: Option<&str>) -> String {
        let root = toolchain_in(self.stand_ins).expect("the toolchain's image is a stand-in here");
        block_on(async move {
            let telemetry = Telemetry::start().await.unwrap();
            let endpoint = Endpoint::Cli {
                cli: self.cli.to_owned(),
                runner_host: Some(self.engine.to_owned()),
                patience: Duration::from_secs(60),
            };
            let session = Session::open(&endpoint, &telemetry).await.unwrap();
            let client = session.connection().client(telemetry.trace(None));
            let mut container = client
                .container()
                .with_rootfs(client.host().directory(root.display().to_string()));
            if let Some(volume) = volume {
                container = container.with_mounted_cache("/volume", client.cache_volume(volume));
            }
            let said = container
                .with_env_variable("NOW", format!("{:?}", Instant::now()))
                .with_exec(vec!["sh", "-c", script])
                .stdout()
                .await
                .unwrap();
            session.close().await;
            said
        })
    }
}

#[test]
fn this_machine_is_provisioned() {
    let shared = provisioned();
    assert!(shared.folder.join("bin/engine").is_file());
    assert!(shared.pulled().is_dir());
}
