//! Which Dagger engine a run uses, and the session with it.

pub mod embedded;
mod graphql;
mod session;
mod telemetry;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub use graphql::EngineError;
pub use session::{Endpoint, Session};
pub use telemetry::{Listener, Telemetry, TraceContext};

use crate::failure::{Failure, OrFail};
use crate::narrator::Narrator;
use crate::pins;
use crate::provision::{self, Consent};

/// What `--engine` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first that is there: an open session, a URL in the environment, a container runtime, the embedded engine.
    #[default]
    Auto,
    /// A container runtime that Dagger's CLI drives.
    Docker,
    /// The embedded engine.
    Embedded,
    /// An engine that runs already.
    Url(String),
}

/// The URLs that Dagger's CLI takes.
const SCHEMES: [&str; 8] = [
    "unix",
    "tcp",
    "kube-pod",
    "ssh",
    "image",
    "container",
    "docker-image",
    "docker-container",
];
/// The container runtimes that Dagger's CLI drives, in its own order.
const RUNTIMES: [&str; 3] = ["docker", "podman", "nerdctl"];
/// How long a runtime may take to say that it is there.
const RUNTIME_LIMIT: Duration = Duration::from_secs(5);

impl FromStr for Choice {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        match text {
            "auto" => return Ok(Self::Auto),
            "docker" => return Ok(Self::Docker),
            "embedded" => return Ok(Self::Embedded),
            _ => {}
        }
        match text.split_once("://") {
            Some((scheme, rest)) if SCHEMES.contains(&scheme.split('+').next().unwrap_or(scheme)) && !rest.is_empty() => {
                Ok(Self::Url(text.to_owned()))
            }
            _ => Err(Failure::usage(format!("`{text}` is not an engine"))
                .hint("--engine takes auto, docker, embedded, or a URL such as unix:///run/dagger/engine.sock or tcp://HOST:1234.")),
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Docker => "docker",
            Self::Embedded => "embedded",
            Self::Url(url) => url,
        })
    }
}

/// An engine, found.
#[derive(Clone, Debug)]
pub struct Engine {
    /// What it is, for people and the report: `session`, the container runtime's name, `embedded`, or its URL.
    pub name: String,
    /// How it is reached.
    pub endpoint: Endpoint,
}

/// Finds the engine that `choice` asks for, and makes it where it has to be made.
///
/// # Errors
/// When there is none and none can be had (exit 3), with the choices that are left.
pub async fn find(
    choice: &Choice,
    consent: Consent<'_>,
    narrator: &dyn Narrator,
) -> Result<Engine, Failure> {
    match choice {
        Choice::Auto => {
            if let Some(engine) = open_session() {
                return Ok(engine);
            }
            if let Some(url) = runner_host() {
                return at_url(&url, narrator).await;
            }
            match runtime().await {
                Ok(runtime) => in_runtime(runtime, narrator).await,
                Err(why) => {
                    narrator.notice(&format!("{why}: taking the embedded engine"));
                    in_this_machine(consent, narrator).await
                }
            }
        }
        Choice::Docker => {
            let runtime = runtime().await.map_err(|why| {
                Failure::environment(format!(
                    "there is no container runtime that can run an engine: {why}"
                ))
                .hint("Start one, or take --engine embedded or --engine URL.")
            })?;
            in_runtime(runtime, narrator).await
        }
        Choice::Embedded => in_this_machine(consent, narrator).await,
        Choice::Url(url) => at_url(url, narrator).await,
    }
}

/// Whether `choice` may come to an engine that this machine has to build first.
#[must_use]
pub fn builds_first(choice: &Choice) -> bool {
    match choice {
        Choice::Auto => named().is_none() && !embedded::is_built(),
        Choice::Embedded => !embedded::is_built(),
        Choice::Docker | Choice::Url(_) => false,
    }
}

/// The engine that the environment names before anything on this machine is looked at: an open session, or a URL.
#[must_use]
pub fn named() -> Option<String> {
    open_session()
        .map(|engine| engine.name)
        .or_else(runner_host)
}

fn open_session() -> Option<Engine> {
    let port = std::env::var("DAGGER_SESSION_PORT").ok()?.parse().ok()?;
    let token = std::env::var("DAGGER_SESSION_TOKEN").ok()?;
    Some(Engine {
        name: "session".into(),
        endpoint: Endpoint::Session { port, token },
    })
}

fn runner_host() -> Option<String> {
    std::env::var("_EXPERIMENTAL_DAGGER_RUNNER_HOST")
        .ok()
        .filter(|url| !url.is_empty())
}

/// The first container runtime that answers, or why none does.
///
/// # Errors
/// One sentence for people.
pub async fn runtime() -> Result<String, String> {
    let mut why = Vec::new();
    for name in RUNTIMES {
        let Some(program) = provision::find_program(name) else {
            continue;
        };
        let mut command = provision::command(program);
        // `docker version` of a client without a daemon prints the client and fails.
        command.arg("version");
        match tokio::time::timeout(RUNTIME_LIMIT, provision::output(command, name)).await {
            Ok(Ok(_)) => return Ok(name.to_owned()),
            Ok(Err(failure)) => {
                let said = failure.output.unwrap_or_default();
                let last = said.lines().last().unwrap_or("it failed").trim().to_owned();
                why.push(format!("{name} is here, but not usable ({last})"));
            }
            Err(_) => why.push(format!(
                "{name} is here, but did not answer within {} s",
                RUNTIME_LIMIT.as_secs()
            )),
        }
    }
    if why.is_empty() {
        return Err("no container runtime is here".into());
    }
    Err(why.join("; "))
}

