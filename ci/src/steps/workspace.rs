//! The container in which cargo works on a run's sources.

use std::collections::BTreeMap;
use std::path::Path;

use dagger_sdk::{Container, File};

use super::environment::with_env;
use super::services::Services;
use crate::engine::graphql::EngineError;
use crate::image::archive::Platform;
use crate::model::config_file::FILE;
use crate::run::execution::StepContext;
use crate::runner_cache::key::Key;
use crate::runner_cache::place::Place;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::{ExitCode, Failure, OrFail};
use common::pins;

/// Where the sources of the run are mounted, as they are.
const CHECKOUT: &str = "/checkout";
/// Where cargo works on them.
const SOURCES: &str = "/work/src";
/// Where cargo keeps what it downloads.
const CARGO_HOME: &str = "/cargo";

/// Brings `/work/src`, which lies in a cache volume, to the state of `/checkout`, and changes the time of a file only
/// where its content changed.
///
/// Cargo decides by a file's time whether it has to compile it again. The times of a checkout tell nothing (git, an archive
/// or `touch` sets them), so cargo sees this copy: what is the same keeps the time that it got when it came, what changed is
/// as new as now, in whatever direction it changed. Where cargo would not notice, everything is made new: a file that came,
/// vanished or is no Rust source, which a macro may have looked at (those that embed folders, migrations and templates do), a
/// link that leads to another file, whose own time is older, and a synchronization that was cut off. (The links are known by a list:
/// what is carried to another runner has none in it.) Documentation is taken
/// for what it is. Build scripts run again after any change: they may not have told cargo what they read.
///
/// Two runs at once take turns by a lock of their own, which ends with the container. The engine's (`LOCKED`) may stay
/// behind for ever when a run is cancelled: nobody could use the volume again before the engine's restart.
const SYNC: &str = r#"set -eu
exec 9>/work/lock
flock --nonblock 9 || { echo "waiting for another run with the same cache" >&2; flock 9; }
mkdir -p /work/src
all=
if [ -e /work/unfinished ]; then all=yes; fi
touch /work/unfinished
# What a file is: documentation, something whose changes cargo notices by itself, or other.
export KIND='case "$f" in
  */README* | */CHANGELOG* | */LICENSE* | ./docs/* | ./.github/*) kind=documentation ;;
  *.rs | */Cargo.toml | */Cargo.lock) kind=cargo ;;
  ./*/*.md) kind=other ;;
  *.md) kind=documentation ;;
  *) kind=other ;;
esac'
cd /work/src
gone=$(find . -mindepth 1 -exec sh -c '
  for f; do
    from="/checkout/$f"
    if [ ! -e "$f" ] && [ ! -L "$f" ]; then continue; fi
    if [ -L "$f" ]; then [ -L "$from" ] && continue
    elif [ -d "$f" ]; then [ -d "$from" ] && [ ! -L "$from" ] && continue
    else [ -f "$from" ] && [ ! -L "$from" ] && continue
    fi
    eval "$KIND"
    [ $kind = documentation ] || echo gone
    rm -rf "$f"
  done' sh {} +)
cd /checkout
find . -type d -exec sh -c 'cd /work/src && mkdir -p "$@"' sh {} +
find . -type l -printf '%p\t%l\0' | LC_ALL=C sort -z > /work/links.now
led=; cmp -s /work/links.now /work/links || led=yes
find . -type l -exec sh -ec '
  for f; do
    to="/work/src/$f"
    if [ "$(readlink "$f")" = "$(readlink "$to" 2>/dev/null)" ]; then continue; fi
    rm -f "$to"; cp -P "$f" "$to"
  done' sh {} +
new=$(find . -type f -exec sh -ec '
  for f; do
    to="/work/src/$f"
    if cmp -s "$f" "$to" && [ "$(stat -c %a "$f")" = "$(stat -c %a "$to")" ]; then continue; fi
    eval "$KIND"
    if [ $kind = other ] || { [ $kind = cargo ] && [ ! -e "$to" ]; }; then echo all; else echo new; fi
    rm -f "$to"; cp "$f" "$to.new-from-checkout"; chmod "$(stat -c %a "$f")" "$to.new-from-checkout"
    touch "$to.new-from-checkout"; mv "$to.new-from-checkout" "$to"
  done' sh {} +)
cd /work/src
case "$new" in *all*) all=yes ;; esac
if [ -n "$all$gone$led" ]; then find . -type f -exec touch {} +
elif [ -n "$new" ]; then find . -type f -name build.rs -exec touch {} +
fi
mv /work/links.now /work/links
rm /work/unfinished
# Nothing of this is for a build script to see.
unset KIND
"#;

/// A program of ours in the toolchain's container.
pub struct Program {
    /// Where it is mounted.
    pub path: &'static str,
    /// Its version, on which the outcome depends.
    pub version: &'static str,
    /// The program.
    pub file: File,
}

/// Work of cargo's on the sources, in the toolchain's container.
pub struct Work<'a> {
    /// What the shell does in the workspace's folder.
    pub script: &'a str,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// What it has beside it.
    pub services: Option<&'a Services>,
    /// A program that is mounted into its container.
    pub program: Option<Program>,
    /// Whether it leaves something in `/out`.
    pub leaves: bool,
    /// What it is when the script fails.
    pub failed: &'a str,
    /// What to do then.
    pub hint: &'a str,
}

/// A function for the scripts: runs a cargo command that has [`MESSAGES`], and keeps what it says of every file that it has used. By
/// that it is known later what of a volume is worth carrying to another runner.
const USING: &str = r#"using() { "$@" > /work/used.now && mv /work/used.now /work/used; }"#;
/// What cargo says of the files that it uses goes to the standard output, and all else where it always goes.
pub const MESSAGES: &str = "--message-format=json-render-diagnostics";

/// The toolchain's container, without the sources.
///
/// # Errors
/// When the toolchain cannot be had.
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
        // The whole of cargo's home: the lock that keeps two cargos apart lies at its top, beside the registry.
        .with_mounted_cache(CARGO_HOME, home)
        .with_env_variable("CARGO_HOME", CARGO_HOME)
        // The official image has neither clippy nor rustfmt.
        .with_exec(vec![
            "sh",
            "-c",
            "{ cargo clippy --version && cargo fmt --version; } >/dev/null 2>&1 || rustup component add clippy rustfmt",
        ]))
}

/// The toolchain's container without any volume.
///
/// # Errors
/// When the toolchain image cannot be pulled, nor a stand-in for it be made.
pub async fn bare_toolchain<K: Kind>(
    step: &StepContext<'_, K>,
    platform: Option<&Platform>,
) -> Result<Container, Failure> {
    let image = step.run.toolbox.rust().await?;
    Ok(image
        .container(step.client(), platform)?
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

/// Does `work` on the sources that this step is given; returns a folder with what it has left, if it leaves something. Where the same
/// work on the same sources has passed before, and the cache of this run remembers it, it is not done again.
///
/// # Errors
/// A gate's failure (exit 1) with the output of the script, or the engine's (exit 3).
pub async fn run<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    work: Work<'_>,
) -> Result<tempfile::TempDir, Failure> {
    let key = key(step, source, &work).await?;
    if let Some(left) = step.passed_before(key.as_ref()).await {
        return Ok(left);
    }
    let done = execute(step, source, &work).await?;
    let left = tempfile::tempdir().or_environment("cannot make a folder for the binary")?;
    if work.leaves {
        done.directory("/out")
            .export(left.path().display().to_string())
            .await
            .map_err(|error| EngineError::from(error).into_environment("cannot get the binary"))?;
    }
    if let Some(key) = key {
        step.passes(key, left.path())?;
    }
    Ok(left)
}

/// All that the outcome of `work` depends on; nothing where something of it has no exact name, or nobody would remember.
async fn key<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    work: &Work<'_>,
) -> Result<Option<Key>, Failure> {
    let run = step.run;
    let Some(services) = work.services.map_or(Some(""), Services::identity) else {
        return Ok(None);
    };
    // The distribution's packages are those of the day.
    if run.cache.is_none() || !run.settings.packages_of(step.step).is_empty() {
        return Ok(None);
    }
    let given = source.given(step.step, &run.settings.paths)?;
    Ok(Some(
        Key::of(step.step)
            .with("toolchain", run.environment(step.step).await?)
            .with("sources", &given.digest)
            .with("folder", run.settings.folder.display())
            .with("script", script(work))
            .with("env", format_args!("{:?}", work.env))
            .with("program", work.program.as_ref().map_or("", |it| it.version))
            .with("services", services),
    ))
}

fn script(work: &Work<'_>) -> String {
    format!("{SYNC}\n{USING}\ncd \"$1\"\n{}", work.script)
}

/// Does `work` in any case.
///
/// # Errors
/// A gate's failure (exit 1) with the output of the script, or the engine's (exit 3).
pub async fn execute<K: Kind>(
    step: &StepContext<'_, K>,
    source: &Source<'_>,
    work: &Work<'_>,
) -> Result<Container, Failure> {
    let run = step.run;
    let client = step.client();
    let given = source.given(step.step, &run.settings.paths)?;
    let volume = run.volume_of(Place::Work(step.step)).await?;
    let toolchain = toolchain_for(step, run.platform_of(step.step)).await?;
    tokio::join!(run.bring(Place::Cargo), run.bring(Place::Work(step.step)));
    let folder = Path::new(SOURCES).join(&run.settings.folder);
    let container = with_packages(&toolchain, &run.settings.packages_of(step.step))
        .with_mounted_directory(
            CHECKOUT,
            client.host().directory(given.path.display().to_string()),
        )
        .with_mounted_cache("/work", client.cache_volume(volume))
        .with_env_variable("CARGO_TARGET_DIR", "/work/target");
    let mut container = with_env(&container, &work.env);
    if let Some(program) = &work.program {
        container = container.with_mounted_file(program.path, program.file.clone());
    }
    if run.cache.is_some() {
        // What that would make is not carried to the next runner.
        container = container.with_env_variable("CARGO_INCREMENTAL", "0");
    }
    if let Some(services) = work.services {
        container = services.bind(&container);
    }
    let done = container.with_exec(vec![
        "sh",
        "-c",
        &script(work),
        "sh",
        &folder.display().to_string(),
    ]);
    let ends = async {
        let ended = done.sync().await;
        ended.map_err(|error| judge(step, error.into(), work.failed, work.hint))
    };
    match work.services {
        Some(services) => services.beside(ends).await?,
        None => ends.await?,
    };
    Ok(done)
}

/// What cargo says when it is not the code that is at fault, and what that means.
const SURROUNDINGS: [(&str, &str); 8] = [
    ("No space left on device", "the engine's disk is full"),
    ("database or disk is full", "the engine's disk is full"),
    ("Could not resolve host", "the network failed"),
    ("Couldn't resolve host", "the network failed"),
    ("download of config.json failed", "the network failed"),
    ("failed to download from", "the network failed"),
    ("spurious network error", "the network failed"),
    (
        "runc run failed",
        "the engine could not start its container",
    ),
];
/// What is said when the code is at fault, whatever words its tests print.
const FAULTS: [&str; 3] = [
    "test result: FAILED",
    "error: could not compile",
    "panicked at",
];

/// What around the code failed, as far as `output` tells.
fn surroundings(output: &str) -> Option<&'static str> {
    let (_, what) = SURROUNDINGS
        .iter()
        .find(|(sign, _)| output.contains(sign))?;
    (!FAULTS.iter().any(|fault| output.contains(fault))).then_some(what)
}

/// A failed command is the gate's failure; everything else is the surroundings'.
pub fn judge<K: Kind>(
    step: &StepContext<'_, K>,
    error: EngineError,
    failed: &str,
    hint: &str,
) -> Failure {
    match error {
        EngineError::Exec { exit_code, output } => match surroundings(&output) {
            Some(what) => Failure::environment(format!("{}: {what}", step.step))
                .output(output)
                .hint("Run again when that is mended; `ci doctor` tells what there is."),
            None => Failure::new(
                ExitCode::GateFailed,
                format!("{failed} (exit code {exit_code})"),
            )
            .output(output)
            .hint(if step.run.settings.paths.contains_key(&step.step) {
                format!(
                    "{hint} Here it has only the files of paths.{} in {FILE}.",
                    step.step
                )
            } else {
                hint.to_owned()
            }),
        },
        other => other.into_environment(&format!("step {}", step.step)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_not_the_fault_of_the_code_but_a_test_about_one_is() {
        assert_eq!(
            surroundings("error: No space left on device (os error 28)"),
            Some("the engine's disk is full")
        );
        assert_eq!(
            surroundings("No space left on device\ntest result: FAILED. 1 passed"),
            None
        );
        assert_eq!(surroundings("error[E0308]: mismatched types"), None);
    }
}
