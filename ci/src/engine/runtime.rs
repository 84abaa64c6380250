//! Container runtimes: which one is here, whether it can really run Dagger's engine, and how it is given an image.
//!
//! Dagger's CLI asks a runtime for its version and no more. Where the engine's image cannot be had, or its container is
//! refused, the CLI waits for an engine that never comes.

use std::path::Path;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::cli;
use super::session::{Endpoint, Session};
use super::telemetry::Telemetry;
use common::failure::{Failure, OrFail};
use common::pins;
use common::progress::Progress;
use common::provision;

/// How long a runtime may take to say that it is there.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a registry may take to say anything.
const REGISTRY: Duration = Duration::from_secs(10);
/// How long a pull that has begun may be silent: a large layer on a slow line is one line of output.
const STALLED: Duration = Duration::from_secs(600);
/// How long one that is there may take to look something up: a busy disk is no reason to do without it.
const LOOK: Duration = Duration::from_secs(30);
/// How long the trial container may take: some storage copies the whole image for it.
const TRIAL: Duration = Duration::from_secs(60);

/// What somebody can do whose container runtime cannot run an engine.
pub const REMEDY: &str = "Start a container runtime that can pull Dagger's engine and run privileged containers, or take --engine embedded or \
     --engine URL.";

/// A container runtime that Dagger's CLI drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// The name of its program.
    pub name: &'static str,
    /// What the CLI calls it.
    driver: &'static str,
    /// Fails where the program is here and what does its work is not.
    alive: &'static [&'static str],
    /// Apple's runtime has a machine for each container and no such option.
    privileged: bool,
}

/// All of them, in the CLI's own order.
const RUNTIMES: [Runtime; 5] = [
    like_docker("docker"),
    Runtime {
        name: "container",
        driver: "apple",
        alive: &["system", "status"],
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
        alive: &["version"],
        privileged: true,
    }
}

/// What is known of a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It runs an engine, or has shown that it can.
    Ready,
    /// It has to pull the engine's image before anybody can know.
    NotPulled,
}

/// The first runtime that can run an engine. The engine runs in it afterwards.
///
/// # Errors
/// Why none can, in a sentence for people.
pub async fn usable(narrator: &dyn Progress) -> Result<Runtime, String> {
    first(async |runtime| {
        runtime.check(Some(narrator)).await?;
        runtime.start(narrator).await
    })
    .await
    .map(|(runtime, ())| runtime)
}

/// The runtime that [`usable`] would take, as far as that can be known without changing anything.
///
/// # Errors
/// Why none can run an engine, in a sentence for people.
pub async fn examine() -> Result<(Runtime, Readiness), String> {
    first(async |runtime| runtime.check(None).await).await
}

/// The local container runtime that an image can be loaded into.
///
/// # Errors
/// When there is none (exit 3).
pub async fn loader() -> Result<Runtime, Failure> {
    first(async |runtime| runtime.answers().await)
        .await
        .map(|(runtime, ())| runtime)
        .map_err(|why| {
            Failure::environment(format!("the image cannot be loaded: {why}"))
                .hint("Start a container runtime, or take the archive: --output FILE.")
        })
}

/// The first runtime of this machine that passes, or what is wrong with each.
async fn first<T>(
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
        return Err("no container runtime is here".into());
    }
    Err(why.join("; "))
}

impl Runtime {
    /// The URL by which the CLI starts the engine in this runtime and in no other.
    #[must_use]
    pub fn runner_host(&self) -> String {
        format!("image+{}://{}", self.driver, pins::DAGGER_IMAGE)
    }

    /// How the engine in this runtime is reached.
    ///
    /// # Errors
    /// When there is no CLI and none can be made (exit 3).
    pub async fn endpoint(&self, narrator: &dyn Progress) -> Result<Endpoint, Failure> {
        Ok(Endpoint::Cli {
            cli: cli::path(narrator).await?,
            runner_host: Some(self.runner_host()),
            patience: Duration::from_secs(120),
        })
    }

    /// Loads the OCI archive of an image, under `name`.
    ///
    /// # Errors
    /// When the runtime does not take it (exit 3).
    pub async fn load(&self, archive: &Path, name: &str) -> Result<(), Failure> {
        let mut load = provision::command(self.name);
        load.args(["image", "load", "--input"]).arg(archive);
        let said = provision::output(load, &format!("{} image load", self.name)).await?;
        let loaded = match loaded(&said) {
            Some(loaded) => loaded.to_owned(),
            None => crate::image::archive::read_config_digest(archive)
                .or_environment("the archive cannot be read")?,
        };
        let mut tag = provision::command(self.name);
        tag.args(["image", "tag", &loaded, name]);
        provision::output(tag, &format!("{} image tag", self.name)).await?;
        Ok(())
    }

