//! Container runtimes: finds one that can run Dagger's engine, and loads images into it.
//!
//! Dagger's CLI only checks the version of a runtime. If the engine's image cannot be pulled or its container cannot start, the
//! CLI waits forever.

use std::path::Path;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::session::{Endpoint, Session};
use super::telemetry::Telemetry;
use super::{cli, disk};
use common::failure::{Failure, OrFail};
use common::pins;
use common::progress::Progress;
use common::provision;

/// How long a runtime may take to answer its liveness check.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a registry may take until its first answer.
const REGISTRY: Duration = Duration::from_secs(10);
/// How long a pull may print nothing: a large layer on a slow connection is one line of output.
const STALLED: Duration = Duration::from_secs(600);
/// How long a running runtime may take to answer a query; a busy disk slows it down.
const QUERY: Duration = Duration::from_secs(30);
/// How long the trial container may take: some storage drivers copy the whole image for it.
const TRIAL: Duration = Duration::from_secs(60);

/// The hint for a container runtime that cannot run an engine.
pub(crate) const FIX: &str = "Start a container runtime that can pull Dagger's engine and run privileged containers, or use --engine embedded or \
     --engine URL.";

/// A container runtime that Dagger's CLI drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Runtime {
    /// The name of the runtime's program.
    pub name: &'static str,
    /// The CLI's name for the runtime.
    driver: &'static str,
    /// The arguments of a command that fails if the program is installed but its daemon does not run.
    liveness_check: &'static [&'static str],
    /// Apple's runtime starts a virtual machine for each container and has no such option.
    privileged: bool,
}

/// All supported runtimes, in the CLI's order.
const RUNTIMES: [Runtime; 5] = [
    like_docker("docker"),
    Runtime {
        name: "container",
        driver: "apple",
        liveness_check: &["system", "status"],
        privileged: false,
    },
    like_docker("podman"),
    like_docker("finch"),
    like_docker("nerdctl"),
];

const fn like_docker(name: &'static str) -> Runtime {
    Runtime {
        name,
        driver: name,
        liveness_check: &["version"],
        privileged: true,
    }
}

/// Whether a runtime can run an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// The runtime runs the engine, or has run a trial container.
    Ready,
    /// The runtime must pull the engine's image before it can be tested.
    NotPulled,
}

/// Finds the first runtime that can run an engine, and starts the engine in it.
///
/// # Errors
/// When no runtime can; the message says why for each.
pub(crate) async fn find_usable(progress: &dyn Progress) -> Result<Runtime, String> {
    find_first(async |runtime| {
        runtime.check(Some(progress)).await?;
        runtime.start(progress).await
    })
    .await
    .map(|(runtime, ())| runtime)
}

/// Finds the runtime that [`find_usable`] would use, without changing anything.
///
/// # Errors
/// When no runtime can run an engine; the message says why for each.
pub(crate) async fn examine() -> Result<(Runtime, Readiness), String> {
    find_first(async |runtime| runtime.check(None).await).await
}

/// Finds a local container runtime into which an image can be loaded.
///
/// # Errors
/// When no runtime answers (exit code 3).
pub(crate) async fn find_loader() -> Result<Runtime, Failure> {
    find_first(async |runtime| runtime.check_alive().await)
        .await
        .map(|(runtime, ())| runtime)
        .map_err(|why| {
            Failure::environment(format!("cannot load the image: {why}"))
                .hint("Start a container runtime, or write an archive with --output FILE.")
        })
}

/// Returns the first installed runtime that passes `check`, or the reasons why each fails.
async fn find_first<T>(
    check: impl AsyncFn(Runtime) -> Result<T, String>,
) -> Result<(Runtime, T), String> {
    let mut why = Vec::new();
    for runtime in RUNTIMES {
        if provision::find_program(runtime.name).is_none() {
            continue;
        }
        match check(runtime).await {
            Ok(passed) => return Ok((runtime, passed)),
            Err(reason) => why.push(format!("{} {reason}", runtime.name)),
        }
    }
    if why.is_empty() {
        return Err("no container runtime is installed".into());
    }
    Err(why.join("; "))
}

impl Runtime {
    /// The URL with which the CLI starts the engine in this runtime only.
    #[must_use]
    pub(crate) fn runner_host(&self) -> String {
        format!("image+{}://{}", self.driver, pins::DAGGER_IMAGE)
    }

