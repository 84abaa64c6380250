//! Runs cargo on the sources, in a container of the toolchain's image.

use std::collections::BTreeMap;
use std::path::Path;

use dagger_sdk::{Container, File};
use tracing::{Instrument as _, info_span};

use super::commit::BuildCommit;
use super::credentials::with_credentials;
use super::environment::with_env;
use super::missing;
use super::services::{Services, failed_setup, setup_failure};
use super::sync::SYNC;
use crate::engine::graphql::EngineError;
use crate::image::archive::Platform;
use crate::model::config_file::FILE;
use crate::model::inputs::Inputs;
use crate::model::step::Step;
use crate::output::{IDLE, SOURCES, WAITING, failed_build_script};
use crate::run::context::RunContext;
use crate::run::execution::StepContext;
use crate::runner_cache::key::Key;
use crate::runner_cache::place::Place;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::digest::sha256;
use common::failure::{ExitCode, Failure, OrFail};
use common::pins;
use common::scratch;

/// The mount point of the run's sources.
const CHECKOUT: &str = "/checkout";
/// Cargo's home, with its downloads.
const CARGO_HOME: &str = "/cargo";

/// Synchronizes the sources. `SYNC` is [`SYNC`]. Concurrent runs wait for each other with a file lock, which is released when the
/// container exits. The engine's own lock (`LOCKED`) no longer leaks when a run is cancelled, but it would also cover the lookup of
/// cached results.
const PRELUDE: &str = r#"set -eu
# One stream for all output, because the engine does not keep the order of two. Cargo's messages in JSON have the other one, as
# they could arrive in the middle of a line.
exec 3>&1 1>&2
exec 9>/work/lock
flock --nonblock 9 || { echo "@waiting@"; flock 9; }
perl -e "$SYNC"
# Build scripts must not see these variables.
unset SYNC BUILD_SCRIPTS BUILD_COMMIT
# For `ci shell`, which does not count as a run.
[ -n "${CI_SHELL_TOKEN:-}" ] || date +%s > /work/last
cd /work/src
"#;

/// Reports that the container has used almost no CPU, less than 2 %, for some time. In the container, because the engine reports the
/// CPU time of a container only on hosts with version 2 of cgroups.
const WATCH: &str = r#"
used() { cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | awk '{ ticks += $12 + $13 + $14 + $15 } END { print ticks }'; }
(
  before=$(used); idle=0
  while sleep 3; do
    now=$(used)
    if [ $((now - before)) -lt 6 ]; then idle=$((idle + 3)); printf '@idle@%s\r' "$idle"
    elif [ "$idle" -gt 0 ]; then idle=0; printf '@idle@0\r'
    fi
    before=$now
  done
) 9>&- &
"#;

/// A program that is mounted in the toolchain's container.
pub struct Program {
    /// The path in the container.
    pub path: &'static str,
    /// The version, which is part of the result's cache key.
    pub version: &'static str,
    /// The executable, in the engine.
    pub file: File,
}

/// A script that works on the sources in the toolchain's container.
pub struct Work<'a> {
    /// The shell script, run in the workspace's directory.
    pub script: &'a str,
    /// The script's environment.
    pub env: BTreeMap<String, String>,
    /// The backing services that the script can reach.
    pub services: Option<&'a Services>,
    /// A program to mount in the container.
    pub program: Option<Program>,
    /// Whether the script writes results to `/out`.
    pub writes_out: bool,
    /// The error message if the script fails.
    pub failed: &'a str,
    /// The hint if the script fails.
    pub hint: Hint<'a>,
}

/// What to do about a failed script.
#[derive(Clone, Copy, Debug)]
pub enum Hint<'a> {
    /// Run this command, where it fails in the same way.
    Reproduce(&'a str),
    /// Something else.
    Text(&'a str),
}

/// A shell function that runs a cargo command with [`MESSAGES`]. It prints the diagnostics and stores all messages, which list the
/// files that the command used: only those files of a volume are saved for other runners.
const USING: &str = r#"using() {
  rm -f /tmp/messages; mkfifo /tmp/messages
  tee /work/used.now < /tmp/messages | grep --line-buffered '^{"reason":"compiler-message"' >&3 &
  failed=
  "$@" > /tmp/messages || failed=$?
  wait "$!" || true
  [ -z "$failed" ] || exit "$failed"
  mv /work/used.now /work/used
}"#;
/// Makes cargo write its messages as JSON to standard output, and its progress to standard error. The options are not in the
/// environment, where tests that call cargo would inherit them.
pub const MESSAGES: &str = "--message-format=json --config 'term.progress.when=\"always\"' --config term.progress.width=80";