    /// Whether this runtime can run an engine. Without a narrator nothing is pulled.
    async fn check(self, narrator: Option<&dyn Progress>) -> Result<Readiness, String> {
        self.answers().await?;
        if self.runs_the_engine().await {
            return Ok(Readiness::Ready);
        }
        if !self.has_the_image().await? {
            match narrator {
                Some(narrator) => self.pull(narrator).await?,
                None => return Ok(Readiness::NotPulled),
            }
        }
        self.try_the_image().await?;
        Ok(Readiness::Ready)
    }

    async fn answers(self) -> Result<(), String> {
        match self.ask(self.alive, ANSWER).await {
            Ok(_) => Ok(()),
            Err(Said::Refused(words)) => {
                Err(format!("is here, but not usable ({})", reason(&words)))
            }
            Err(Said::Nothing) => Err(format!(
                "is here, but did not answer within {} s",
                ANSWER.as_secs()
            )),
        }
    }

    async fn runs_the_engine(self) -> bool {
        match self.engine().await {
            // Between two of its ends it is a running container, too.
            Some(engine) if engine.running && engine.restarts > 0 => {
                tokio::time::sleep(Duration::from_secs(2)).await;
                self.engine().await == Some(engine)
            }
            engine => engine.is_some_and(|engine| engine.running),
        }
    }

    /// The engine's container, where there is one.
    async fn engine(self) -> Option<Container> {
        let about = self.ask(&["inspect", &container()], LOOK).await.ok()?;
        Container::inspected(&about)
    }

    /// Lets the CLI start the engine, where none runs yet: one that ends again and again would be waited for.
    async fn start(self, narrator: &dyn Progress) -> Result<(), String> {
        if self.runs_the_engine().await {
            return Ok(());
        }
        let before = self.engine().await;
        let opening = async {
            let endpoint = self.endpoint(narrator).await?;
            Session::open(&endpoint, &Telemetry::start().await?).await
        };
        tokio::select! {
            opened = opening => match opened {
                Ok(session) => {
                    session.close().await;
                    Ok(())
                }
                Err(failure) => Err(format!("does not start the engine ({failure})")),
            },
            () = self.fails(before.map_or(0, |engine| engine.restarts)) => {
                let name = container();
                let last = match self.ask(&["logs", "--tail", "1", &name], LOOK).await {
                    Ok(said) | Err(Said::Refused(said)) => said,
                    Err(Said::Nothing) => String::new(),
                };
                // The runtime would go on with it for ever.
                if before.is_none() {
                    let _ = self.ask(&["rm", "--force", "--volumes", &name], LOOK).await;
                }
                Err(format!("starts the engine, which ends at once ({})", reason(&last)))
            }
        }
    }

    /// Returns when the engine's container has been started again for the third time.
    async fn fails(self, before: u64) {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let restarts = self.engine().await.map_or(0, |engine| engine.restarts);
            if restarts >= before + 3 {
                return;
            }
        }
    }

    async fn has_the_image(self) -> Result<bool, String> {
        match self
            .ask(&["image", "inspect", pins::DAGGER_IMAGE], LOOK)
            .await
        {
            Ok(_) => Ok(true),
            Err(Said::Refused(words)) => {
                let lower = words.to_lowercase();
                // The CLI goes by these words, too.
                let absent = ["no such image", "image not known"];
                if !self.privileged || absent.iter().any(|word| lower.contains(word)) {
                    Ok(false)
                } else {
                    Err(format!("cannot show its images ({})", reason(&words)))
                }
            }
            Err(Said::Nothing) => Err("does not answer for its images".into()),
        }
    }

    /// Pulls the engine's image: with little patience until the registry answers, with much as long as it goes on.
    async fn pull(self, narrator: &dyn Progress) -> Result<(), String> {
        let image = pins::DAGGER_IMAGE;
        let what = format!("pulling {image} with {} (the first time only)", self.name);
        let begun = Instant::now();
        narrator.begin(&what);
        let heard = Heard {
            narrator,
            last: Mutex::new(None),
        };
        let mut pull = provision::command(self.name);
        pull.args(["image", "pull", image]);
        let mut pulling = pin!(provision::run(pull, "the pull", &heard));
        loop {
            let limit = heard.limit(begun);
            match timeout_at(limit, &mut pulling).await {
                Ok(Ok(())) => {
                    narrator.done(&what, begun.elapsed());
                    return Ok(());
                }
                Ok(Err(failure)) => {
                    let words = failure.output.unwrap_or_default();
                    return Err(format!("cannot pull {image} ({})", reason(&words)));
                }
                Err(_) if heard.limit(begun) > limit => {}
                Err(_) => {
                    let silence = limit.duration_since(heard.last().unwrap_or(begun));
                    return Err(format!(
                        "cannot pull {image} (nothing came for {} s)",
                        silence.as_secs()
                    ));
                }
            }
        }
    }

    /// Runs a container as the CLI would, for a moment: some machines refuse what the engine needs.
    async fn try_the_image(self) -> Result<(), String> {
        let image = pins::DAGGER_IMAGE;
        let mut run = vec!["run", "--rm", "--entrypoint", "true"];
        if self.privileged {
            run.push("--privileged");
        }
        run.push(image);
        match self.ask(&run, TRIAL).await {
            Ok(_) => Ok(()),
            Err(Said::Refused(words)) => Err(format!(
                "cannot run a privileged container of {image} ({})",
                reason(&words)
            )),
            Err(Said::Nothing) => Err(format!(
                "did not run a privileged container of {image} within {} s",
                TRIAL.as_secs()
            )),
        }
    }

    async fn ask(self, arguments: &[&str], limit: Duration) -> Result<String, Said> {
        let mut command = provision::command(self.name);
        command.args(arguments);
        match timeout(limit, provision::output(command, self.name)).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(failure)) => Err(Said::Refused(failure.output.unwrap_or(failure.message))),
            Err(_) => Err(Said::Nothing),
        }
    }
}

