//! Measures the benefit and the cost of the caches of an ephemeral runner, with this repository's commit on an empty engine.
//!
//! Run it with `just bench caches`. It does a cold run and two warm ones, with the engine programs and stand-ins that this
//! machine already has. It exits with code 1 if a bound is missed.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a failed measurement must abort, and the results are printed"
)]
#![expect(dead_code, reason = "shared with other targets")]

#[path = "common/engine.rs"]
mod engine;
#[path = "../tests/e2e/harness.rs"]
mod harness;
#[path = "common/table.rs"]
mod table;

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use engine::{Engine, copy};
use harness::{Outcome, git};
use serde_json::Value;
use table::Table;

fn main() -> ExitCode {
    let mut table = Table::default();
    // The path of the engine's socket must be short.
    let folder = tempfile::Builder::new()
        .prefix("ci")
        .tempdir_in("/tmp")
        .unwrap();
    let engine = Engine::new(&folder.path().join("own"));
    let clone = folder.path().join("clone");
    let origin = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (origin, to) = (origin.to_str().unwrap(), clone.to_str().unwrap());
    git(Path::new("/"), &["clone", "--quiet", origin, to]);
    let caches = folder.path().join("cache");

    let (cold, took) = run(&engine, &clone, &caches);
    let cache = &cold.report["cache"];
    let save = Duration::from_millis(cache["save_ms"].as_u64().unwrap());
    let cold = took - save;
    let archive = cache["bytes"].as_u64().unwrap();
    table.print("cold run on an empty engine", seconds(cold));
    table.print("saving its caches", seconds(save));
    table.at_most(
        "saving, as a fraction of the cold run",
        ratio(save, cold),
        0.1,
        "",
    );
    table.print("saved caches", megabytes(archive));
    let before = folder.path().join("before");
    copy(&caches, &before);

    let line = clone.join("api/src/main.rs");
    let text = std::fs::read_to_string(&line).unwrap();
    std::fs::write(&line, text + "// One line more.\n").unwrap();
    commit(&clone, "one line of api");
    let (warm, took) = run(&engine, &clone, &caches);
    for step in ["test", "fmt", "lint", "build"] {
        assert_eq!(warm.step(step)["cached"], false, "{step} was skipped");
    }
    table.print("restored run after a changed line in api", seconds(took));
    let bound = "with restore and save, as a fraction of the cold run";
    table.at_most(bound, ratio(took, cold), 0.35, "");
    let reused = reused(&before, &caches, &folder.path().join("reused"));
    table.print("reused part of the saved caches", megabytes(reused));
    let share = archive as f64 / reused as f64;
    table.at_most(
        "saved caches in relation to the reused part",
        share,
        1.2,
        "",
    );

    std::fs::write(clone.join("ci/docs/new.md"), "# New\n").unwrap();
    commit(&clone, "documentation");
    let (skipped, took) = run(&engine, &clone, &caches);
    // The tests read the documentation.
    for step in ["fmt", "lint", "build"] {
        assert_eq!(skipped.step(step)["cached"], true, "{step} was not skipped");
    }
    table.print(
        "restored run after a changed page of documentation",
        seconds(took),
    );
    ExitCode::from(u8::from(table.missed))
}

fn commit(clone: &Path, message: &str) {
    git(clone, &["add", "--all"]);
    git(clone, &["commit", "--quiet", "--message", message]);
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

/// A whole run on an empty engine, and its duration.
fn run(engine: &Engine, clone: &Path, cache: &Path) -> (Outcome, Duration) {
    engine.reset();
    let arguments = [
        "--engine",
        "embedded",
        "--cache-dir",
        cache.to_str().unwrap(),
    ];
    let begun = Instant::now();
    let run = engine.ci(clone, &arguments).run();
    (run.exits(0), begun.elapsed())
}

/// The blob files of all parts.
fn parts(folder: &Path) -> Vec<PathBuf> {
    let list = std::fs::read_to_string(folder.join("cache.json")).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    let parts = list["parts"].as_array().unwrap().iter();
    parts
        .map(|part| folder.join("blobs").join(part["sha256"].as_str().unwrap()))
        .collect()
}

type Archive = tar::Archive<zstd::Decoder<'static, std::io::BufReader<File>>>;

fn open(blob: &Path) -> Archive {
    tar::Archive::new(zstd::Decoder::new(File::open(blob).unwrap()).unwrap())
}

/// Identifies a file in a part: path, size and time. A file that another run rebuilt has another time.
fn identity(entry: &mut tar::Entry<'_, impl Read>) -> (PathBuf, u64, String) {
    let extensions = entry.pax_extensions().unwrap().into_iter().flatten();
    let mtime = extensions
        .filter_map(Result::ok)
        .find(|it| it.key() == Ok("mtime"))
        .map(|it| it.value().unwrap().to_owned());
    let seconds = entry.header().mtime().unwrap();
    (
        entry.path().unwrap().into_owned(),
        entry.size(),
        mtime.unwrap_or_else(|| seconds.to_string()),
    )
}

/// The size of an archive with the files of `before` that are unchanged in `after`. A run keeps the files that it uses, and
/// rebuilt files have another time.
fn reused(before: &Path, after: &Path, scratch: &Path) -> u64 {
    let mut used = HashSet::new();
    for blob in parts(after) {
        for entry in open(&blob).entries().unwrap() {
            used.insert(identity(&mut entry.unwrap()));
        }
    }
    let mut bytes = 0;
    for blob in parts(before) {
        let file = File::create(scratch).unwrap();
        let mut packed = tar::Builder::new(zstd::Encoder::new(file, 3).unwrap());
        for entry in open(&blob).entries().unwrap() {
            let mut entry = entry.unwrap();
            let this = identity(&mut entry);
            if used.contains(&this) {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                let mut header = entry.header().clone();
                packed
                    .append_data(&mut header, this.0, &content[..])
                    .unwrap();
            }
        }
        packed.into_inner().unwrap().finish().unwrap();
        bytes += scratch.metadata().unwrap().len();
    }
    bytes
}
