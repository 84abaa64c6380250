//! Runs cargo on the sources, in a container of the toolchain's image.

use std::collections::BTreeMap;
use std::path::Path;

use dagger_sdk::{Container, File};

use super::environment::with_env;
use super::missing;
use super::services::Services;
use crate::engine::graphql::EngineError;
use crate::image::archive::Platform;
use crate::model::config_file::FILE;
use crate::output::{IDLE, SOURCES, WAITING};
use crate::run::context::RunContext;
use crate::run::execution::StepContext;
use crate::runner_cache::key::Key;
use crate::runner_cache::place::Place;
use crate::source::sources::Source;
use crate::trust::kind::Kind;
use common::failure::{ExitCode, Failure, OrFail};
use common::pins;
use common::scratch;

/// The mount point of the run's sources.
const CHECKOUT: &str = "/checkout";
/// Cargo's home, with its downloads.
const CARGO_HOME: &str = "/cargo";

/// Synchronizes `/work/src`, which is in a cache volume, with `/checkout`, and changes a file's modification time only if its
/// content changed.
///
/// Cargo recompiles by modification times. Those of a checkout are meaningless (git, an archive or `touch` sets them), so cargo
/// works on this copy: unchanged files keep their time, and changed files get the current time, even if they change back. All
/// files get the current time if cargo would not notice the change: if a file was added or removed, or is neither Rust source
/// nor documentation (macros that embed directories, migrations or templates may have read it), if a symbolic link has a new
/// target, or if a synchronization was interrupted. Links are compared with a list, because saved caches contain no links.
/// After any other change the build scripts in `BUILD_SCRIPTS` run again, because they may not declare everything that they read.
///
/// It is a single process whose memory does not grow with the number of files. Perl is part of every Debian.
const SYNC: &str = r#"
use strict;
my ($from, $to) = ("/checkout", "/work/src");
my ($all, $some) = (-e "/work/unfinished", 0);
sub fail { die "cannot synchronize the sources: @_: $!\n" }
sub touch { open(my $file, ">>", $_[0]) or fail($_[0]) }
# The kind of a file: documentation, a file whose changes cargo notices by itself, or other.
sub kind {
    my $path = "./$_[0]";
    return "documentation" if $path =~ m{/(README|CHANGELOG|LICENSE)[^/]*$} or $path =~ m{^\./(docs|\.github)/};
    return "cargo" if $path =~ m{\.rs$|/Cargo\.(toml|lock)$};
    return "documentation" if $path =~ m{^\./[^/]*\.md$};
    return "other";
}
sub entries {
    opendir(my $folder, $_[0]) or fail($_[0]);
    return grep { $_ ne "." && $_ ne ".." } readdir $folder;
}
sub remove {
    my ($path) = @_;
    if (-d "$to/$path" && !-l "$to/$path") {
        remove("$path/$_") for entries("$to/$path");
        rmdir "$to/$path" or fail($path);
    } else {
        $all = 1 if kind($path) ne "documentation";
        unlink "$to/$path" or fail($path);
    }
}
sub is_same {
    my ($left, $right) = @_;
    my (@left, @right) = (stat $left);
    @right = lstat $right;
    return 0 unless @right && -f _ && $left[7] == $right[7] && ($left[2] & 0777) == ($right[2] & 0777);
    open(my $one, "<:raw", $left) or fail($left);
    open(my $two, "<:raw", $right) or fail($right);
    while (1) {
        my $read = sysread $one, my $first, 262144;
        fail($left) unless defined $read;
        my $have = 0;
        my $second = "";
        while ($have < $read) {
            my $more = sysread $two, $second, $read - $have, $have;
            fail($right) unless defined $more;
            return 0 if $more == 0;
            $have += $more;
        }
        return 1 if $read == 0;
        return 0 if $first ne $second;
    }
}
sub copy {
    my ($path) = @_;
    my ($source, $copy) = ("$from/$path", "$to/$path");
    return if is_same($source, $copy);
    my $kind = kind($path);
    if ($kind eq "other" or $kind eq "cargo" && !-e $copy) { $all = 1 } else { $some = 1 }
    my $new = "$copy.new-from-checkout";
    open(my $in, "<:raw", $source) or fail($source);
    open(my $out, ">:raw", $new) or fail($new);
    while (my $read = sysread $in, my $buffer, 262144) { print $out $buffer or fail($new) }
    close $out or fail($new);
    chmod((stat $source)[2] & 07777, $new) or fail($new);
    rename $new, $copy or fail($copy);
}
my $links = "";
sub synchronize {
    my ($below) = @_;
    my @names = sort(entries("$from/$below"));
    my %known = map { $_ => 1 } @names;
    for my $name (entries("$to/$below")) {
        remove("$below$name") unless $known{$name};
    }
    for my $name (@names) {
        my $path = "$below$name";
        my ($source, $copy) = ("$from/$path", "$to/$path");
        if (-l $source) {
            my $target = readlink $source;
            $links .= "$path\t$target\0";
            next if -l $copy && readlink($copy) eq $target;
            remove($path) if -e $copy || -l $copy;
            symlink $target, $copy or fail($copy);
        } elsif (-d _) {
            remove($path) if -l $copy || -e _ && !-d _;
            mkdir $copy unless -d $copy;
            synchronize("$path/");
        } else {
            remove($path) if -l $copy || -d _;
            copy($path);
        }
    }
}
sub touch_all {
    my ($below) = @_;
    for my $name (entries("$to/$below")) {
        my $path = "$below$name";
        if (-l "$to/$path") { next }
        if (-d _) { touch_all("$path/") } else { utime undef, undef, "$to/$path" or fail($path) }
    }
}
mkdir $to;
touch("/work/unfinished");
synchronize("");
my $before = "";
if (open(my $file, "<:raw", "/work/links")) { local $/; $before = <$file> }
$all = 1 if $links ne $before;
if ($all) { touch_all("") }
elsif ($some) { for my $script (split /\n/, $ENV{BUILD_SCRIPTS}) { utime undef, undef, "$to/$script" if -f "$to/$script" } }
open(my $list, ">:raw", "/work/links.now") or fail("/work/links.now");
print $list $links;
close $list or fail("/work/links.now");
rename "/work/links.now", "/work/links" or fail("/work/links");
unlink "/work/unfinished";
"#;

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
unset SYNC BUILD_SCRIPTS
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
) &
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
    pub hint: &'a str,
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

