//! Measures what a run costs, side by side with the usual way and with cargo alone.
//!
//! `just bench run` runs it; see `ci/docs/performance.md`. The cases and their bounds are in `run/cases.rs`. It exits with code 1 if
//! a bound is missed by more than a fifth.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a failed measurement must abort, and the results are printed"
)]
#![expect(dead_code, reason = "shared with other targets")]

#[path = "run/cases.rs"]
mod cases;
#[path = "run/docker.rs"]
mod docker;
#[path = "common/engine.rs"]
mod engine;
#[path = "../tests/e2e/harness.rs"]
mod harness;
#[path = "run/host.rs"]
mod host;
#[path = "../tests/e2e/installed.rs"]
mod installed;
#[path = "run/plot.rs"]
mod plot;
#[path = "run/process.rs"]
mod process;
#[path = "run/projects.rs"]
mod projects;
#[path = "run/results.rs"]
mod results;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use ci::engine::disk::free_on;
use clap::Parser;
use common::pins;
use serde_json::Value;

use cases::{CASES, Part, Peer};
use docker::Docker;
use engine::{Engine, copy};
use harness::{Ci, git, lock_named};
use host::{Host, Trivy};
use process::{Interrupted, seconds, usage, watch};
use projects::{DEPENDENCIES, FILES, HUNDRED, ONE_FILE, Project, REPOSITORY, TEN, append, replace};
use results::{IDLE, Results, Round};

/// Measure what a run costs.
#[derive(Parser)]
struct Arguments {
    /// The part to measure; without it, all but `first`
    part: Option<Part>,
    /// Also measure the first runs on an empty machine
    #[arg(long)]
    first: bool,
    /// Measure nothing, and print the results so far as Markdown
    #[arg(long)]
    markdown: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut results = Results::open(target.join("bench"), commit());
    if arguments.markdown {
        println!("{}", results.markdown());
        return ExitCode::SUCCESS;
    }
    let mut parts = match arguments.part {
        Some(part) => vec![part],
        None => vec![
            Part::Quick,
            Part::Repository,
            Part::Dependencies,
            Part::Many,
            Part::Growth,
        ],
    };
    if arguments.first && !parts.contains(&Part::First) {
        parts.push(Part::First);
    }
    // Two measurements at a time would measure each other.
    let _lock = lock_named("bench-run");
    process::catch_signals();
    let measured = catch_unwind(AssertUnwindSafe(|| measure(&parts, &mut results)));
    println!("\n{}", results.table());
    match measured {
        Ok(()) => ExitCode::from(u8::from(results.fails())),
        Err(payload) if payload.is::<Interrupted>() => ExitCode::from(130),
        Err(payload) => resume_unwind(payload),
    }
}

/// The top of this repository.
fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The commit of this repository, from which `ci` was built.
fn commit() -> String {
    let dirty = match git(top(), &["status", "--porcelain", "--untracked-files=no"]).as_str() {
        "" => "",
        _ => "-dirty",
    };
    git(top(), &["rev-parse", "--short=7", "HEAD"]) + dirty
}

fn measure(parts: &[Part], results: &mut Results) {
    let begun = Instant::now();
    remove_leftovers();
    warn_about_machine(results.load());
    let folder = Folder::new();
    if parts.iter().any(|part| *part != Part::First) {
        let bench = Bench::new(folder.path());
        for part in parts {
            match part {
                Part::Quick => quick(&bench, results),
                Part::Repository => project(&bench, results, &REPOSITORY, 3),
                Part::Dependencies => project(&bench, results, &DEPENDENCIES, 3),
                Part::Many => many(&bench, results),
                Part::Growth => {
                    project(&bench, results, &TEN, 3);
                    project(&bench, results, &HUNDRED, 3);
                }
                Part::First => {}
            }
        }
    }
    if parts.contains(&Part::First) {
        first(folder.path(), results, &ONE_FILE);
        first(folder.path(), results, &REPOSITORY);
    }
    let took = begun.elapsed().as_secs_f64();
    note(&format!("measured in {took:.0} s; cleaning up"));
}