    /// How to connect to the engine in this runtime.
    ///
    /// # Errors
    /// When Dagger's CLI can be neither downloaded nor built (exit code 3).
    pub(crate) async fn endpoint(&self, progress: &dyn Progress) -> Result<Endpoint, Failure> {
        Ok(Endpoint::Cli {
            cli: cli::path(progress).await?,
            runner_host: Some(self.runner_host()),
            config_home: disk::config_home()?,
            patience: Duration::from_secs(120),
        })
    }

    /// Loads the OCI archive of an image and tags it as `name`.
    ///
    /// # Errors
    /// When the runtime cannot load or tag the image (exit code 3).
    pub(crate) async fn load(&self, archive: &Path, name: &str) -> Result<(), Failure> {
        let mut load = provision::command(self.name);
        load.args(["image", "load", "--input"]).arg(archive);
        let output = provision::output(load, &format!("{} image load", self.name)).await?;
        let loaded = match parse_loaded(&output) {
            Some(loaded) => loaded.to_owned(),
            None => crate::image::archive::read_config_digest(archive)
                .or_environment("cannot read the archive")?,
        };
        let mut tag = provision::command(self.name);
        tag.args(["image", "tag", &loaded, name]);
        provision::output(tag, &format!("{} image tag", self.name)).await?;
        Ok(())
    }

    /// Whether this runtime can run an engine. Without `progress`, nothing is pulled.
    async fn check(self, progress: Option<&dyn Progress>) -> Result<Readiness, String> {
        self.check_alive().await?;
        if self.is_running_engine().await {
            return Ok(Readiness::Ready);
        }
        if !self.has_image().await? {
            match progress {
                Some(progress) => self.pull(progress).await?,
                None => return Ok(Readiness::NotPulled),
            }
        }
        self.run_trial_container().await?;
        Ok(Readiness::Ready)
    }

    async fn check_alive(self) -> Result<(), String> {
        match self.run(self.liveness_check, ANSWER).await {
            Ok(_) => Ok(()),
            Err(CommandError::Failed(output)) => Err(format!(
                "is installed, but not usable ({})",
                error_line(&output)
            )),
            Err(CommandError::TimedOut) => Err(format!(
                "is installed, but did not answer within {} s",
                ANSWER.as_secs()
            )),
        }
    }

    async fn is_running_engine(self) -> bool {
        match self.inspect_engine().await {
            // A container in a crash loop is briefly running, too.
            Some(engine) if engine.running && engine.restarts > 0 => {
                tokio::time::sleep(Duration::from_secs(2)).await;
                self.inspect_engine().await == Some(engine)
            }
            engine => engine.is_some_and(|engine| engine.running),
        }
    }

    /// Returns the state of the engine's container, if it exists.
    async fn inspect_engine(self) -> Option<Container> {
        let output = self
            .run(&["inspect", &container_name()], QUERY)
            .await
            .ok()?;
        Container::parse(&output)
    }

    /// Lets the CLI start the engine if it does not run yet. The CLI alone would wait forever for an engine in a crash loop.
    async fn start(self, progress: &dyn Progress) -> Result<(), String> {
        if self.is_running_engine().await {
            return Ok(());
        }
        let before = self.inspect_engine().await;
        let opening = async {
            let endpoint = self.endpoint(progress).await?;
            Session::open(&endpoint, &Telemetry::start().await?).await
        };
        tokio::select! {
            opened = opening => match opened {
                Ok(session) => {
                    session.close().await;
                    Ok(())
                }
                Err(failure) => Err(format!("cannot start the engine ({failure})")),
            },
            () = self.wait_for_crash_loop(before.map_or(0, |engine| engine.restarts)) => {
                let name = container_name();
                let last = match self.run(&["logs", "--tail", "1", &name], QUERY).await {
                    Ok(output) | Err(CommandError::Failed(output)) => output,
                    Err(CommandError::TimedOut) => String::new(),
                };
                // The runtime would restart it forever.
                if before.is_none() {
                    let _ = self.run(&["rm", "--force", "--volumes", &name], QUERY).await;
                }
                Err(format!("starts the engine, but it exits immediately ({})", error_line(&last)))
            }
        }
    }