/// A container of the toolchain's image without volumes.
///
/// # Errors
/// When the toolchain's image cannot be pulled and its stand-in cannot be provisioned (exit code 3).
pub async fn bare_toolchain<K: Kind>(
    step: &StepContext<'_, K>,
    platform: Option<&Platform>,
) -> Result<Container, Failure> {
    let image = step
        .waiting("the toolchain's image", step.run.toolbox.rust())
        .await?;
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
    let key = key(step, source, &work).await?;
    if let Some(left) = step.passed_before(key.as_ref()).await {
        return Ok(left);
    }
    let done = execute(step, source, &work).await?;
    let left = scratch::folder().or_environment("cannot create a directory for the results")?;
    if work.writes_out {
        done.directory("/out")
            .export(left.path().display().to_string())
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
    if run.cache.is_none() || !run.settings.packages_of(step.step).is_empty() {
        return Ok(None);
    }
    let sources = source.for_step(step.step, &run.settings.paths)?;
    Ok(Some(
        Key::of(step.step)
            .with("toolchain", run.environment(step.step).await?)
            .with("sources", &sources.digest)
            .with("folder", run.settings.folder.display())
            .with("script", script(work))
            .with("env", format_args!("{:?}", work.env))
            .with("program", work.program.as_ref().map_or("", |it| it.version))
            .with("services", services),
    ))
}

fn script(work: &Work<'_>) -> String {
    let prelude = PRELUDE.replace("@waiting@", WAITING);
    let watch = WATCH.replace("@idle@", IDLE);
    format!("{prelude}\n{watch}\n{USING}\ncd \"$1\"\n{}", work.script)
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
                step.complete_log(&(messages + &output)).await;
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
    let volume = run.volume_of(Place::Work(step.step)).await?;
    let toolchain = toolchain_for(step, run.platform_of(step.step)).await?;
    tokio::join!(
        run.restore(Place::Cargo),
        run.restore(Place::Work(step.step))
    );
    let container = with_packages(&toolchain, &run.settings.packages_of(step.step))
        .with_mounted_directory(
            CHECKOUT,
            client.host().directory(sources.path.display().to_string()),
        )
        .with_mounted_cache("/work", client.cache_volume(volume))
        .with_env_variable("CARGO_TARGET_DIR", "/work/target")
        .with_env_variable("SYNC", SYNC)
        .with_env_variable("BUILD_SCRIPTS", build_scripts(run));
    let mut container = with_env(&container, &work.env);
    if let Some(program) = &work.program {
        container = container.with_mounted_file(program.path, program.file.clone());
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
const ENVIRONMENT_FAILURES: [(&str, &str); 8] = [
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

/// A failed command fails the gate (exit code 1), unless its output shows that something outside of the code failed (exit
/// code 3).
async fn to_failure<K: Kind>(
    step: &StepContext<'_, K>,
    error: EngineError,
    failed: &str,
    hint: &str,
) -> Failure {
    let (exit_code, output) = match error {
        EngineError::Exec { exit_code, output } => (exit_code, step.complete_log(&output).await),
        other => return other.into_environment(&format!("step {}", step.step)),
    };
    match environment_failure(&output) {
        Some(cause) => Failure::environment(format!("{}: {cause}", step.step))
            .output(output)
            .hint("Fix the cause and run again; `ci doctor` checks this machine's setup."),
        None => Failure::new(
            ExitCode::GateFailed,
            format!("{failed} (exit code {exit_code})"),
        )
        .hint(hint_for(step, &output, hint))
        .output(output),
    }
}

/// The hint for a failed gate: what the container lacks, or else the step's own hint, `usual`.
fn hint_for<K: Kind>(step: &StepContext<'_, K>, output: &str, usual: &str) -> String {
    // The output of a test may contain any text.
    let tests_ran = output.contains("\ntest result: ");
    if let Some(missing) = missing::at_build(output).filter(|_| !tests_ran) {
        return missing;
    }
    if step.run.settings.paths.contains_key(&step.step) {
        return format!(
            "{usual} This step only has the files that paths.{} in {FILE} selects.",
            step.step
        );
    }
    usual.to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A directory with `checkout`, and the `work` of cargo.
    struct Synced(tempfile::TempDir);

    impl Synced {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("checkout")).unwrap();
            std::fs::create_dir(folder.path().join("work")).unwrap();
            Self(folder)
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, content: &str) {
            let file = self.path("checkout").join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }

        /// Synchronizes after all files got an old time; returns the files with a new time, and asserts that all have the right
        /// content.
        fn run(&self) -> Vec<String> {
            let old = SystemTime::now() - Duration::from_hours(1);
            let files = |top: &Path| -> Vec<_> {
                let entries = walkdir::WalkDir::new(top).sort_by_file_name().into_iter();
                let entries = entries.map(Result::unwrap);
                entries
                    .filter(|entry| !entry.file_type().is_dir())
                    .collect()
            };
            let to = self.path("work/src");
            if to.exists() {
                for entry in files(&to).iter().filter(|entry| !entry.path_is_symlink()) {
                    let file = std::fs::File::options()
                        .append(true)
                        .open(entry.path())
                        .unwrap();
                    file.set_modified(old).unwrap();
                }
            }
            let script = SYNC
                .replace("/checkout", self.path("checkout").to_str().unwrap())
                .replace("/work/", &format!("{}/", self.path("work").display()));
            let output = std::process::Command::new("perl")
                .args(["-we", &script])
                .env("BUILD_SCRIPTS", "build.rs\nnone/build.rs")
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && stderr.is_empty(), "{stderr}");
            let all = files(&to);
            let names = |top: &Path| -> Vec<_> {
                let files = files(top).into_iter();
                files
                    .map(|it| it.path().strip_prefix(top).unwrap().to_owned())
                    .collect()
            };
            assert_eq!(names(&self.path("checkout")), names(&to));
            let mut touched = Vec::new();
            for entry in all {
                let name = entry.path().strip_prefix(&to).unwrap();
                let from = self.path("checkout").join(name);
                if entry.path_is_symlink() {
                    assert_eq!(
                        std::fs::read_link(entry.path()).unwrap(),
                        std::fs::read_link(from).unwrap()
                    );
                    continue;
                }
                assert_eq!(
                    std::fs::read(entry.path()).unwrap(),
                    std::fs::read(from).unwrap()
                );
                if entry.metadata().unwrap().modified().unwrap() > old + Duration::from_mins(1) {
                    touched.push(name.to_str().unwrap().to_owned());
                }
            }
            touched
        }
    }

    #[test]
    fn synchronizing_touches_what_cargo_must_look_at_again() {
        let synced = Synced::new();
        synced.write("Cargo.toml", "one");
        synced.write("build.rs", "one");
        synced.write("src/main.rs", "one");
        synced.write("src/build.rs", "a module");
        synced.write("README.md", "one");
        synced.write("src/page.html", "one");
        let all = [
            "Cargo.toml",
            "README.md",
            "build.rs",
            "src/build.rs",
            "src/main.rs",
            "src/page.html",
        ];
        assert_eq!(synced.run(), all);
        assert_eq!(synced.run(), [""; 0], "nothing changed");
        synced.write("README.md", "two");
        assert_eq!(synced.run(), ["README.md", "build.rs"]);
        synced.write("src/main.rs", "two");
        assert_eq!(synced.run(), ["build.rs", "src/main.rs"]);
        synced.write("src/main.rs", "TWO");
        assert_eq!(synced.run(), ["build.rs", "src/main.rs"], "the same size");
        synced.write("src/page.html", "two");
        assert_eq!(synced.run(), all, "a file that a macro may have read");
        std::fs::remove_file(synced.path("checkout/README.md")).unwrap();
        assert_eq!(synced.run(), [""; 0], "documentation goes");
        synced.write("src/new.rs", "new");
        assert_eq!(synced.run().len(), 6, "a file comes");
        std::fs::remove_file(synced.path("checkout/src/new.rs")).unwrap();
        assert_eq!(synced.run().len(), 5, "a file goes");
        std::fs::write(synced.path("work/unfinished"), "").unwrap();
        assert_eq!(synced.run().len(), 5, "an interrupted synchronization");
        assert_eq!(synced.run(), [""; 0]);
    }

    #[cfg(unix)]
    #[test]
    fn synchronizing_replaces_files_links_and_directories_by_each_other() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let synced = Synced::new();
        let entry = synced.path("checkout/entry");
        synced.write("other/file.rs", "one");
        synced.write("entry", "a file");
        synced.run();
        std::fs::remove_file(&entry).unwrap();
        symlink("other", &entry).unwrap();
        assert_eq!(synced.run(), ["other/file.rs"], "a link instead of a file");
        assert_eq!(synced.run(), [""; 0]);
        std::fs::remove_file(&entry).unwrap();
        symlink("other/file.rs", &entry).unwrap();
        assert_eq!(synced.run(), ["other/file.rs"], "another target");
        std::fs::remove_file(&entry).unwrap();
        synced.write("entry/below/file.rs", "two");
        assert_eq!(synced.run().len(), 2, "a directory instead of a link");
        std::fs::remove_dir_all(&entry).unwrap();
        synced.write("entry", "a file");
        assert_eq!(synced.run().len(), 2, "a file instead of a directory");
        std::fs::set_permissions(&entry, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(synced.run().len(), 2, "another mode");
        let mode = std::fs::metadata(synced.path("work/src/entry"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        // Saved caches have no links.
        std::fs::remove_file(&entry).unwrap();
        symlink("other", &entry).unwrap();
        synced.run();
        std::fs::remove_file(synced.path("work/src/entry")).unwrap();
        assert_eq!(synced.run(), [""; 0], "a link that a saved cache lacks");
    }

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