/// A container of the toolchain's image with cargo's home, without the sources.
///
/// # Errors
/// When the toolchain's image cannot be pulled (exit code 3).
pub async fn toolchain<K: Kind>(step: &StepContext<'_, K>) -> Result<Container, Failure> {
    toolchain_for(step, None).await
}

async fn toolchain_for<K: Kind>(
    step: &StepContext<'_, K>,
    platform: Option<&Platform>,
) -> Result<Container, Failure> {
    let home = step.run.volume_of(Place::Cargo).await?;
    let home = step.client().cache_volume(home);
    Ok(bare_toolchain(step, platform)
        .await?
        // Mounts the whole home, because cargo's lock file is at its top, next to the registry.
        .with_mounted_cache(CARGO_HOME, home)
        .with_env_variable("CARGO_HOME", CARGO_HOME)
        // The official image has neither clippy nor rustfmt.
        .with_exec(vec![
            "sh",
            "-c",
            "{ cargo clippy --version && cargo fmt --version; } >/dev/null 2>&1 || rustup component add clippy rustfmt",
        ]))
}

/// A container with the run's toolchain and without volumes.
///
/// # Errors
/// When the toolchain's image cannot be pulled and its stand-in cannot be provisioned (exit code 3).
pub async fn bare_toolchain<K: Kind>(
    step: &StepContext<'_, K>,
    platform: Option<&Platform>,
) -> Result<Container, Failure> {
    let container = pinned_toolchain(step, platform).await?;
    let rust = &step.run.rust;
    if rust.is_in_the_image() {
        return Ok(container);
    }
    let target = platform.unwrap_or(&step.run.platforms.engine).target();
    // The programs themselves, instead of those of rustup that would look for the toolchain file.
    let path = format!(
        "/usr/local/rustup/toolchains/{}-{target}/bin:/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        rust.name
    );
    let installed = container.with_exec(rust.install());
    let what = format!("Rust {}", rust.name);
    let install = step.waiting(&what, installed.sync());
    install.await.map_err(|error| {
        EngineError::from(error)
            .into_environment(&format!(
                "cannot install Rust {} of {}",
                rust.name, rust.from
            ))
            .hint("Check the toolchain file, and that the engine reaches static.rust-lang.org.")
    })?;
    Ok(installed
        .with_env_variable("RUSTUP_TOOLCHAIN", &rust.name)
        .with_env_variable("PATH", path))
}

/// A container of the toolchain's image, with the toolchain that `ci` pins, whatever the repository asks for, and without volumes.
///
/// # Errors
/// When the toolchain's image cannot be pulled and its stand-in cannot be provisioned (exit code 3).
pub async fn pinned_toolchain<K: Kind>(
    step: &StepContext<'_, K>,
    platform: Option<&Platform>,
) -> Result<Container, Failure> {
    let image = step
        .waiting("the toolchain's image", step.run.toolbox.rust())
        .await?;
    let container = image.container(step.client(), platform)?;
    Ok(step
        .run
        .connected(step.client(), container)
        .with_env_variable("CARGO_TERM_COLOR", "never")
        .with_env_variable("RUSTUP_TOOLCHAIN", pins::RUST))
}

fn with_packages(container: &Container, packages: &[&str]) -> Container {
    if packages.is_empty() {
        return container.clone();
    }
    let mut install = vec![
        "sh",
        "-c",
        "apt-get -q update && apt-get -q install --yes --no-install-recommends \"$@\"",
        "sh",
    ];
    install.extend(packages);
    container
        .with_env_variable("DEBIAN_FRONTEND", "noninteractive")
        .with_exec(install)
}

/// Installs the Debian packages of the step.
pub(super) fn with_packages_of<K: Kind>(
    step: &StepContext<'_, K>,
    container: &Container,
) -> Container {
    let settings = &step.run.settings;
    let container = with_packages(container, &settings.compiling_packages_of(step.step));
    with_packages(&container, &settings.running_packages_of(step.step))
}