/// The local container runtime that an image can be loaded into.
///
/// # Errors
/// When there is none (exit 3).
pub async fn loader() -> Result<String, Failure> {
    runtime().await.map_err(|why| {
        Failure::environment(format!("the image cannot be loaded: {why}"))
            .hint("Start a container runtime, or take the archive: --output FILE.")
    })
}

/// Loads the OCI archive of an image into a local container runtime, under `name`.
///
/// # Errors
/// When the runtime does not take it (exit 3).
pub async fn load(runtime: &str, archive: &Path, name: &str) -> Result<(), Failure> {
    let config =
        crate::oci::read_config_digest(archive).or_environment("the archive cannot be read")?;
    let mut load = provision::command(runtime);
    load.arg("load").arg("--input").arg(archive);
    provision::output(load, &format!("{runtime} load")).await?;
    let mut tag = provision::command(runtime);
    tag.args(["tag", &config, name]);
    provision::output(tag, &format!("{runtime} tag")).await?;
    Ok(())
}

async fn in_runtime(runtime: String, narrator: &dyn Narrator) -> Result<Engine, Failure> {
    Ok(Engine {
        name: runtime,
        endpoint: Endpoint::Cli {
            cli: cli(narrator).await?,
            // The CLI knows which runtime answers, and which image is its own.
            runner_host: None,
            // The engine's image has to be pulled the first time.
            patience: Duration::from_secs(600),
        },
    })
}

async fn in_this_machine(consent: Consent<'_>, narrator: &dyn Narrator) -> Result<Engine, Failure> {
    let running = embedded::up(consent, narrator).await?;
    Ok(Engine {
        name: "embedded".into(),
        endpoint: Endpoint::Cli {
            cli: running.cli,
            runner_host: Some(running.runner_host),
            patience: Duration::from_secs(60),
        },
    })
}

/// Whether somebody listens on the socket that `url` names; other URLs are for the CLI to try.
///
/// # Errors
/// When nobody does (exit 3).
pub async fn listens(url: &str) -> Result<(), Failure> {
    let Some(path) = url.strip_prefix("unix://") else {
        return Ok(());
    };
    tokio::net::UnixStream::connect(path)
        .await
        .map(drop)
        .map_err(|error| {
            Failure::environment(format!("no engine listens on {url}"))
                .because(error)
                .hint("Start that engine, or choose another with --engine.")
        })
}

async fn at_url(url: &str, narrator: &dyn Narrator) -> Result<Engine, Failure> {
    // The CLI would wait for a socket that nobody listens on.
    listens(url).await?;
    Ok(Engine {
        name: url.to_owned(),
        endpoint: Endpoint::Cli {
            cli: cli(narrator).await?,
            runner_host: Some(url.to_owned()),
            patience: Duration::from_secs(60),
        },
    })
}

/// Dagger's CLI, of the version that everything else has: the one that `_EXPERIMENTAL_DAGGER_CLI_BIN` names, one that was
/// built here before, the released one, or one that is built now.
async fn cli(narrator: &dyn Narrator) -> Result<PathBuf, Failure> {
    if let Some(named) =
        std::env::var_os("_EXPERIMENTAL_DAGGER_CLI_BIN").filter(|named| !named.is_empty())
    {
        let named = PathBuf::from(named);
        // The SDK would fall through to a download without a word.
        if !named.is_file() {
            return Err(Failure::usage(format!(
                "_EXPERIMENTAL_DAGGER_CLI_BIN names {}, which is not a file",
                named.display()
            )));
        }
        return Ok(named);
    }
    if let Some(built) = embedded::built_cli() {
        return Ok(built);
    }
    let download = dagger_sdk::core::downloader::Downloader::new(pins::DAGGER.to_owned());
    let downloaded = tokio::time::timeout(Duration::from_secs(300), download.get_cli()).await;
    match downloaded {
        Ok(Ok(cli)) => Ok(cli),
        Ok(Err(error)) => {
            tracing::debug!("Dagger's CLI cannot be downloaded: {error}");
            narrator.notice("Dagger's CLI cannot be downloaded: building it");
            embedded::cli(narrator).await
        }
        Err(elapsed) => Err(elapsed).or_environment("the download of Dagger's CLI did not end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_a_word_or_a_url_that_the_cli_takes() {
        assert_eq!("auto".parse::<Choice>().unwrap(), Choice::Auto);
        for url in [
            "unix:///run/engine.sock",
            "tcp://10.0.0.1:1234",
            "kube-pod://dagger-0?namespace=ci",
            "image+podman://x",
        ] {
            assert_eq!(url.parse::<Choice>().unwrap().to_string(), url);
        }
        for bad in ["", "nonsense", "http://x", "tcp://", "Docker"] {
            assert_eq!(bad.parse::<Choice>().unwrap_err().code as u8, 2, "{bad}");
        }
    }
}