    /// Returns when the engine's container has been restarted three times.
    async fn wait_for_crash_loop(self, before: u64) {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let restarts = self
                .inspect_engine()
                .await
                .map_or(0, |engine| engine.restarts);
            if restarts >= before + 3 {
                return;
            }
        }
    }

    async fn has_image(self) -> Result<bool, String> {
        match self
            .run(&["image", "inspect", pins::DAGGER_IMAGE], QUERY)
            .await
        {
            Ok(_) => Ok(true),
            Err(CommandError::Failed(output)) => {
                let lower = output.to_lowercase();
                // The CLI matches the same messages.
                let absent = ["no such image", "image not known"];
                if !self.privileged || absent.iter().any(|word| lower.contains(word)) {
                    Ok(false)
                } else {
                    Err(format!(
                        "cannot inspect its images ({})",
                        error_line(&output)
                    ))
                }
            }
            Err(CommandError::TimedOut) => Err(format!(
                "did not inspect its images within {} s",
                QUERY.as_secs()
            )),
        }
    }

    /// Pulls the engine's image, with a short limit until the registry answers and a long one while the pull progresses.
    async fn pull(self, progress: &dyn Progress) -> Result<(), String> {
        let image = pins::DAGGER_IMAGE;
        let what = format!("pulling {image} with {} (the first time only)", self.name);
        let begun = Instant::now();
        progress.begin(&what);
        let watched = PullProgress {
            progress,
            last: Mutex::new(None),
        };
        let mut pull = provision::command(self.name);
        pull.args(["image", "pull", image]);
        let mut pulling = pin!(provision::run(pull, "the pull", &watched));
        loop {
            let limit = watched.limit(begun);
            match timeout_at(limit, &mut pulling).await {
                Ok(Ok(())) => {
                    progress.done(&what, begun.elapsed());
                    return Ok(());
                }
                Ok(Err(failure)) => {
                    progress.gave_up(&what);
                    let output = failure.output.unwrap_or_default();
                    return Err(format!("cannot pull {image} ({})", error_line(&output)));
                }
                Err(_) if watched.limit(begun) > limit => {}
                Err(_) => {
                    progress.gave_up(&what);
                    let silence = limit.duration_since(watched.last().unwrap_or(begun));
                    return Err(format!(
                        "cannot pull {image} (no progress for {} s)",
                        silence.as_secs()
                    ));
                }
            }
        }
    }

    /// Runs a privileged container for a moment, as the CLI would: some machines do not permit it.
    async fn run_trial_container(self) -> Result<(), String> {
        let image = pins::DAGGER_IMAGE;
        let mut run = vec!["run", "--rm", "--entrypoint", "true"];
        if self.privileged {
            run.push("--privileged");
        }
        run.push(image);
        match self.run(&run, TRIAL).await {
            Ok(_) => Ok(()),
            Err(CommandError::Failed(output)) => Err(format!(
                "cannot run a privileged container of {image} ({})",
                error_line(&output)
            )),
            Err(CommandError::TimedOut) => Err(format!(
                "did not run a privileged container of {image} within {} s",
                TRIAL.as_secs()
            )),
        }
    }

    async fn run(self, arguments: &[&str], limit: Duration) -> Result<String, CommandError> {
        let mut command = provision::command(self.name);
        command.args(arguments);
        match timeout(limit, provision::output(command, self.name)).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(failure)) => Err(CommandError::Failed(
                failure.output.unwrap_or(failure.message),
            )),
            Err(_) => Err(CommandError::TimedOut),
        }
    }
}

enum CommandError {
    /// The output of a command that failed.
    Failed(String),
    TimedOut,
}

/// The name that the CLI gives the engine's container.
fn container_name() -> String {
    format!("dagger-engine-v{}", pins::DAGGER)
}

/// Extracts the line with the error: runtimes print advice below it.
fn error_line(output: &str) -> &str {
    let mut lines = output
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && *line != "[]");
    lines
        .clone()
        .find(|line| line.to_lowercase().contains("error"))
        .or_else(|| lines.next_back())
        .unwrap_or("no error message")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Container {
    running: bool,
    /// How often the runtime has restarted it; 0 if the runtime does not count restarts.
    restarts: u64,
}

impl Container {
    /// Parses the output of `inspect`, in Docker's or Apple's format.
    fn parse(text: &str) -> Option<Self> {
        let containers: serde_json::Value = serde_json::from_str(text).ok()?;
        let state = containers
            .pointer("/0/State/Status")
            .or_else(|| containers.pointer("/0/status"))?;
        Some(Self {
            running: state == "running",
            restarts: containers
                .pointer("/0/RestartCount")
                .and_then(serde_json::Value::as_u64)
                .unwrap_or_default(),
        })
    }
}

/// Parses the output of `image load` for the ID or the name of the loaded image; the format depends on the runtime.
fn parse_loaded(output: &str) -> Option<&str> {
    output
        .lines()
        .rev()
        .find(|line| line.contains("Loaded image"))
        .and_then(|line| line.split_whitespace().next_back())
}

/// Passes on the output of a pull and records when it last progressed.
struct PullProgress<'a> {
    progress: &'a dyn Progress,
    last: Mutex<Option<Instant>>,
}