/// Runs `work` on the step's sources; returns a directory with the content of `/out`, if `work` writes to it. Reuses the result
/// if the run's cache has one for the same work on the same sources.
///
/// # Errors
/// When the script fails, with its output (exit code 1), or the engine fails (exit code 3).
pub async fn run<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    work: Work<'_>,
) -> Result<tempfile::TempDir, Failure> {
    step.set_inputs(inputs(step, source, &work).await?);
    let key = key(step, source, &work).await?;
    if let Some(left) = step.passed_before(key.as_ref()).await {
        return Ok(left);
    }
    let done = execute(step, source, &work)
        .instrument(info_span!("run the commands"))
        .await?;
    let left = scratch::folder().or_environment("cannot create a directory for the results")?;
    if work.writes_out {
        done.directory("/out")
            .export(left.path().display().to_string())
            .instrument(info_span!("export the results"))
            .await
            .map_err(|error| {
                EngineError::from(error).into_environment("cannot export the results")
            })?;
    }
    if let Some(key) = key {
        step.record_pass(key, left.path())?;
    }
    Ok(left)
}

/// The Debian packages in the container of the step.
fn all_packages<'a, K: Kind>(step: &StepContext<'a, K>) -> Vec<&'a str> {
    let settings = &step.run.settings;
    let mut packages = settings.compiling_packages_of(step.step);
    packages.extend(settings.running_packages_of(step.step));
    packages
}

/// What `work`'s result depends on, to tell why it ran.
async fn inputs<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    work: &Work<'_>,
) -> Result<Inputs, Failure> {
    let run = step.run;
    let platform = run.platform_of(step.step);
    let services = work.services.and_then(Services::identity);
    Ok(Inputs {
        files: source.for_step(step.step, &run.settings.paths)?.files()?,
        ..Inputs::default()
    }
    .with("the toolchain", run.toolchain_key(platform).await?)
    .with("the packages", all_packages(step).join(" "))
    .with(
        "the environment",
        sha256(format!("{:?}", work.env).as_bytes()),
    )
    .with("build.commit", commit_in(step, source)?)
    .with("the commands", sha256(script(work).as_bytes()))
    .with("the services", services.unwrap_or_default()))
}

/// The cache key of `work`'s result: everything that it depends on. `None` if an input has no exact identity, or the run has no
/// cache.
async fn key<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    work: &Work<'_>,
) -> Result<Option<Key>, Failure> {
    let run = step.run;
    let Some(services) = work.services.map_or(Some(""), Services::identity) else {
        return Ok(None);
    };
    // Debian packages have no fixed versions.
    if run.cache.is_none() || !all_packages(step).is_empty() {
        return Ok(None);
    }
    let sources = source.for_step(step.step, &run.settings.paths)?;
    Ok(Some(
        Key::of(step.step)
            .with("toolchain", run.environment(step.step).await?)
            .with("sources", &sources.digest)
            .with("commit", commit_in(step, source)?)
            .with("folder", run.settings.folder.display())
            .with("script", script(work))
            .with("env", format_args!("{:?}", work.env))
            .with("program", work.program.as_ref().map_or("", |it| it.version))
            .with("services", services),
    ))
}

/// What build scripts see of the commit, if the settings ask for it.
fn commit_in<K: Kind>(step: &StepContext<'_, K>, source: &Source<'_>) -> Result<String, Failure> {
    let commit = BuildCommit::of(step.step, &step.run.settings, source.checkout())?;
    Ok(commit.map_or_else(String::new, |commit| commit.identity()))
}

fn script(work: &Work<'_>) -> String {
    let prelude = PRELUDE.replace("@waiting@", WAITING);
    let watch = WATCH.replace("@idle@", IDLE);
    let services = work.services.map_or("", Services::script);
    format!(
        "{prelude}\n{watch}\n{USING}\ncd \"$1\"\n{services}{}",
        work.script
    )
}

/// The command that runs `work` in the container of [`prepare`].
pub fn command<K: Kind>(step: &StepContext<'_, K>, work: &Work<'_>) -> Vec<String> {
    let folder = Path::new(SOURCES).join(&step.run.settings.folder);
    [
        "sh",
        "-c",
        &script(work),
        "sh",
        &folder.display().to_string(),
    ]
    .map(ToOwned::to_owned)
    .to_vec()
}

/// Runs `work` without looking for an earlier result.
///
/// # Errors
/// When the script fails, with its output (exit code 1), or the engine fails (exit code 3).
pub async fn execute<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    work: &Work<'_>,
) -> Result<Container, Failure> {
    let done = prepare(step, source, work)
        .await?
        .with_exec(command(step, work));
    let finished = async {
        step.waits_for_container();
        match tokio::try_join!(done.stdout(), done.stderr()) {
            Ok((messages, output)) => {
                step.store_output(messages + &output);
                Ok(())
            }
            Err(error) => Err(to_failure(step, error.into(), work.failed, work.hint).await),
        }
    };
    match work.services {
        Some(services) => services.run_with(finished).await?,
        None => finished.await?,
    };
    Ok(done)
}

