//! The engine, programs and images that the tests share. They are provisioned once, by the first test that needs them, in the
//! cache directory of the current user.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ci::engine::session::{Endpoint, Session};
use ci::engine::telemetry::Telemetry;
use ci::image::archive;
use common::pins;
use dagger_sdk::{Container, DaggerConn};
use nix::sys::statvfs::statvfs;

use crate::embedded::{clean_up_after, copy, short_folder};
use crate::harness::{Ci, Project, lock_named};
use crate::registry::{Registry, block_on};

/// The cache directory of the current user, with a running engine.
pub struct Provisioned {
    /// The address of the engine, which all tests share that do not damage it.
    pub engine: String,
    /// The folder of the engine's programs and state.
    folder: PathBuf,
}

/// Provisions this machine unless that has been done before.
pub fn provision() -> Provisioned {
    let _lock = lock_named("provisioned");
    // With less, the suite would evict what its next run needs, such as the volumes of this repository.
    let up = Ci::new(Path::new("/"), &["engine", "up"]).env("LAB_CI_ENGINE_DISK", "25GB");
    let engine = up.run().exits(0).stdout.trim().to_owned();
    let socket = Path::new(engine.strip_prefix("unix://").expect("a socket"));
    let folder = socket.ancestors().nth(2).unwrap().to_owned();
    // The folder's name changes with the pinned versions.
    let name = folder.file_name().unwrap().to_str().unwrap();
    let stamp = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("provisioned-{name}"));
    let stand_ins = folder.parent().unwrap().join("stand-ins");
    let is_provisioned = stamp.exists() && stand_ins.exists();
    require_free_space(&folder, if is_provisioned { 4 } else { 20 });
    if !is_provisioned {
        let project = Project::new("provisioned");
        let registry = Registry::open();
        let publish = project.ci(&[
            "publish",
            "--engine",
            &engine,
            "--registry",
            &registry.address(),
        ]);
        let report = publish.run().exits(0).report;
        let used = report["stand_ins"].as_array().into_iter().flatten();
        let toolchain = used.filter(|it| it["name"] == pins::RUST_IMAGE);
        let toolchain: String = toolchain.filter_map(|it| it["used"].as_str()).collect();
        std::fs::write(toolchain_note(), toolchain).unwrap();
        // There are no stand-ins if the real images can be pulled.
        std::fs::create_dir_all(&stand_ins).unwrap();
        std::fs::write(stamp, "").unwrap();
    }
    Provisioned { engine, folder }
}

/// Makes room for the tests with `ci engine prune` if necessary, and fails early if that is not enough.
fn require_free_space(folder: &Path, gigabytes: u64) {
    let free = || {
        let disk = statvfs(folder).unwrap();
        disk.blocks_available() * disk.fragment_size() / 1_000_000_000
    };
    if free() < gigabytes {
        Ci::new(Path::new("/"), &["engine", "prune"]).run().exits(0);
    }
    let free = free();
    assert!(
        free >= gigabytes,
        "the tests of the engine need {gigabytes} GB of free disk space at {}, but only {free} GB are free after `ci engine prune`",
        folder.display()
    );
}

impl Provisioned {
    /// Calls `work` with a container of the toolchain's stand-in on the shared engine.
    pub fn with_toolchain<T>(&self, work: impl AsyncFnOnce(DaggerConn, Container) -> T) -> T {
        let toolchain = Toolchain {
            cli: &self.programs().join("dagger"),
            engine: &self.engine,
            stand_ins: &self.folder.parent().unwrap().join("stand-ins"),
        };
        toolchain.with_container(work)
    }