fn note(text: &str) {
    let now = jiff::Timestamp::now().strftime("%T");
    eprintln!("{now} {text}");
}

/// Other work on the machine makes all figures useless, and so does an engine that must evict its cache.
fn warn_about_machine(load: f64) {
    if load > IDLE {
        note(&format!(
            "warning: the load average is {load}; other programs use this machine"
        ));
    }
    let disk = nix::sys::statvfs::statvfs(PLACE).unwrap();
    let gb = |bytes: u64| bytes / 1_000_000_000;
    let free = gb(disk.blocks_available() * disk.fragment_size());
    let needed = gb(free_on(disk.blocks() * disk.fragment_size()));
    if free < needed + 15 {
        note(&format!(
            "warning: {free} GB of the disk are free; an engine evicts its cache below {needed} GB"
        ));
    }
}

/// The place of all temporary files: on a disk, with a path that is short enough for sockets.
const PLACE: &str = "/var/tmp";
const PREFIX: &str = "ci-bench-";
/// The cache directory of `ci` in the folder.
const CACHE: &str = "c";
/// The home directory of a first run.
const HOME: &str = "h";

/// A temporary folder. An open lock shows that it is in use.
struct Folder {
    folder: tempfile::TempDir,
    _lock: File,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(PLACE)
            .unwrap();
        let lock = File::create(folder.path().join("lock")).unwrap();
        lock.lock().unwrap();
        Self {
            folder,
            _lock: lock,
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the engines and folders of benchmarks that were killed.
fn remove_leftovers() {
    for entry in std::fs::read_dir(PLACE).unwrap().flatten() {
        let folder = entry.path();
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let Ok(lock) = File::open(folder.join("lock")) else {
            continue;
        };
        if is_ours && lock.try_lock().is_ok() {
            note(&format!(
                "removing {}, which a killed benchmark has left",
                folder.display()
            ));
            for cache in [folder.join(CACHE), folder.join(HOME).join(CACHE)] {
                if cache.exists() {
                    Ci::new(Path::new("/"), &["engine", "down"])
                        .env("LAB_CI_CACHE_DIR", cache.to_str().unwrap())
                        .run();
                }
            }
            std::fs::remove_dir_all(folder).unwrap();
        }
    }
}

/// Everything that the parts share.
struct Bench {
    engine: Engine,
    docker: Docker,
    trivy: Trivy,
    folder: PathBuf,
}

impl Bench {
    fn new(folder: &Path) -> Self {
        note("provisioning the engine and the stand-ins");
        let engine = Engine::new(&folder.join(CACHE));
        engine.copy_tools();
        let first = harness::Project::new("bench-first");
        let scan = engine.ci(first.path(), &["scan"]).run().exits(0);
        engine.share_tools();
        let has = |image: &str| {
            let mut stand_ins = scan.report["stand_ins"].as_array().into_iter().flatten();
            stand_ins.any(|it| it["name"] == image)
        };
        let stand_ins = folder.join(CACHE).join("stand-ins");
        note("starting dockerd");
        let toolchain =
            has(pins::RUST_IMAGE).then(|| newest(&stand_ins, "rust-").join("image.tar"));
        let docker = Docker::start(&folder.join("d"), toolchain.as_deref());
        let cache = folder.join("trivy");
        std::fs::create_dir(&cache).unwrap();
        let trivy = if has(pins::TRIVY_IMAGE) {
            copy(&newest(&stand_ins, "advisories-"), &cache.join("db"));
            let programs = newest(&folder.join(CACHE), "trivy-");
            Trivy {
                program: programs.join("bin/trivy"),
                cache,
            }
        } else {
            let program = docker.trivy(&cache);
            let mut download = Command::new(&program);
            download.args(["image", "--download-db-only", "--cache-dir"]);
            download.arg(&cache);
            seconds(download);
            Trivy { program, cache }
        };
        Self {
            engine,
            docker,
            trivy,
            folder: folder.to_owned(),
        }
    }

    /// A call of `ci` in a project.
    fn ci(&self, project: &Path, repository: &str, arguments: &[&str]) -> Command {
        self.engine
            .ci(project, arguments)
            .env("LAB_CI_REPOSITORY", &format!("bench/{repository}"))
            // The measured caches are not evicted while there is space.
            .env("LAB_CI_ENGINE_DISK", "20GB")
            .into_command()
    }

    /// A whole run of `ci`, with the times of its steps.
    fn run(&self, project: &Path, repository: &str) -> Round {
        let report = project.join("target/ci/report.json");
        let _ = std::fs::remove_file(&report);
        let mut round = Round::of(seconds(self.ci(project, repository, &[])));
        let report: Value = serde_json::from_reader(File::open(report).unwrap()).unwrap();
        for step in report["steps"].as_array().unwrap() {
            if let Some(ms) = step["duration_ms"].as_u64() {
                let name = format!("ci {}", step["name"].as_str().unwrap());
                round.parts.push((name, ms as f64 / 1e3));
            }
        }
        round
    }

    /// Starts the engine with an empty cache, and lets it import all images for another project.
    fn reset(&self) {
        self.engine.reset();
        let other = harness::Project::new("bench-images");
        other.edit(
            "api/src/main.rs",
            "listening",
            "listening for the benchmark",
        );
        let scan = self.ci(other.path(), "images", &["scan"]);
        let smoke = self.ci(other.path(), "images", &["smoke"]);
        seconds(scan);
        seconds(smoke);
    }

    /// Runs the peers, each in its own working tree, in a different order in each round.
    fn round(&self, ci: &Tree<'_>, host: &Host<'_>, number: usize, cold: bool) -> Round {
        let ours = || self.run(&ci.folder, ci.repository);
        let theirs = || host.round(cold);
        let (mut ours, theirs) = if number.is_multiple_of(2) {
            let ours = ours();
            (ours, theirs())
        } else {
            let theirs = theirs();
            (ours(), theirs)
        };
        ours.peers.extend(theirs.peers);
        ours.parts.extend(theirs.parts);
        ours
    }
}

/// The entry of a directory whose name starts with `prefix` and that was changed last.
fn newest(folder: &Path, prefix: &str) -> PathBuf {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .max_by_key(|entry| entry.path().metadata().unwrap().modified().unwrap())
        .unwrap_or_else(|| panic!("no {prefix}* in {}", folder.display()))
        .path()
}

/// The working tree of `ci`.
struct Tree<'a> {
    folder: PathBuf,
    repository: &'a str,
}

/// Measures a project cold, warm, and after changes.
fn project(bench: &Bench, results: &mut Results, project: &Project, rounds: usize) {
    let id = |case: &str| {
        let id = format!("{}/{case}", project.name);
        CASES.iter().find(|case| case.id == id).map(|case| case.id)
    };
    let folder = bench.folder.join(project.name);
    let ci = Tree {
        folder: folder.join("ci"),
        repository: project.name,
    };
    let host = folder.join("host");
    note(&format!("{}: creating it", project.name));
    project.create(&host);
    copy(&host, &ci.folder);
    let host = Host::new(project, host, &bench.docker, &bench.trivy);

    // Cold runs of the other projects take too long to be repeated.
    let cold = if project.name == ONE_FILE.name { 2 } else { 1 };
    let mut measured = Vec::new();
    for number in 0..cold {
        bench.reset();
        host.empty();
        note(&format!("{}: cold, {} of {cold}", project.name, number + 1));
        measured.push(bench.round(&ci, &host, number, true));
    }
    results.add(id("cold").unwrap(), measured);

    note(&format!("{}: warming up", project.name));
    bench.round(&ci, &host, 0, false);
    let nothing: Change = |_, _, _| {};
    let mut changes: Vec<(&str, usize, Change)> = vec![
        ("nothing", rounds, nothing),
        ("documentation", rounds, |project, folder, round| {
            project.change_documentation(folder, round);
        }),
        ("line", rounds, |project, folder, round| {
            project.change_source(folder, round);
        }),
    ];
    changes.push((
        "dependency",
        project.older.len(),
        |project, folder, round| {
            project.update_dependency(folder, round);
        },
    ));
    for (case, rounds, change) in changes {
        let Some(id) = id(case) else { continue };
        let mut measured = Vec::new();
        for number in 0..rounds {
            note(&format!("{id}, {} of {rounds}", number + 1));
            for tree in [&*ci.folder, host.folder()] {
                change(project, tree, number);
            }
            measured.push(bench.round(&ci, &host, number, false));
        }
        results.add(id, measured);
    }
    // The next project needs the space.
    drop(host);
    std::fs::remove_dir_all(folder).unwrap();
    bench.docker.prune();
}

/// Changes the working tree of a project, for the round of this number.
type Change = fn(&Project, &Path, usize);

/// The cases that take seconds.
fn quick(bench: &Bench, results: &mut Results) {
    const ROUNDS: usize = 5;
    project(bench, results, &ONE_FILE, ROUNDS);
    let folder = bench.folder.join("quick");
    let tree = folder.join("one-file");
    ONE_FILE.create(&tree);
    let repository = "quick";
    note("warming up");
    bench.run(&tree, repository);
    let status = || bench.ci(&tree, repository, &["engine", "status"]);
    let doctor = || bench.ci(&tree, repository, &["doctor"]);
    let (mut cpu, mut memory, mut doctors, mut states) = (vec![], vec![], vec![], vec![]);
    for number in 0..ROUNDS {
        note(&format!(
            "small commands and usage, {} of {ROUNDS}",
            number + 1
        ));
        let used = usage(bench.ci(&tree, repository, &[]));
        let mut round = Round::of(used.cpu);
        let children = ("child processes of ci".to_owned(), used.children / 1e3);
        round.parts.push(children);
        cpu.push(round);
        memory.push(Round::of(used.memory));
        doctors.push(Round::of(seconds(doctor())));
        states.push(Round::of(seconds(status())));
    }
    results.add("cpu", cpu);
    results.add("memory", memory);
    results.add("doctor", doctors);
    results.add("status", states);

    let (good, bad) = ("fn answer()", "fn  answer()");
    let mut shown = Vec::new();
    for number in 0..ROUNDS {
        note(&format!("badly formatted file, {} of {ROUNDS}", number + 1));
        append(&tree, ONE_FILE.source, &format!("// Round {number}.\n"));
        replace(&tree, ONE_FILE.source, good, bad);
        let mut after = None;
        watch(bench.ci(&tree, repository, &[]), 1, |line, time| {
            if line.contains("✗ fmt") {
                after.get_or_insert(time);
            }
        });
        shown.push(Round::of(after.expect("a line about the failed step")));
        replace(&tree, ONE_FILE.source, bad, good);
    }
    results.add("format", shown);

    note("10,000 small files: creating them");
    let tree = folder.join("files");
    FILES.create(&tree);
    note("10,000 small files: warming up");
    bench.run(&tree, FILES.name);
    let (mut nothing, mut one) = (vec![], vec![]);
    for number in 0..3 {
        note(&format!("10,000 small files, {} of 3", number + 1));
        nothing.push(
            bench
                .run(&tree, FILES.name)
                .and(Peer::Without, results.figure("one-file/nothing", Peer::Ci)),
        );
        FILES.change_documentation(&tree, number);
        one.push(bench.run(&tree, FILES.name).and(
            Peer::Without,
            results.figure("one-file/documentation", Peer::Ci),
        ));
    }
    results.add("files/nothing", nothing);
    results.add("files/one", one);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Runs of ten commits of one repository on one engine, at once and one after another.
fn many(bench: &Bench, results: &mut Results) {
    const RUNS: usize = 10;
    let folder = bench.folder.join("many");
    let trees: Vec<_> = (0..RUNS)
        .map(|number| folder.join(number.to_string()))
        .collect();
    ONE_FILE.create(&trees[0]);
    for tree in &trees[1..] {
        copy(&trees[0], tree);
    }
    let sequence = |repository: &str| -> f64 {
        let runs = trees.iter();
        runs.map(|tree| seconds(bench.ci(tree, repository, &[])))
            .sum()
    };
    let at_once = |repository: &str| -> f64 {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let runs: Vec<_> = trees
                .iter()
                .map(|tree| scope.spawn(move || seconds(bench.ci(tree, repository, &[]))))
                .collect();
            for run in runs {
                run.join().unwrap_or_else(|payload| resume_unwind(payload));
            }
        });
        begun.elapsed().as_secs_f64()
    };
    // Each commit is another one.
    let mut commits = 0;
    let mut change = |path: &str, comment: &str| {
        for tree in &trees {
            commits += 1;
            append(tree, path, &format!("{comment} Commit {commits}.\n"));
        }
    };