/// What a runtime said that did not do what it was asked for.
enum Said {
    Refused(String),
    Nothing,
}

/// What the CLI calls the container that it makes of it.
fn container() -> String {
    format!("dagger-engine-v{}", pins::DAGGER)
}

/// The line that says what went wrong: runtimes add advice below it.
fn reason(words: &str) -> &str {
    let mut lines = words
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && *line != "[]");
    lines
        .clone()
        .find(|line| line.to_lowercase().contains("error"))
        .or_else(|| lines.next_back())
        .unwrap_or("it failed without a word")
}

/// What is known of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Container {
    running: bool,
    /// How often it has been started again, where the runtime counts that.
    restarts: u64,
}

impl Container {
    /// Reads what `inspect` says, as Docker and those like it have it, or Apple.
    fn inspected(text: &str) -> Option<Self> {
        let about: serde_json::Value = serde_json::from_str(text).ok()?;
        let state = about
            .pointer("/0/State/Status")
            .or_else(|| about.pointer("/0/status"))?;
        Some(Self {
            running: state == "running",
            restarts: about
                .pointer("/0/RestartCount")
                .and_then(serde_json::Value::as_u64)
                .unwrap_or_default(),
        })
    }
}

/// What `image load` has loaded: an id or a name, whatever this runtime and its image store go by.
fn loaded(said: &str) -> Option<&str> {
    said.lines()
        .rev()
        .find(|line| line.contains("Loaded image"))
        .and_then(|line| line.split_whitespace().next_back())
}

/// Hears a pull, and notes when it last got on.
struct Heard<'a> {
    narrator: &'a dyn Progress,
    last: Mutex<Option<Instant>>,
}

impl Heard<'_> {
    fn last(&self) -> Option<Instant> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self, begun: Instant) -> Instant {
        self.last().map_or(begun + REGISTRY, |last| last + STALLED)
    }
}

impl Progress for Heard<'_> {
    fn begin(&self, what: &str) {
        self.narrator.begin(what);
    }

    fn line(&self, line: &str) {
        if !is_attempt(line) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        self.narrator.line(line);
    }

    fn done(&self, what: &str, took: Duration) {
        self.narrator.done(what, took);
    }

    fn notice(&self, text: &str) {
        self.narrator.notice(text);
    }
}

/// What runtimes print before the registry has answered: podman the first and the last, nerdctl the others.
fn is_attempt(line: &str) -> bool {
    ["Trying to pull", "resolving", "elapsed:", "retrying in"]
        .iter()
        .any(|words| line.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cli_is_told_which_runtime_and_which_image() {
        let hosts: Vec<_> = RUNTIMES.iter().map(Runtime::runner_host).collect();
        assert_eq!(hosts[0], format!("image+docker://{}", pins::DAGGER_IMAGE));
        assert_eq!(hosts[1], format!("image+apple://{}", pins::DAGGER_IMAGE));
    }

    #[test]
    fn the_reason_is_the_line_with_the_error_and_not_the_advice_below_it() {
        let docker = "docker: Error response from daemon: unable to apply caps: unknown.\n\nRun 'docker run --help' for more information\n";
        assert!(reason(docker).ends_with("unable to apply caps: unknown."));
        assert_eq!(
            reason("[]\nCannot connect to the daemon\n"),
            "Cannot connect to the daemon"
        );
        assert!(!reason("").is_empty());
    }

    #[test]
    fn a_container_that_is_started_again_and_again_does_not_run() {
        for text in [
            r#"[{"State": {"Status": "running"}, "RestartCount": 0}]"#,
            r#"[{"status": "running"}]"#,
        ] {
            assert!(Container::inspected(text).is_some_and(|container| container.running));
        }
        let ends = r#"[{"State": {"Status": "restarting", "Running": true}, "RestartCount": 4}]"#;
        let ends = Container::inspected(ends).expect("a container");
        assert!(!ends.running && ends.restarts == 4);
        assert!(Container::inspected("[]").is_none() && Container::inspected("").is_none());
    }

    #[test]
    fn what_was_loaded_is_named_by_its_runtime() {
        for (said, what) in [
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
            assert_eq!(loaded(said), what);
        }
    }

    #[test]
    fn only_what_comes_from_the_registry_is_progress() {
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