/// The container in which `work` runs, before its command.
///
/// # Errors
/// When the toolchain's image cannot be pulled (exit code 3).
pub async fn prepare<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    work: &Work<'_>,
) -> Result<Container, Failure> {
    let run = step.run;
    let client = step.client();
    let sources = source.for_step(step.step, &run.settings.paths)?;
    let place = run.place_of(step.step);
    let volume = run.volume_of(place).await?;
    let toolchain = toolchain_for(step, run.platform_of(step.step)).await?;
    tokio::join!(run.restore(Place::Cargo), run.restore(place));
    let container = with_packages_of(step, &toolchain)
        .with_mounted_directory(
            CHECKOUT,
            client.host().directory(sources.path.display().to_string()),
        )
        .with_mounted_cache("/work", client.cache_volume(volume))
        .with_env_variable("CARGO_TARGET_DIR", "/work/target")
        .with_env_variable("SYNC", SYNC)
        .with_env_variable("BUILD_SCRIPTS", build_scripts(run));
    let container = match BuildCommit::of(step.step, &run.settings, source.checkout())? {
        Some(commit) => commit.add_to(&container),
        None => container,
    };
    let mut container = with_env(&container, &work.env);
    if step.step != Step::Fmt {
        container = with_credentials(client, run, container);
    }
    if let Some(program) = &work.program {
        container = container.with_mounted_file(program.path, program.file.clone());
    }
    if let Some(jobs) = run.settings.jobs {
        // Not part of a key, because it changes no result.
        container = container.with_env_variable("CARGO_BUILD_JOBS", jobs.to_string());
    }
    if run.cache.is_some() {
        // Incremental results are not saved for other runners.
        container = container.with_env_variable("CARGO_INCREMENTAL", "0");
    }
    if let Some(services) = work.services {
        container = services.bind(&container);
    }
    Ok(container)
}

/// The build scripts, one per line.
fn build_scripts<K: Kind>(run: &RunContext<K>) -> String {
    let scripts = run.settings.build_scripts.iter();
    let scripts: Vec<_> = scripts.map(|path| path.display().to_string()).collect();
    scripts.join("\n")
}

/// Messages of failures outside of the code, and their causes.
const ENVIRONMENT_FAILURES: [(&str, &str); 9] = [
    ("No space left on device", "the engine's disk is full"),
    ("database or disk is full", "the engine's disk is full"),
    ("Could not resolve host", "the network failed"),
    ("Couldn't resolve host", "the network failed"),
    ("download of config.json failed", "the network failed"),
    ("failed to download from", "the network failed"),
    ("spurious network error", "the network failed"),
    (
        "network failure seems to have happened",
        "the network failed",
    ),
    (
        "runc run failed",
        "the engine could not start its container",
    ),
];
/// Messages of failures of the code, which take precedence: a test's output may contain any text.
const CODE_FAILURES: [&str; 3] = [
    "test result: FAILED",
    "error: could not compile",
    "panicked at",
];

/// The cause of a failure outside of the code, according to the command's output.
fn environment_failure(output: &str) -> Option<&'static str> {
    let (_, cause) = ENVIRONMENT_FAILURES
        .iter()
        .find(|(sign, _)| output.contains(sign))?;
    (!CODE_FAILURES.iter().any(|sign| output.contains(sign))).then_some(cause)
}