    /// The folder of the engine's programs.
    pub fn programs(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// Copies everything but the running engine and its state to `cache`, another cache directory. Returns the engine's folder in
    /// it.
    pub fn copy_to(&self, cache: &Path) -> PathBuf {
        let from = self.folder.parent().unwrap();
        let programs = cache.join(self.folder.file_name().unwrap());
        std::fs::create_dir(&programs).unwrap();
        copy(&["-a"], &self.folder.join("bin"), &programs);
        std::os::unix::fs::symlink(from.join("stand-ins"), cache.join("stand-ins")).unwrap();
        self.copy_auditable_to(cache);
        programs
    }

    /// The state of an engine that has pulled the toolchain's image, without volumes.
    fn pulled_state(&self) -> PathBuf {
        let name = self.folder.file_name().unwrap().to_str().unwrap();
        let saved = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pulled-{name}"));
        let stand_ins = self.folder.parent().unwrap().join("stand-ins");
        if toolchain_in(&stand_ins).is_none() {
            // The engine pulls the real image.
            std::fs::create_dir_all(&saved).unwrap();
        } else if !saved.exists() {
            let cache = short_folder();
            let programs = self.copy_to(cache.path());
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
            .run("true", None);
            ci("down");
            let unfinished = saved.with_extension("unfinished");
            let _ = std::fs::remove_dir_all(&unfinished);
            copy(&["-a"], &programs.join("state"), &unfinished);
            std::fs::rename(unfinished, &saved).unwrap();
        }
        saved
    }

    /// Creates `state`, the state of an engine in another cache directory: that of an engine which has pulled the toolchain's image.
    ///
    /// The image's files, two gigabytes, are links to a copy that all tests of this run share, because engines never write to them.
    pub fn link_pulled_state_to(&self, state: &Path) {
        let cache = state.ancestors().nth(2).unwrap();
        let lock = lock_named("pulled");
        let runner = std::os::unix::process::parent_id();
        let shared = cache.with_file_name(format!("ci-pulled-{runner}"));
        let complete = shared.join("state");
        if !complete.exists() {
            let unfinished = shared.join("unfinished");
            clean_up_after(runner, &shared);
            let _ = std::fs::remove_dir_all(&shared);
            std::fs::create_dir(&shared).unwrap();
            copy(&["-a"], &self.pulled_state(), &unfinished);
            std::fs::rename(unfinished, &complete).unwrap();
        }
        drop(lock);
        copy(&["-al"], &complete, state);
        let of_images = ["worker/content/blobs", "worker/snapshots/snapshots"];
        let others = walkdir::WalkDir::new(&complete)
            .into_iter()
            .filter_entry(|entry| !of_images.iter().any(|it| entry.path().ends_with(it)));
        for other in others.map(Result::unwrap) {
            if other.file_type().is_file() {
                let own = state.join(other.path().strip_prefix(&complete).unwrap());
                copy(&["-a", "--remove-destination"], other.path(), &own);
            }
        }
    }

    /// Copies the compiled cargo-auditable to `cache`, another cache directory.
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

/// The file that has the digest of the toolchain's stand-in.
fn toolchain_note() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("toolchain")
}

/// The folder of the stand-in for the toolchain, if there is one. Tests with a CA of their own have another one.
pub fn toolchain_folder(stand_ins: &Path) -> Option<PathBuf> {
    let note = std::fs::read_to_string(toolchain_note()).unwrap_or_default();
    let is_used = |folder: &Path| {
        let digest = archive::read_digest(&folder.join("image.tar"));
        digest.is_ok_and(|digest| note.contains(&digest))
    };
    let entries = std::fs::read_dir(stand_ins).unwrap();
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("rust-"))
        .map(|entry| entry.path())
        .max_by_key(|path| (is_used(path), path.metadata().unwrap().modified().unwrap()))
}

/// The archive of the stand-in for the toolchain, if there is one.
fn toolchain_in(stand_ins: &Path) -> Option<PathBuf> {
    let folder = toolchain_folder(stand_ins)?;
    Some(folder.join("image.tar").canonicalize().unwrap())
}

/// Runs containers of the toolchain's stand-in on an engine.
pub struct Toolchain<'a> {
    /// Dagger's CLI.
    pub cli: &'a Path,
    /// The engine's address.
    pub engine: &'a str,
    /// The folder of the stand-ins.
    pub stand_ins: &'a Path,
}

impl Toolchain<'_> {
    /// Runs a script in a container, with the volume of this name at `/volume`, and returns its standard output.
    pub fn run(&self, script: &str, volume: Option<&str>) -> String {
        self.with_container(async |client, container| {
            let container = match volume {
                Some(volume) => {
                    container.with_mounted_cache("/volume", client.cache_volume(volume))
                }
                None => container,
            };
            container
                .with_env_variable("NOW", format!("{:?}", Instant::now()))
                .with_exec(vec!["sh", "-c", script])
                .stdout()
                .await
                .unwrap()
        })
    }

    /// Calls `work` with a container in a session of its own.
    pub fn with_container<T>(&self, work: impl AsyncFnOnce(DaggerConn, Container) -> T) -> T {
        let archive =
            toolchain_in(self.stand_ins).expect("the toolchain's image is a stand-in here");
        block_on(async move {
            let telemetry = Telemetry::start().await.unwrap();
            let endpoint = Endpoint::Cli {
                cli: self.cli.to_owned(),
                runner_host: Some(self.engine.to_owned()),
                config_home: None,
                patience: Duration::from_secs(60),
            };
            let session = Session::open(&endpoint, &telemetry).await.unwrap();
            let client = session.connection().client(telemetry.trace("test", None));
            let container = client
                .container()
                .import(client.host().file(archive.display().to_string()));
            let result = work(client, container).await;
            session.close().await;
            result
        })
    }
}