    bench.reset();
    note("ten runs: warming up");
    let repository = "many";
    bench.run(&trees[0], repository);
    let rounds = 3;
    let mut warm = Vec::new();
    for number in 0..rounds {
        note(&format!(
            "ten runs, nothing to compile, {} of {rounds}",
            number + 1
        ));
        change(ONE_FILE.documentation, "");
        let one_after_another = sequence(repository);
        change(ONE_FILE.documentation, "");
        warm.push(Round::of(at_once(repository)).and(Peer::Sequence, one_after_another));
    }
    results.add("many/warm", warm);

    note("ten runs, cold, one after another");
    bench.reset();
    change(ONE_FILE.source, "//");
    let one_after_another = sequence("many-sequence");
    note("ten runs, cold, at once");
    bench.reset();
    change(ONE_FILE.source, "//");
    let cold = Round::of(at_once("many-at-once")).and(Peer::Sequence, one_after_another);
    results.add("many/cold", vec![cold]);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Stops the engine of a first run, also after an interruption.
struct Down<F: Fn()>(F);

impl<F: Fn()> Drop for Down<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The first run on a machine where `ci` has built nothing. The packages of the system stay installed.
fn first(folder: &Path, results: &mut Results, project: &Project) {
    let home = &folder.join(HOME);
    let tree = folder.join("first");
    project.create(&tree);
    std::fs::create_dir_all(home).unwrap();
    let cache = home.join(CACHE);
    let user = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let default = |name: &str, path: &str| {
        std::env::var_os(name).map_or_else(|| user.join(path), PathBuf::from)
    };
    let ci = |folder: &Path, arguments: &[&str]| {
        Ci::new(folder, arguments)
            .env("LAB_CI_REPOSITORY", "bench/first")
            .env("LAB_CI_CACHE_DIR", cache.to_str().unwrap())
            // Go's and pip's caches are below it.
            .env("HOME", home.to_str().unwrap())
            .env("XDG_CACHE_HOME", home.join("cache").to_str().unwrap())
            .env(
                "RUSTUP_HOME",
                default("RUSTUP_HOME", ".rustup").to_str().unwrap(),
            )
            .env(
                "GOENV",
                default("GOENV", ".config/go/env").to_str().unwrap(),
            )
    };
    let down = Down(|| {
        ci(Path::new("/"), &["engine", "down"]).run();
    });
    note(&format!("first run: {}", project.name));
    let (mut last, mut silence) = (0.0, 0.0_f64);
    let took = watch(ci(&tree, &[]).into_command(), 0, |line, time| {
        eprintln!("    {time:>6.1} {line}");
        silence = silence.max(time - last);
        last = time;
    });
    silence = silence.max(took - last);
    drop(down);
    std::fs::remove_dir_all(home).unwrap();
    std::fs::remove_dir_all(tree).unwrap();
    let ids = match project.name {
        "one-file" => ["first/one-file", "first/one-file-silence"],
        _ => ["first/repository", "first/repository-silence"],
    };
    results.add(ids[0], vec![Round::of(took)]);
    results.add(ids[1], vec![Round::of(silence)]);
}