/// What to do about a failure outside of the code.
fn network_hint<K: Kind>(step: &StepContext<'_, K>, output: &str) -> &'static str {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if output.contains("SSL certificate problem") {
        missing::UNKNOWN_CA
    } else if !step.run.settings.proxy && ["HTTPS_PROXY", "https_proxy"].into_iter().any(is_set) {
        "The environment has a proxy that the containers do not use: set `proxy = true` in ci.toml, or --proxy."
    } else {
        "Fix the cause and run again; `ci doctor` checks this machine's setup."
    }
}

/// A failed command fails the gate (exit code 1), unless its output shows that something outside of the code failed (exit
/// code 3).
async fn to_failure<K: Kind>(
    step: &StepContext<'_, K>,
    error: EngineError,
    failed: &str,
    hint: Hint<'_>,
) -> Failure {
    let (exit_code, output) = match error {
        EngineError::Exec { exit_code, output } => (exit_code, step.complete_log(&output).await),
        other => return other.into_environment(&format!("step {}", step.step)),
    };
    if let Some(name) = failed_setup(&output) {
        return setup_failure(name, exit_code).output(output.clone());
    }
    match environment_failure(&output) {
        Some(cause) => Failure::environment(format!("{}: {cause}", step.step))
            .hint(network_hint(step, &output))
            .output(output),
        None => Failure::new(
            ExitCode::GateFailed,
            format!("{failed} (exit code {exit_code})"),
        )
        .hint(hint_for(step, &output, hint))
        .output(output),
    }
}

/// How a program or file that does not exist is reported.
const NOT_FOUND: &str = "No such file or directory";

/// The hint for a failed gate: what the container lacks, or else the step's own hint, `usual`.
fn hint_for<K: Kind>(step: &StepContext<'_, K>, output: &str, usual: Hint<'_>) -> String {
    // The output of a test may contain any text.
    let tests_ran = output.contains("\ntest result: ");
    if let Some(known) = missing::at_build(output).filter(|_| !tests_ran) {
        return known;
    }
    if let Some(package) = failed_build_script(output).filter(|_| !tests_ran) {
        let commit = if step.run.settings.build_commit {
            "With build.commit, it gets the SHA and the time of the commit, and nothing else of .git."
        } else {
            "If it needs the commit, set `commit = true` in [build] of ci.toml."
        };
        return format!(
            "The build script of `{package}` runs in a container without .git and without this machine's programs and \
             environment. {commit} `ci shell {}` opens a shell there.",
            step.step
        );
    }
    match usual {
        Hint::Reproduce(command) if tests_ran && output.contains(NOT_FOUND) => format!(
            "{} A test that calls a program needs its Debian package in test.packages of {FILE}.",
            reproduce(step, command)
        ),
        Hint::Reproduce(command) => reproduce(step, command),
        Hint::Text(text) if step.run.settings.paths.contains_key(&step.step) => format!(
            "{text} This step only has the files that paths.{} in {FILE} selects.",
            step.step
        ),
        Hint::Text(text) => text.to_owned(),
    }
}

/// Says where `command` fails as it did in this step: on this machine, unless the step has files, packages, variables or services of
/// its own.
pub(super) fn reproduce<K: Kind>(step: &StepContext<'_, K>, command: &str) -> String {
    let settings = &step.run.settings;
    let name = step.step;
    let in_test = name == Step::Test;
    let in_gates = name == Step::Custom;
    let has_services = settings.services.iter().any(|it| it.steps.contains(&name));
    let own = [
        (settings.paths.contains_key(&name), format!("paths.{name}")),
        (
            !settings.packages.is_empty(),
            "toolchain.packages".to_owned(),
        ),
        (
            in_test && !settings.tests.packages.is_empty(),
            "test.packages".to_owned(),
        ),
        (
            in_gates && settings.gates.iter().any(|gate| !gate.packages.is_empty()),
            "gate.packages".to_owned(),
        ),
        (
            !in_gates && !settings.cargo.env.is_empty(),
            "cargo.env".to_owned(),
        ),
        (
            in_test && !settings.tests.env.is_empty(),
            "test.env".to_owned(),
        ),
        (
            in_gates && settings.gates.iter().any(|gate| !gate.env.is_empty()),
            "gate.env".to_owned(),
        ),
        (has_services, "services".to_owned()),
    ];
    let own: Vec<_> = own
        .into_iter()
        .filter_map(|(is_set, key)| is_set.then_some(key))
        .collect();
    if own.is_empty() {
        return format!("Run {command} to reproduce the failure on this machine.");
    }
    format!(
        "Run {command} in `ci shell {name}`. On this machine it may pass, because {} in {FILE} only {} to the step's container.",
        own.join(", "),
        if own.len() == 1 { "applies" } else { "apply" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_does_not_fail_the_gate_unless_a_test_prints_the_message() {
        assert_eq!(
            environment_failure("error: No space left on device (os error 28)"),
            Some("the engine's disk is full")
        );
        assert_eq!(
            environment_failure("No space left on device\ntest result: FAILED. 1 passed"),
            None
        );
        assert_eq!(environment_failure("error[E0308]: mismatched types"), None);
    }
}