impl PullProgress<'_> {
    fn last(&self) -> Option<Instant> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self, begun: Instant) -> Instant {
        self.last().map_or(begun + REGISTRY, |last| last + STALLED)
    }
}

impl Progress for PullProgress<'_> {
    fn begin(&self, what: &str) {
        self.progress.begin(what);
    }

    fn line(&self, what: Option<&str>, line: &str) {
        if !is_attempt(line) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        self.progress.line(what, line);
    }

    fn done(&self, what: &str, took: Duration) {
        self.progress.done(what, took);
    }

    fn gave_up(&self, what: &str) {
        self.progress.gave_up(what);
    }

    fn notice(&self, text: &str) {
        self.progress.notice(text);
    }
}

/// Whether the line is printed before the registry answers: podman prints the first and the last of these, nerdctl the others.
fn is_attempt(line: &str) -> bool {
    ["Trying to pull", "resolving", "elapsed:", "retrying in"]
        .iter()
        .any(|words| line.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runner_host_names_the_runtime_and_the_image() {
        let hosts: Vec<_> = RUNTIMES.iter().map(Runtime::runner_host).collect();
        assert_eq!(hosts[0], format!("image+docker://{}", pins::DAGGER_IMAGE));
        assert_eq!(hosts[1], format!("image+apple://{}", pins::DAGGER_IMAGE));
    }

    #[test]
    fn extracts_the_error_line_without_the_advice_below_it() {
        let docker = "docker: Error response from daemon: unable to apply caps: unknown.\n\nRun 'docker run --help' for more information\n";
        assert!(error_line(docker).ends_with("unable to apply caps: unknown."));
        assert_eq!(
            error_line("[]\nCannot connect to the daemon\n"),
            "Cannot connect to the daemon"
        );
        assert!(!error_line("").is_empty());
    }

    /// The parts that are in progress.
    #[derive(Default)]
    struct Open(Mutex<Vec<String>>);

    impl Open {
        fn remove(&self, what: &str) {
            self.0.lock().unwrap().retain(|open| open != what);
        }
    }

    impl Progress for Open {
        fn begin(&self, what: &str) {
            self.0.lock().unwrap().push(what.to_owned());
        }
        fn line(&self, _: Option<&str>, _: &str) {}
        fn done(&self, what: &str, _: Duration) {
            self.remove(what);
        }
        fn gave_up(&self, what: &str) {
            self.remove(what);
        }
        fn notice(&self, _: &str) {}
    }

    #[tokio::test]
    async fn a_pull_that_fails_is_no_longer_shown() {
        let runtime = Runtime {
            name: "false",
            ..RUNTIMES[0]
        };
        let open = Open::default();
        let why = runtime.pull(&open).await.unwrap_err();
        assert!(why.contains("cannot pull"), "{why}");
        assert_eq!(*open.0.lock().unwrap(), [""; 0]);
    }

    #[test]
    fn restarting_container_does_not_count_as_running() {
        for text in [
            r#"[{"State": {"Status": "running"}, "RestartCount": 0}]"#,
            r#"[{"status": "running"}]"#,
        ] {
            assert!(Container::parse(text).is_some_and(|container| container.running));
        }
        let restarting =
            r#"[{"State": {"Status": "restarting", "Running": true}, "RestartCount": 4}]"#;
        let container = Container::parse(restarting).expect("a container");
        assert!(!container.running && container.restarts == 4);
        assert!(Container::parse("[]").is_none() && Container::parse("").is_none());
    }

    #[test]
    fn parses_the_loaded_image_of_each_runtime() {
        for (output, image) in [
            ("Loaded image ID: sha256:abc\n", Some("sha256:abc")),
            (
                "Getting image source signatures\nLoaded image: localhost/x:1\n",
                Some("localhost/x:1"),
            ),
            (
                "unpacking overlayfs@sha256:abc...done\nLoaded image: overlayfs@sha256:abc\n",
                Some("overlayfs@sha256:abc"),
            ),
            ("", None),
        ] {
            assert_eq!(parse_loaded(output), image);
        }
    }

    #[test]
    fn only_answers_of_the_registry_count_as_progress() {
        for line in [
            "Trying to pull x...",
            "x: resolving |---|",
            "elapsed: 0.1 s total: 0.0 B (0.0 B/s)",
        ] {
            assert!(is_attempt(line), "{line}");
        }
        for line in [
            "v0.19.10: Pulling from engine",
            "Getting image source signatures",
            "layer-sha256:abc: downloading",
        ] {
            assert!(!is_attempt(line), "{line}");
        }
    }
}
