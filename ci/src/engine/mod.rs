//! Which Dagger engine a run uses, and the session with it.

pub mod commands;
pub mod embedded;
mod graphql;
pub mod runtime;
mod session;
mod telemetry;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

pub use graphql::{EngineError, unbroken};
pub use runtime::Runtime;
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
/// How long what listens on a URL may take to answer like an engine.
const ANSWER: Duration = Duration::from_secs(10);

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
            match runtime::usable(narrator).await {
                Ok(runtime) => in_runtime(runtime, narrator).await,
                Err(why) => {
                    narrator.notice(&format!("{why}: taking the embedded engine"));
                    in_this_machine(consent, narrator).await
                }
            }
        }
        Choice::Docker => {
            let runtime = runtime::usable(narrator).await.map_err(|why| {
                Failure::environment(format!(
                    "there is no container runtime that can run an engine: {why}"
                ))
                .hint(runtime::REMEDY)
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

async fn in_runtime(runtime: Runtime, narrator: &dyn Narrator) -> Result<Engine, Failure> {
    Ok(Engine {
        name: runtime.name.to_owned(),
        endpoint: Endpoint::Cli {
            cli: cli(narrator).await?,
            runner_host: Some(runtime.runner_host()),
            patience: Duration::from_secs(120),
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

/// Whether an engine answers at `url`, as far as that can be known at once; the rest is for the CLI to try.
///
/// # Errors
/// When nobody listens there, what listens is no engine, or the program is missing that would connect to it (exit 3).
pub async fn listens(url: &str) -> Result<(), Failure> {
    let (scheme, place) = url.split_once("://").unwrap_or_default();
    let answered = match scheme {
        "unix" => tokio::time::timeout(ANSWER, answers(UnixStream::connect(place))).await,
        "tcp" => tokio::time::timeout(ANSWER, answers(TcpStream::connect(place))).await,
        "kube-pod" => return need(url, "kubectl"),
        "ssh" => return need(url, "ssh"),
        _ => return Ok(()),
    };
    let failure = match answered {
        Ok(Ok(true)) => return Ok(()),
        Ok(Ok(false)) => Failure::environment(format!("what listens on {url} is no Dagger engine")),
        Ok(Err(error)) => {
            Failure::environment(format!("no engine listens on {url}")).because(error)
        }
        Err(_) => Failure::environment(format!(
            "no engine answers on {url} within {} s",
            ANSWER.as_secs()
        )),
    };
    Err(failure.hint("Start that engine, or choose another with --engine."))
}

/// Whether what is connected to speaks HTTP/2 at once, as an engine does.
async fn answers<S: AsyncRead + AsyncWrite + Unpin>(
    connect: impl Future<Output = std::io::Result<S>>,
) -> std::io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut stream = connect.await?;
    let mut header = [0; 9];
    let exchange = async {
        stream.write_all(PREFACE).await?;
        stream.write_all(&EMPTY_SETTINGS).await?;
        stream.read_exact(&mut header).await
    };
    // The type of the first frame; one that hangs up has no frames.
    Ok(exchange.await.is_ok() && header[3] == EMPTY_SETTINGS[3])
}

/// The version that the engine says it has. The CLI refuses what is too old for it, and no more.
///
/// # Errors
/// When the engine does not say (exit 3).
pub async fn version(client: &dagger_sdk::DaggerConn) -> Result<String, Failure> {
    let version = client
        .version()
        .await
        .or_environment("the engine does not say its version")?;
    Ok(version.trim_start_matches('v').to_owned())
}

fn need(url: &str, program: &str) -> Result<(), Failure> {
    if provision::find_program(program).is_some() {
        return Ok(());
    }
    Err(Failure::environment(format!(
        "{url} is reached through {program}, which is not on the PATH"
    ))
    .hint(format!(
        "Install {program}, or choose another engine with --engine."
    )))
}

async fn at_url(url: &str, narrator: &dyn Narrator) -> Result<Engine, Failure> {
    // The CLI would wait for one that never answers.
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
    let dest = provision::cache_root()?
        .join(format!("dagger-download-{}", pins::DAGGER))
        .join("dagger");
    let downloaded = provision::once(&dest, narrator, "the download of Dagger's CLI", download);
    match tokio::time::timeout(Duration::from_secs(300), downloaded).await {
        Ok(Ok(cli)) => Ok(cli),
        Ok(Err(failure)) => {
            tracing::debug!("{failure}");
            narrator.notice("Dagger's CLI cannot be downloaded: building it");
            embedded::cli(narrator).await
        }
        Err(elapsed) => Err(elapsed).or_environment("the download of Dagger's CLI did not end"),
    }
}

/// The released CLI, with the published check sum. The SDK's own way writes it in place, where what is half-written counts
/// as whole ever after.
async fn download(target: PathBuf) -> Result<(), Failure> {
    let released = dagger_sdk::core::downloader::Downloader::new(pins::DAGGER.to_owned());
    let cannot = "cannot download Dagger's CLI";
    let sums = async {
        let answer = reqwest::get(released.checksum_url()).await?;
        answer.error_for_status()?.text().await
    };
    let sums = sums.await.or_environment(cannot)?;
    let mut program = Vec::new();
    let sum = released
        .extract_cli_archive(&mut program)
        .await
        .map_err(|error| Failure::environment(format!("{cannot}: {error:#}")))?;
    let archive = released.archive_url();
    let name = archive.rsplit('/').next().unwrap_or_default();
    if !sums
        .lines()
        .any(|line| line.split_whitespace().eq([sum.as_str(), name]))
    {
        return Err(Failure::environment(format!(
            "{cannot}: {name} has another check sum"
        )));
    }
    std::fs::write(&target, program).or_environment(cannot)?;
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&target, mode).or_environment(cannot)?;
    }
    Ok(())
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
